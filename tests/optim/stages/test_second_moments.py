"""Rules with a second moment against plain float64 loops of the papers' formulas, and in their limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer

KELLER = (3.4445, -4.7750, 2.0315)
PION = {1: (1.875, -1.25, 0.375), 0: (0.0, 2.5, -1.5)}
WD = 0.1
SHAPES = [(6, 4), (4, 6), (5, 5)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def newton_schulz(matrix: Tensor, steps: list[tuple[float, float, float]] | None = None) -> Tensor:
    """By the singular value decomposition."""
    left, values, right = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for a, b, c in [KELLER] * 5 if steps is None else steps:
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


def weights_of(rule: str, gradients: list[Tensor], start: Tensor, **settings: object) -> Tensor:
    param = nn.Parameter(start.clone())
    optimizer = SpectralOptimizer([param], rule=rule, weight_decay=WD, **settings)  # type: ignore[arg-type]
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()
    return param.detach()


Update = Callable[[Tensor, Tensor, int, dict], tuple[Tensor, float | Tensor]]
"""(direction, gradient, t, memory) -> update without lr, factor of the decay."""


def loop(update: Update, gradients: list[Tensor], start: Tensor, lr: float, nesterov: bool) -> Tensor:
    weight, average, memory = start.clone(), torch.zeros_like(start), {}
    for t, gradient in enumerate(gradients, start=1):
        average = 0.95 * average + 0.05 * gradient
        direction = 0.95 * average + 0.05 * gradient if nesterov else average
        step, decay = update(direction, gradient, t, memory)
        weight = weight * (1 - lr * WD * decay) - lr * step
    return weight


def matched(matrix: Tensor) -> float:
    return 0.2 * math.sqrt(max(matrix.shape))


def namo(lr: float) -> Update:
    def update(m: Tensor, g: Tensor, t: int, memory: dict) -> tuple[Tensor, float | Tensor]:
        memory["v"] = 0.99 * memory.get("v", 0.0) + 0.01 * float((g * g).sum())
        alpha = lr * math.sqrt(1 - 0.99**t) / (1 - 0.95**t) * float(m.norm()) / math.sqrt(memory["v"])
        return min(alpha * matched(m), 1.0) / lr * newton_schulz(m), min(alpha, 1.0) / lr

    return update


def namo_d(lr: float) -> Update:
    def update(m: Tensor, g: Tensor, t: int, memory: dict) -> tuple[Tensor, float | Tensor]:
        ratios = []
        for column in range(m.shape[1]):
            memory[column] = 0.99 * memory.get(column, 0.0) + 0.01 * float((g[:, column] ** 2).sum())
            correction = math.sqrt(1 - 0.99**t) / (1 - 0.95**t)
            ratios.append(correction * float(m[:, column].norm()) / math.sqrt(memory[column]))
        mean = sum(ratios) / len(ratios)
        clamped = torch.tensor([min(max(s, 0.75 * mean), mean / 0.75) for s in ratios], dtype=m.dtype)
        steps, decays = ((lr * clamped * size).clamp(max=1) / lr for size in (matched(m), 1.0))
        return newton_schulz(m) @ steps.diag(), decays

    return update


def normuon(m: Tensor, g: Tensor, t: int, memory: dict) -> tuple[Tensor, float]:
    u = newton_schulz(m)
    memory["v"] = [
        0.95 * old + 0.05 * float((row * row).mean())
        for old, row in zip(memory.get("v", [0.0] * len(u)), u, strict=True)
    ]
    n = torch.stack([row / (math.sqrt(v) + 1e-10) for row, v in zip(u, memory["v"], strict=True)])
    return matched(m) * n * u.norm() / n.norm(), 1.0


def adamuon(m: Tensor, g: Tensor, t: int, memory: dict) -> tuple[Tensor, float]:
    o = newton_schulz(m.sign())
    memory["v"] = 0.95 * memory.get("v", torch.zeros_like(o)) + 0.05 * o**2
    u = o / (memory["v"].sqrt() + 1e-8)
    return 0.2 * math.sqrt(u.numel()) * u / u.norm(), 1.0


def adago(m: Tensor, g: Tensor, t: int, memory: dict) -> tuple[Tensor, float]:
    norm = min(float(g.norm()), 10.0)
    memory["v"] = memory.get("v", 1e-12) + norm**2
    return matched(m) * max(0.01, norm / math.sqrt(memory["v"])) * newton_schulz(m), 1.0


def brake(x: Tensor) -> Tensor:
    return x / float((1.5 * x / x.norm()).cosh().square().mean().sqrt())


def auon(m: Tensor, g: Tensor, t: int, memory: dict) -> tuple[Tensor, float]:
    return brake(m), 1.0


def hybrid_auon(m: Tensor, g: Tensor, t: int, memory: dict) -> tuple[Tensor, float]:
    return matched(m) * brake(newton_schulz(m)), 1.0


def factored(u: Tensor, memory: dict) -> Tensor:
    rows, columns = u.square().mean(1), u.square().mean(0)
    memory["r"] = 0.95 * memory.get("r", 0 * rows) + 0.05 * rows
    memory["c"] = 0.95 * memory.get("c", 0 * columns) + 0.05 * columns
    n = u / (torch.outer(memory["r"], memory["c"]) / memory["r"].mean()).sqrt()
    return n * u.norm() / n.norm()


def factored_muon(m: Tensor, g: Tensor, t: int, memory: dict) -> tuple[Tensor, float]:
    return matched(m) * factored(newton_schulz(m), memory), 1.0


def factored_pion(m: Tensor, g: Tensor, t: int, memory: dict) -> tuple[Tensor, float]:
    u = newton_schulz(m, [PION[1]] * 3 + [PION[0]] * 2)
    return 0.2 * math.sqrt(u.numel() / max(1.0, float(u.square().sum()))) * factored(u, memory), 1.0


FORMULAS: dict[str, Callable[[float], Update]] = {
    "namo": namo,
    "namo_d": namo_d,
    **{
        update.__name__: (lambda lr, update=update: update)
        for update in (normuon, adamuon, adago, auon, hybrid_auon, factored_muon, factored_pion)
    },
}


@pytest.mark.parametrize("rule", FORMULAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nesterov", [False, True])
def test_five_steps_are_those_of_the_papers_loop(rule: str, shape: tuple[int, int], nesterov: bool) -> None:
    gradients = [random(*shape, seed=seed) * (1 + seed) for seed in range(5)]
    start = random(*shape, seed=9)
    found = weights_of(rule, gradients, start, lr=0.05, nesterov=nesterov, promotion_steps=3)
    expected = loop(FORMULAS[rule](0.05), gradients, start, 0.05, nesterov)
    # Keller's coefficients multiply rounding in small directions by 485; AdaMuon's eps that of entries near 0 by 1e6.
    assert float((found - expected).norm() / (expected - start).norm()) < (1e-7 if rule == "adamuon" else 1e-10)


@pytest.mark.parametrize("lr", [2.0, 30.0])
def test_namos_step_and_decay_are_capped_at_one(lr: float) -> None:
    gradients, start = [random(6, 4)], random(6, 4, seed=9)
    found = weights_of("namo", gradients, start, lr=lr)
    assert torch.allclose(found, start * (1 - WD) - min(1.0, lr * matched(start)) * newton_schulz(gradients[0]))


@pytest.mark.parametrize("lr", [2.0, 30.0])
def test_namo_ds_columns_are_capped_at_one(lr: float) -> None:
    gradients, start = [random(6, 4)], random(6, 4, seed=9)
    found = weights_of("namo_d", gradients, start, lr=lr)
    # Without Nesterov every column's ratio is 1 in the first step.
    assert torch.allclose(found, start * (1 - WD) - min(1.0, lr * matched(start)) * newton_schulz(gradients[0]))


def first_ratio(gradient: Tensor, nesterov: bool = False, **options: object) -> float:
    """Length of NAMO's first update over Muon's."""
    zero = torch.zeros_like(gradient)
    namos = weights_of("namo", [gradient], zero, lr=1e-3, nesterov=nesterov, **options)
    return float(namos.norm() / weights_of("muon", [gradient], zero, lr=1e-3, nesterov=nesterov).norm())


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0, 1e20])
def test_namos_first_step_has_the_learning_rate_and_195_hundredths_of_it_with_nesterov(scale: float) -> None:
    gradient = random(6, 4) * scale
    assert first_ratio(gradient) == pytest.approx(1.0, rel=1e-12)
    # The interpolating form gives (0.95 * 0.05 + 0.05) G, and the bias correction divides by 0.05.
    assert first_ratio(gradient, nesterov=True) == pytest.approx(1.95, rel=1e-9)


def test_the_papers_eps_is_felt_by_gradients_as_small_as_it() -> None:
    gradient = random(6, 4)
    gradient *= 1e-8 / gradient.norm()
    # The average of the squared norm is 0.01 of it in the first step, so that eps adds ten times the root.
    assert first_ratio(gradient, variance_eps=1e-8) == pytest.approx(1 / 11, rel=1e-6)


def test_namo_measures_noise() -> None:
    noise = [random(8, 6, seed=seed) for seed in range(150)]
    zero = torch.zeros(8, 6, dtype=torch.float64)

    def last_step(gradients: list[Tensor], rule: str) -> float:
        settings = {"lr": 1e-3}
        before, after = (weights_of(rule, part, zero, **settings) for part in (gradients[:-1], gradients))
        return float((after - before).norm())

    assert last_step(noise, "namo") / last_step(noise, "muon") == pytest.approx((0.05 / 1.95) ** 0.5, rel=0.2)
    assert last_step([noise[0]] * 60, "namo") / last_step([noise[0]] * 60, "muon") == pytest.approx(1.0, rel=1e-6)


def test_without_averages_namo_is_muon() -> None:
    gradients, start = [random(6, 4, seed=seed) * 3**seed for seed in range(4)], random(6, 4, seed=9)
    found, muon = (
        weights_of(name, gradients, start, lr=0.01, momentum=0.0, **options)
        for name, options in (("namo", {"variance_beta": 0.0}), ("muon", {}))
    )
    assert torch.allclose(found, muon, rtol=1e-12)


def test_namo_d_is_namo_where_columns_are_equally_long() -> None:
    even = random(6, 4) / random(6, 4).norm(dim=0)
    gradients = [even, 3 * even, even / 2]
    start = random(6, 4, seed=9)
    one, other = (weights_of(name, gradients, start, lr=1e-3) for name in ("namo", "namo_d"))
    assert torch.allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("rule", FORMULAS)
def test_a_learning_rate_of_zero_moves_nothing_and_divides_by_nothing(rule: str) -> None:
    start = random(6, 4, seed=9)
    assert torch.equal(weights_of(rule, [random(6, 4)] * 2, start, lr=0.0), start)


def steps_of(rule: str, gradients: list[Tensor], **settings: object) -> list[Tensor]:
    param = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = SpectralOptimizer([param], rule=rule, lr=1.0, **settings)  # type: ignore[arg-type]
    changes = []
    for gradient in gradients:
        before = param.detach().clone()
        param.grad = gradient.clone()
        optimizer.step()
        changes.append(param.detach() - before)
    return changes


def test_normuon_keeps_the_frobenius_norm_and_evens_the_rows_at_first() -> None:
    gradients = [random(7, 5, seed=seed) * torch.arange(1, 8)[:, None] for seed in range(3)]
    for found, muon in zip(steps_of("normuon", gradients), steps_of("muon", gradients), strict=True):
        assert float(found.norm()) == pytest.approx(float(muon.norm()), rel=1e-12)
    rows = steps_of("normuon", gradients)[0].norm(dim=1)
    assert float(rows.std() / rows.mean()) < 1e-8
    rows = steps_of("muon", gradients)[0].norm(dim=1)
    assert float(rows.std() / rows.mean()) > 0.05


def test_adamuons_root_mean_square_is_a_fifth_and_its_first_step_has_one_size() -> None:
    changes = steps_of("adamuon", [random(7, 5, seed=seed) * 1e-6 for seed in range(3)])
    for change in changes:
        assert float(change.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-12)
    assert torch.allclose(changes[0].abs(), torch.full((7, 5), 0.2, dtype=torch.float64), rtol=1e-6)


def test_adagos_steps_shrink_with_the_root_of_time_down_to_the_floor() -> None:
    gradient = random(6, 4)
    lengths = [float(change.norm()) for change in steps_of("adago", [gradient] * 9)]
    assert [length / lengths[0] for length in lengths] == pytest.approx([t**-0.5 for t in range(1, 10)], rel=1e-9)
    floored = [float(change.norm()) for change in steps_of("adago", [gradient] * 9, step_floor=0.5)]
    assert [length / lengths[0] for length in floored[5:]] == pytest.approx([0.5] * 4, rel=1e-9)
    # v_0 holds the first steps back: ||G|| / sqrt(v_0^2 + ||G||^2) is 1 / sqrt(2) at v_0 = ||G||.
    (held,) = steps_of("adago", [gradient], norm_start=float(gradient.norm()))
    assert float(held.norm()) / lengths[0] == pytest.approx(0.5**0.5, rel=1e-9)
    # Norms above gamma count as gamma: a gradient ten times larger makes the same steps.
    clipped = [float(change.norm()) for change in steps_of("adago", [gradient * s for s in (100, 1000, 10)])]
    assert clipped[2] / clipped[0] == pytest.approx(3**-0.5, rel=1e-9)


def test_auon_is_nesterovs_sgd_and_its_hybrid_muon_on_any_real_layer() -> None:
    gradient = random(64, 64)
    (change,) = steps_of("auon", [gradient], nesterov=True)
    sgd = -(0.95 * 0.05 + 0.05) * gradient
    excess = float(sgd.norm() / change.norm()) - 1
    assert excess == pytest.approx(1.5**2 / (2 * 64 * 64), rel=0.01)
    (hybrid,), (muon,) = steps_of("hybrid_auon", [gradient]), steps_of("muon", [gradient])
    assert float((hybrid - muon).norm() / muon.norm()) == pytest.approx(excess, rel=0.01)


def test_pytorch_optimizers_normuon_agrees_up_to_its_bfloat16_iterations() -> None:
    """Its errors, written down: Newton-Schulz always in bf16, an eps of 1e-7 in its norm."""
    start = random(12, 8, seed=9).float()
    theirs, ours = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    oracle = pytorch_optimizer.NorMuon(
        [{"params": [theirs], "use_muon": True}], lr=0.02, momentum=0.95, nesterov=True, weight_decay=0.0, beta2=0.95,
        update_scale="preserve_norm",
    )  # fmt: skip
    mine = SpectralOptimizer([ours], rule="normuon", lr=0.02, nesterov=True, adjust_lr="original")
    for seed in range(4):
        theirs.grad = random(12, 8, seed=seed).float()
        ours.grad = theirs.grad.clone()
        oracle.step()
        mine.step()
    assert float((ours.detach() - theirs.detach()).norm() / (ours.detach() - start).norm()) < 2e-2


def adamw_loop(gradients: list[Tensor], start: Tensor, **options: object) -> Tensor:
    param = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([param], weight_decay=WD, **options)  # type: ignore[arg-type]
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()
    return param.detach()


def test_the_adam_stage_is_torchs_adamw_where_nothing_is_clipped() -> None:
    gradients, start = [random(6, 4, seed=seed) for seed in range(6)], random(6, 4, seed=9)
    options = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-2}
    found = weights_of("spectra", gradients, start, spectral_clip=1e9, **options)
    assert torch.allclose(found, adamw_loop(gradients, start, **options), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("rule", "option", "value"),
    [
        ("namo", "variance_beta", 1.0),
        ("namo_d", "column_clamp", 1.5),
        ("normuon", "variance_beta", -0.1),
        ("adago", "norm_bound", -1.0),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(rule: str, option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=option):
        steps_of(rule, [random(4, 4)], **{option: value})
