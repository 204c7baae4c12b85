"""Row norms and one-sided polar factors against float64 decompositions and plain loops of the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.composition import Step
from rlspec.optim.stages.one_sided import centered_left_polar, measured_unit, right_polar, row_norm

SHAPES = [(7, 5), (5, 7), (6, 6)]
RULES = ["row_norm", "centered_row_norm", "column_norm", "right_polar", "left_polar", "centered_left_polar"]
RULES += ["row_then_polar", "column_then_polar", "polar_then_row"]
MATCHED_RMS = 0.2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def msign(matrix: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > 1e-10 * values[0]
    return left[:, kept] @ right[kept]


def eps_rows(matrix: Tensor, eps: float = 1e-3) -> Tensor:
    """Rows over their norms plus eps times the root mean square of the norms."""
    norms = [float((row * row).sum().sqrt()) for row in matrix]
    floor = eps * math.sqrt(sum(norm * norm for norm in norms) / len(norms))
    return torch.stack([row / (norm + floor) for row, norm in zip(matrix, norms, strict=True)])


def center(matrix: Tensor) -> Tensor:
    return matrix - torch.stack([column.sum() / len(column) for column in matrix.T])


FORMULAS = {
    "row_norm": eps_rows,
    "centered_row_norm": lambda m: center(eps_rows(center(m))),
    "column_norm": lambda m: eps_rows(m.T).T,
    "right_polar": msign,
    "left_polar": msign,
    "centered_left_polar": lambda m: msign(center(m)),
    "row_then_polar": lambda m: msign(eps_rows(m)),
    "column_then_polar": lambda m: msign(eps_rows(m.T)).T,
    "polar_then_row": lambda m: eps_rows(msign(m)),
}
NUCLEAR = {
    "right_polar": lambda m: torch.linalg.svdvals(m).sum(),
    "left_polar": lambda m: torch.linalg.svdvals(m).sum(),
    "centered_left_polar": lambda m: torch.linalg.svdvals(center(m)).sum(),
    "row_then_polar": lambda m: torch.linalg.svdvals(eps_rows(m)).sum(),
    "column_then_polar": lambda m: torch.linalg.svdvals(eps_rows(m.T)).sum(),
}


def length_matched(rule: str, rows: int, cols: int) -> float:
    """What makes a full-rank update's root mean square 0.2."""
    if rule in ("row_norm", "centered_row_norm", "polar_then_row"):
        return MATCHED_RMS * math.sqrt(cols)
    return MATCHED_RMS * math.sqrt(rows if rule == "column_norm" else max(rows, cols))


def run(rule: str, gradients: list[Tensor], **settings: object) -> list[Tensor]:
    """The changes of every step with lr 1 from a zero weight."""
    param = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = SpectralOptimizer([param], rule=rule, lr=1.0, **settings)  # type: ignore[arg-type]
    changes = []
    for gradient in gradients:
        before = param.detach().clone()
        param.grad = gradient.clone()
        optimizer.step()
        changes.append(param.detach() - before)
    return changes


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nesterov", [False, True])
def test_every_step_is_the_formula_of_the_momentum_at_the_matched_length(
    rule: str, shape: tuple[int, int], nesterov: bool
) -> None:
    gradients = [random(*shape, seed=seed) for seed in range(4)]
    average = torch.zeros(shape, dtype=torch.float64)
    for gradient, change in zip(gradients, run(rule, gradients, nesterov=nesterov), strict=True):
        average = 0.95 * average + 0.05 * gradient
        direction = 0.95 * average + 0.05 * gradient if nesterov else average
        expected = -length_matched(rule, *shape) * FORMULAS[rule](direction)
        assert float((change - expected).norm() / expected.norm()) < 1e-10


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_published_length_is_unit_rows_or_a_power_of_the_nuclear_norm(rule: str, exponent: float) -> None:
    gradient = random(8, 5) * 1e-4
    options = {"nuclear_exponent": exponent} if rule in NUCLEAR else {}
    (change,) = run(rule, [gradient], adjust_lr="none", momentum=0.0, **options)
    factor = NUCLEAR[rule](gradient) ** exponent if rule in NUCLEAR else 1.0
    expected = -factor * FORMULAS[rule](gradient)
    assert float((change - expected).norm() / expected.norm()) < 1e-10


@pytest.mark.parametrize("rule", sorted(NUCLEAR))
def test_the_exponent_has_no_effect_on_a_length_that_is_matched(rule: str) -> None:
    one, none = (run(rule, [random(8, 5)], nuclear_exponent=exponent)[0] for exponent in (1.0, 0.0))
    assert torch.equal(one, none)


def test_rows_that_are_stale_do_not_lengthen_the_others_and_fade_out() -> None:
    gradient = random(50, 8)
    gradient[10:] = 0
    (change,) = run("row_norm", [gradient])
    assert torch.allclose(
        change[:10].norm(dim=1), torch.full((10,), MATCHED_RMS * 8**0.5, dtype=torch.float64), rtol=5e-3
    )
    assert not change[10:].any()
    # One row's gradient stops: a thousandth of the others after 135 steps at momentum 0.95, and half as fast there.
    steps = [random(6, 8, seed=seed) for seed in range(160)]
    for step in steps[1:]:
        step[0] = 0
    speeds = torch.stack([change[0].norm() / change[1].norm() for change in run("row_norm", steps)])
    assert speeds[30] > 0.9
    assert speeds[159] < 0.5 * speeds[30]
    absolute = run("row_norm", steps, eps_mode="absolute", stale_eps=1e-8)[159]
    assert absolute[0].norm() / absolute[1].norm() > 0.999


