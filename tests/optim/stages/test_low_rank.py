"""Trion and DCT-AdamW: the basis against scipy, both rules against plain loops, and Muon and Adam at full rank."""

from __future__ import annotations

import pytest
import scipy.fft
import torch

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.composition import Step
from rlspec.optim.rules import get_rule
from rlspec.optim.stages.low_rank import dct_adamw, dct_basis, dct_columns

SHAPES = [(9, 6), (6, 9), (7, 7)]
BETAS = (0.8, 0.95)
CPU = torch.device("cpu")


def random_blocks(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(random_blocks(size, size, seed=seed))[0]


def run(gradients: torch.Tensor, rule: str, **settings: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What a rule with lr 1 and adjust_lr none subtracts in every step (steps, rows, cols), and its last state."""
    param = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = SpectralOptimizer([param], lr=1.0, rule=rule, **{"adjust_lr": "none"} | settings)  # type: ignore[arg-type]
    taken = []
    for gradient in gradients:
        before = param.detach().clone()
        param.grad = gradient.clone()
        optimizer.step()
        taken.append(before - param.detach())
    return torch.stack(taken), optimizer.state[param]


def cosine_basis(size: int) -> torch.Tensor:
    return torch.from_numpy(scipy.fft.dct(torch.eye(size).double().numpy(), type=3, norm="ortho", axis=1))


def muon_polar(matrix: torch.Tensor) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    x = s / s.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return u @ torch.diag(x) @ vh


@pytest.mark.parametrize("size", [1, 2, 7, 128, 1000])
def test_the_basis_is_orthogonal_to_rounding_and_scipys_dct_3(size: int) -> None:
    basis = dct_basis(size, torch.float64, CPU)
    # Of the product's own summation; the entries are right to 1e-15, below.
    assert (basis @ basis.T - torch.eye(size).double()).abs().max() < max(1e-15, 2e-17 * size)
    assert (basis - cosine_basis(size)).abs().max() < 1e-15


def test_one_basis_is_shared_by_all_blocks_of_a_size() -> None:
    assert dct_basis(64, torch.float32, CPU) is dct_basis(64, torch.float32, CPU)


@pytest.mark.parametrize(
    ("rank", "short", "expected"),
    [(0.25, 8, 2), (0.1, 30, 3), (0.25, 1, 1), (1.0, 7, 7), (5, 4, 4), (3, 8, 3), (1, 9, 1)],
)
def test_a_rank_is_a_number_of_columns_or_a_fraction_of_the_shorter_side(
    rank: float, short: int, expected: int
) -> None:
    assert dct_columns(rank, short) == expected


def trion_loop(gradients: torch.Tensor, momentum: float, rank: int) -> torch.Tensor:
    flip = gradients.shape[1] < gradients.shape[2]
    basis = cosine_basis(min(gradients.shape[1:]))
    total = torch.zeros(max(gradients.shape[1:]), min(gradients.shape[1:])).double()
    taken = []
    for gradient in gradients:
        total = total + (gradient.T if flip else gradient)
        coefficients = total @ basis
        columns = coefficients.abs().sum(0).argsort(descending=True)[:rank]
        chosen = basis[:, columns]
        total = total - (1 - momentum) * coefficients[:, columns] @ chosen.T
        update = muon_polar(coefficients[:, columns]) @ chosen.T
        taken.append(update.T if flip else update)
    return torch.stack(taken)


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_trion_equals_the_papers_formulas(shape: tuple[int, int], rank: int) -> None:
    gradients = random_blocks(8, *shape)
    ours, _ = run(gradients, "trion", momentum=0.9, dct_rank=rank)
    assert (ours - trion_loop(gradients, 0.9, rank)).abs().max() < 1e-11


@pytest.mark.parametrize("shape", SHAPES)
def test_trion_at_full_rank_is_muon_with_heavy_ball_momentum(shape: tuple[int, int]) -> None:
    gradients = random_blocks(6, *shape)
    ours, _ = run(gradients, "trion", momentum=0.9, dct_rank=1.0)
    ball = torch.zeros(shape).double()
    for gradient, taken in zip(gradients, ours, strict=True):
        ball = 0.9 * ball + gradient
        assert (taken - muon_polar(ball)).abs().max() < 1e-12


def test_trion_delivers_later_what_it_left_out() -> None:
    # One gradient, then none: with momentum 0 everything selected is drained, so each column comes once.
    gradients = torch.cat([random_blocks(1, 9, 6), torch.zeros(2, 9, 6).double()])
    taken, state = run(gradients, "trion", momentum=0.0, dct_rank=2)
    basis = cosine_basis(6)
    active = [set(torch.nonzero((update @ basis).abs().sum(0) > 1e-9).flatten().tolist()) for update in taken]
    assert [len(columns) for columns in active] == [2, 2, 2]
    assert set.union(*active) == set(range(6))
    assert state["undelivered"].abs().max() < 1e-14


def test_trions_update_has_adamws_root_mean_square_at_any_rank() -> None:
    for rank in (2, 3, 6):
        taken, _ = run(1e-6 * random_blocks(3, 9, 6), "trion", dct_rank=rank, adjust_lr="match_rms_adamw")
        assert torch.allclose(taken.square().mean((1, 2)).sqrt(), torch.tensor(0.2).double(), rtol=0.01)


def adam_loop(gradients: torch.Tensor, rank: int, period: int, feedback: bool) -> torch.Tensor:
    """One column at a time: its moments and its age, forgotten when it is not selected."""
    flip = gradients.shape[1] < gradients.shape[2]
    basis = cosine_basis(min(gradients.shape[1:]))
    left_out = torch.zeros(max(gradients.shape[1:]), min(gradients.shape[1:])).double()
    moments: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}
    taken = []
    for count, gradient in enumerate(gradients):
        total = (gradient.T if flip else gradient) + left_out
        coefficients = total @ basis
        if count % period == 0:
            chosen = coefficients.abs().sum(0).argsort(descending=True)[:rank].tolist()
            zeros = torch.zeros(len(total)).double()
            moments = {column: moments.get(column, (zeros, zeros, 0)) for column in chosen}
        update = torch.zeros_like(total)
        for column, (first, second, age) in moments.items():
            value = coefficients[:, column]
            first = BETAS[0] * first + (1 - BETAS[0]) * value
            second = BETAS[1] * second + (1 - BETAS[1]) * value**2
            moments[column] = (first, second, age + 1)
            ratio = first / (1 - BETAS[0] ** (age + 1)) / (second / (1 - BETAS[1] ** (age + 1))).sqrt()
            update += torch.outer(ratio, basis[:, column])
            total = total - torch.outer(value, basis[:, column])
        left_out = total if feedback else torch.zeros_like(total)
        taken.append(update.T if flip else update)
    return torch.stack(taken)


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_dct_adamw_equals_adam_column_by_column(shape: tuple[int, int], rank: int, period: int, feedback: bool) -> None:
    gradients = random_blocks(10, *shape)
    ours, _ = run(
        gradients,
        "dct_adamw",
        betas=BETAS,
        dct_rank=rank,
        dct_period=period,
        dct_error_feedback=feedback,
        basis_eps=0.0,
    )
    assert (ours - adam_loop(gradients, rank, period, feedback)).abs().max() < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_dct_adamw_at_full_rank_is_adam_in_the_cosine_basis(shape: tuple[int, int]) -> None:
    gradients, basis, flip = random_blocks(6, *shape), cosine_basis(min(shape)), shape[0] < shape[1]
    ours, _ = run(gradients, "dct_adamw", betas=BETAS, dct_rank=1.0, basis_eps=0.0)
    turned = gradients.mT @ basis if flip else gradients @ basis
    param = torch.nn.Parameter(torch.zeros_like(turned[0]))
    adam = torch.optim.AdamW([param], lr=1.0, betas=BETAS, eps=1e-300, weight_decay=0.0)
    for gradient in turned:
        param.grad = gradient.clone()
        adam.step()
    back = -param.detach() @ basis.T
    assert (ours.sum(0) - (back.T if flip else back)).abs().max() < 1e-11


def test_a_column_selected_late_does_not_overshoot() -> None:
    # Cosine column 0 for 50 steps, then column 1 alone: with a common step count it would start at 3.2 and reach 6.
    basis = cosine_basis(6)
    early, late = (torch.outer(random_blocks(9, seed=column).sign(), basis[:, column]) for column in (0, 1))
    gradients = torch.stack([early] * 50 + [late] * 20)
    taken, _ = run(gradients, "dct_adamw", betas=(0.9, 0.999), dct_rank=1, dct_error_feedback=False, basis_eps=0.0)
    assert ((taken[50:] @ basis[:, 1]).abs() - 1).abs().max() < 1e-9


def test_error_feedback_brings_every_column_to_its_turn() -> None:
    gradients = random_blocks(1, 9, 6).expand(30, 9, 6)
    basis = cosine_basis(6)
    with_feedback, _ = run(gradients, "dct_adamw", dct_rank=1)
    without, _ = run(gradients, "dct_adamw", dct_rank=1, dct_error_feedback=False)
    moved = [(taken.sum(0) @ basis).abs().sum(0) > 1e-6 for taken in (with_feedback, without)]
    assert moved[0].all()
    assert moved[1].sum() == 1


@pytest.mark.parametrize(
    ("rule", "settings", "values"),
    [
        ("trion", {}, 96 * 64),
        ("dct_adamw", {"dct_error_feedback": False, "dct_rank": 16}, 2 * 96 * 16 + 2 * 16),
        ("dct_adamw", {"dct_rank": 0.25}, 96 * 64 + 2 * 96 * 16 + 2 * 16),
    ],
)
@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_state_is_as_large_as_stated(
    rule: str, settings: dict[str, object], values: int, shape: tuple[int, int]
) -> None:
    _, state = run(random_blocks(1, *shape), rule, **settings)
    assert sum(tensor.numel() for name, tensor in state.items() if name != "step") == values
    assert get_rule(rule).state_values(1, *shape, settings) == values


@pytest.mark.parametrize("rule", ["trion", "dct_adamw"])
@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_low_rank_rules_commute_with_signed_permutations_of_the_longer_side_alone(
    rule: str, shape: tuple[int, int]
) -> None:
    gradients = random_blocks(6, *shape)
    plain, _ = run(gradients, rule)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    long = torch.eye(9, dtype=torch.float64)[order] * random_blocks(9).sign()
    short = torch.eye(6, dtype=torch.float64)[[1, 0, 2, 3, 4, 5]]
    left, right = (long, short) if shape[0] > shape[1] else (short, long)
    on_left = (run(left @ gradients, rule)[0] - left @ plain).abs().max()
    on_right = (run(gradients @ right, rule)[0] - plain @ right).abs().max()
    on_long, on_short = (on_left, on_right) if shape[0] > shape[1] else (on_right, on_left)
    assert on_long < 1e-11
    assert on_short > 0.05


@pytest.mark.parametrize("rule", ["trion", "dct_adamw"])
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e4, 1e20])
def test_low_rank_rules_take_the_same_steps_at_every_scale_of_the_gradient(rule: str, scale: float) -> None:
    gradients = random_blocks(5, 9, 6).float()
    plain, _ = run(gradients, rule, compute_dtype="float32")
    scaled, _ = run(gradients * scale, rule, compute_dtype="float32")
    assert (scaled - plain).abs().max() < 1e-3


@pytest.mark.parametrize("rule", ["trion", "dct_adamw"])
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1), (4, 5)])
def test_zeros_take_no_step_and_thin_blocks_work(rule: str, shape: tuple[int, int]) -> None:
    assert not run(torch.zeros(2, *shape).double(), rule)[0].any()
    taken, _ = run(random_blocks(3, *shape), rule)
    assert taken.isfinite().all()
    assert taken.any()


def test_columns_are_selected_as_soon_as_there_is_a_gradient_to_select_by() -> None:
    # On CUDA a first gradient with NaN counts as a step and leaves the state as it started.
    settings = {"betas": BETAS, "dct_rank": 3, "dct_period": 100}
    assert dct_adamw.buffers is not None
    buffers = dct_adamw.buffers(9, 6, settings)
    step = Step(settings, 1.0, 1.0, 2, torch.float64)
    step.state = {name: buffer.new(2, torch.float64, CPU) for name, buffer in buffers.items()}
    dct_adamw(random_blocks(2, 9, 6), step)
    columns = step.state["columns"]
    assert (columns.diff(dim=1) > 0).all()
    step.count = 3
    dct_adamw(random_blocks(2, 9, 6, seed=1), step)
    assert torch.equal(step.state["columns"], columns)


def test_heads_select_columns_of_their_own() -> None:
    gradients = random_blocks(5, 12, 20)
    together, _ = run(gradients, "trion", num_heads=2)
    apart = torch.cat([run(gradients[:, :6], "trion")[0], run(gradients[:, 6:], "trion")[0]], dim=1)
    assert (together - apart).abs().max() < 1e-13


@pytest.mark.parametrize(
    ("rule", "settings", "offender"),
    [
        ("trion", {"dct_rank": 0}, "dct_rank"),
        ("trion", {"dct_rank": 1.5}, "dct_rank"),
        ("trion", {"schedule": "kellr"}, "did you mean keller"),
        ("dct_adamw", {"dct_rank": -0.5}, "dct_rank"),
        ("dct_adamw", {"dct_period": 0}, "dct_period"),
        ("dct_adamw", {"basis_eps": 2.0}, "basis_eps"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(rule: str, settings: dict[str, object], offender: str) -> None:
    with pytest.raises(ConfigError, match=offender):
        run(random_blocks(1, 4, 4), rule, **settings)