def test_the_papers_absolute_eps_is_felt_by_small_gradients_only_then() -> None:
    gradient = random(6, 8) * 1e-9
    absolute = run("row_norm", [gradient], momentum=0.0, adjust_lr="none", eps_mode="absolute", stale_eps=1e-8)[0]
    expected = -gradient / (gradient.norm(dim=1, keepdim=True) + 1e-8)
    assert torch.allclose(absolute, expected, rtol=1e-9)
    damped = run(
        "right_polar", [gradient], momentum=0.0, adjust_lr="none", eps_mode="absolute", polar_eps=1e-17,
        nuclear_exponent=0.0,
    )[0]  # fmt: skip
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.allclose(damped, -(left * (values / (values**2 + 1e-17).sqrt())) @ right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["right_polar", "left_polar", "centered_left_polar", "polar_then_row"])
@pytest.mark.parametrize("scale", [0.0, 1e-24, 1e-38])
def test_gradients_far_below_an_absolute_eps_move_nothing_and_divide_by_nothing(rule: str, scale: float) -> None:
    gradient = (random(4, 6) * scale).float()
    settings = {"eps_mode": "absolute", "polar_eps": 1e-8} | ({"stale_eps": 1e-8} if "row" in rule else {})
    assert run(rule, [gradient], **settings)[0].norm() < 1e-5


@pytest.mark.parametrize("rule", ["right_polar", "left_polar", "row_then_polar"])
def test_relative_damping_shrinks_weak_directions(rule: str) -> None:
    gradient = random(9, 4)
    (change,) = run(rule, [gradient], momentum=0.0, adjust_lr="none", polar_eps=0.3, nuclear_exponent=0.0)
    matrix = eps_rows(gradient) if rule == "row_then_polar" else gradient
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    damping = 0.3 * float(values.square().mean())
    expected = -(left * (values / (values**2 + damping).sqrt())) @ right
    assert torch.allclose(change, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", ["centered_row_norm", "centered_left_polar"])
@pytest.mark.parametrize("shape", SHAPES)
def test_centered_rules_do_not_see_a_shift_of_all_rows_and_make_none(rule: str, shape: tuple[int, int]) -> None:
    gradient = random(*shape)
    plain = run(rule, [gradient])[0]
    shifted = run(rule, [gradient + 3 * random(1, shape[1], seed=1)])[0]
    assert float((plain - shifted).norm() / plain.norm()) < 1e-12
    assert float(plain.sum(0).abs().max()) < 1e-14


@pytest.mark.parametrize("rule", ["centered_row_norm", "centered_left_polar"])
def test_what_centering_leaves_of_equal_rows_is_not_amplified(rule: str) -> None:
    options = {"nuclear_exponent": 0.0} if rule in NUCLEAR else {}
    last_bits = 1 + torch.finfo(torch.float64).eps * random(7, 6).sign()
    (change,) = run(rule, [random(1, 6, seed=1) * last_bits], adjust_lr="none", momentum=0.0, **options)
    assert float(change.norm()) < 0.2


@pytest.mark.parametrize("rule", ["right_polar", "row_then_polar"])
def test_tall_float32_matrices_of_low_rank_have_unit_singular_values(rule: str, arithmetic: torch.dtype) -> None:
    gradient = torch.zeros(200, 24)
    gradient[:9] = random(9, 24).float()
    (change,) = run(rule, [gradient], momentum=0.0, adjust_lr="none", nuclear_exponent=0.0)
    values = torch.linalg.svdvals(change.double())
    # The last product rounds every entry by half an eps; directions that were zero get their share of it.
    tolerance = max(1e-5, torch.finfo(arithmetic).eps)
    assert torch.allclose(values[:9], torch.ones(9, dtype=torch.float64), atol=tolerance)
    assert float(values[9:].max()) < tolerance


def test_half_precision_iterations_stay_near_the_polar_factor() -> None:
    gradient = random(64, 24).float()
    (change,) = run("right_polar", [gradient], adjust_lr="none", nuclear_exponent=0.0, compute_dtype="bfloat16")
    expected = -msign(gradient.double())
    assert float((change - expected).norm() / expected.norm()) < 2e-2  # a few bf16 roundings of 4e-3


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_the_norm_is_measured_at_any_scale(scale: float) -> None:
    matrix = random(2, 5, 4)
    unit, norm = measured_unit((matrix * scale).float())
    assert torch.allclose(unit.norm(dim=(1, 2)), torch.ones(2), rtol=1e-6)
    assert torch.allclose(norm[:, 0, 0].double() / scale, matrix.norm(dim=(1, 2)), rtol=1e-6)


def test_the_energy_counts_rows_or_directions_and_is_zero_for_zeros() -> None:
    blocks = torch.stack([random(8, 5), torch.zeros(8, 5, dtype=torch.float64)])
    for stage, energy in ((row_norm, 8.0), (right_polar, 5.0), (centered_left_polar, 5.0)):
        step = Step({"adjust_lr": "match_rms_adamw"}, 1.0, 1.0, 1, torch.float64)
        updated = stage(blocks, step)
        assert step.energy is not None
        assert step.energy.tolist() == pytest.approx([energy, 0.0])
        assert not updated[1].any()


@pytest.mark.parametrize(("option", "value"), [("stale_eps", -1.0), ("eps_mode", "relativ")])
def test_options_that_cannot_work_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=option):
        run("row_norm", [random(4, 4)], **{option: value})
