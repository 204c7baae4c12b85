"""Pion's gate: its transfer function, its published table, its symmetries, and the automatic choice of k_p."""

from __future__ import annotations

import math

import pytest
import torch

from rlspec.errors import ConfigError
from rlspec.optim.composition import Stage, Step
from rlspec.optim.kernels.normalisers import NORMALISERS, frobenius
from rlspec.optim.kernels.schedules import LOW_PASS, PROMOTION, SCHEDULES, SUPPRESSION, high_pass_schedule, transfer
from rlspec.optim.stages.filters import (
    auto_promotion_steps,
    gate_threshold,
    high_pass,
    low_pass,
    low_rank,
    normalise,
    polar,
)

SHAPES = [(8, 20), (20, 8), (13, 13), (1, 6)]


def run(stage: Stage, blocks: torch.Tensor, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """What a stage makes of blocks, and the energy that it measured."""
    settings = {"ns_steps": 5} | settings
    step = Step(settings, lr=1.0, length=1.0, count=1, compute_dtype=blocks.dtype)
    filtered = stage(blocks, step)
    return filtered, step.energy


def pion(blocks: torch.Tensor, promotion_steps: float | str, ns_steps: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return run(high_pass, blocks, promotion_steps=promotion_steps, ns_steps=ns_steps)


def random_blocks(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(random_blocks(size, size, seed=seed))[0]


def f_p(x: torch.Tensor) -> torch.Tensor:
    return (15 * x - 10 * x**3 + 3 * x**5) / 8


def f_s(x: torch.Tensor) -> torch.Tensor:
    return (5 * x**3 - 3 * x**5) / 2


def by_svd(matrix: torch.Tensor, promotion_steps: int) -> torch.Tensor:
    """The high-pass filter written down from the paper's two polynomials, on exact singular values."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    x = s / torch.linalg.vector_norm(s)
    for step in range(5):
        x = f_p(x) if step < promotion_steps else f_s(x)
    return u @ torch.diag(x) @ vh


@pytest.mark.parametrize("promotion_steps", range(6))
@pytest.mark.parametrize("shape", SHAPES)
def test_pion_equals_its_svd_transfer_function(promotion_steps: int, shape: tuple[int, int]) -> None:
    # A decaying spectrum, so that some directions pass and some do not.
    matrix = random_blocks(*shape) * 0.5 ** torch.arange(shape[1])
    filtered, energy = pion(frobenius(matrix[None], torch.float64), promotion_steps)
    expected = by_svd(matrix, promotion_steps)
    assert (filtered[0] - expected).abs().max() < 1e-14
    assert energy.item() == pytest.approx(expected.square().sum().item(), abs=1e-13)


@pytest.mark.parametrize("promotion_steps", range(6))
def test_pion_equals_an_independent_implementation(promotion_steps: int) -> None:
    matrix_functions = pytest.importorskip("pytorch_optimizer.optimizer.utils.matrix")
    matrix = random_blocks(24, 60)
    weights = [PROMOTION] * promotion_steps + [SUPPRESSION] * (5 - promotion_steps)
    theirs = matrix_functions.zero_power_via_newton_schulz_5(matrix, num_steps=5, weights=weights, dtype=torch.float64)
    ours, _ = pion(frobenius(matrix[None], torch.float64), promotion_steps)
    assert (ours[0] - theirs).abs().max() < 1e-14


@pytest.mark.parametrize(
    ("promotion_steps", "tolerance"), [(0, 1e-3), (1, 7e-3), (2, 7e-3), (3, 7e-3), (4, 7e-3), (5, 4e-2)]
)
def test_bf16_stays_near_the_exact_filter(promotion_steps: int, tolerance: float) -> None:
    matrix = random_blocks(32, 128) * 0.7 ** torch.arange(128)
    filtered, _ = pion(frobenius(matrix[None], torch.bfloat16), promotion_steps)
    assert (filtered[0].double() - by_svd(matrix, promotion_steps)).abs().max() < tolerance


# Output of a partial isometry of rank r; the published gate table.
@pytest.mark.parametrize(
    ("promotion_steps", "rank", "expected"),
    [
        (0, 1, 1.0),
        (0, 2, 2.59e-5),
        (0, 3, 1.6e-19),
        (1, 3, 0.992),
        (1, 4, 0.591),
        (1, 8, 1.1e-5),
        (2, 8, 0.991),
        (2, 11, 0.855),
        (2, 12, 0.761),
        (2, 16, 0.349),
        (2, 32, 0.0037),
        (3, 16, 0.999),
        (3, 32, 0.913),
        (3, 64, 0.430),
        (3, 128, 0.075),
        (4, 64, 0.980),
        (4, 128, 0.836),
        (5, 128, 0.989),
    ],
)
def test_the_gate_on_equal_directions(promotion_steps: int, rank: int, expected: float) -> None:
    isometry = orthogonal(130, 1)[:, :rank] @ orthogonal(140, 2)[:rank, :]
    filtered, energy = pion(frobenius(isometry[None], torch.float64), promotion_steps)
    assert torch.linalg.svdvals(filtered[0])[0].item() == pytest.approx(expected, rel=5e-3 if expected > 0.1 else 0.05)
    assert energy.item() == pytest.approx(rank * expected**2, rel=1e-2 if expected > 0.1 else 0.1)


def test_noise_passes_nothing_when_the_gate_is_narrow() -> None:
    filtered, energy = pion(frobenius(random_blocks(1, 128, 1024), torch.float64), 0)
    assert filtered.abs().max() < 1e-20
    assert energy.item() < 1e-20


LOW_PASS_ERROR = 0.08  # of the fit

FILTERS = {
    "pion 0": lambda blocks: pion(blocks, 0)[0],
    "pion 1.5": lambda blocks: pion(blocks, 1.5)[0],
    "pion auto": lambda blocks: pion(blocks, "auto")[0],
    "polar": lambda blocks: run(polar, blocks)[0],
    "low_pass": lambda blocks: run(low_pass, blocks)[0],
    "low_rank": lambda blocks: run(low_rank, blocks, rank=3)[0],
}
every_filter = pytest.mark.parametrize("apply", FILTERS.values(), ids=FILTERS)


@every_filter
@pytest.mark.parametrize("shape", SHAPES)
def test_filters_commute_with_rotations_on_both_sides(apply, shape: tuple[int, int]) -> None:
    matrix, q, p = (
        random_blocks(*shape) * 0.5 ** torch.arange(shape[1]),
        orthogonal(shape[0], 3),
        orthogonal(shape[1], 4),
    )
    direct = apply(frobenius((q @ matrix @ p)[None], torch.float64))[0]
    assert (direct - q @ apply(frobenius(matrix[None], torch.float64))[0] @ p).abs().max() < 1e-12


@every_filter
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4])
def test_filters_are_odd_and_blind_to_scale(apply, scale: float) -> None:
    matrix = random_blocks(2, 9, 14) * 0.6 ** torch.arange(14)
    base = apply(frobenius(matrix, torch.float64))
    assert torch.allclose(apply(frobenius(scale * matrix, torch.float64)), base, rtol=1e-12, atol=1e-13)
    assert torch.allclose(apply(frobenius(-matrix, torch.float64)), -base, rtol=0, atol=1e-14)


@pytest.mark.parametrize("promotion_steps", [0, 2, 5])
def test_descent_no_filtered_gradient_points_uphill(promotion_steps: int) -> None:
    gradient = random_blocks(4, 10, 16)
    filtered, _ = pion(frobenius(gradient, torch.float64), promotion_steps)
    assert ((gradient * filtered).sum((1, 2)) >= 0).all()


@pytest.mark.parametrize("name", ["polar", "low_rank", "pion 1.5", "pion auto"])
def test_descent_holds_for_every_filter_that_is_not_negative(name: str) -> None:
    gradient = random_blocks(20, 6, 9)
    filtered = FILTERS[name](frobenius(gradient, torch.float64))
    assert ((gradient * filtered).sum((1, 2)) > 0).all()


def test_a_converged_polar_factor_against_the_gradient_is_the_nuclear_norm() -> None:
    gradient = random_blocks(3, 10, 16)
    filtered, energy = run(polar, frobenius(gradient, torch.float64), schedule="quintic", ns_steps=25)
    nuclear = torch.linalg.svdvals(gradient).sum(1)
    assert torch.allclose((gradient * filtered).sum((1, 2)), nuclear, rtol=1e-12)
    assert torch.allclose(energy, torch.full((3,), 10.0, dtype=torch.float64))


def test_one_row_passes_every_gate_as_a_unit_vector() -> None:
    row = random_blocks(1, 1, 50)
    for promotion_steps in (0, 5, "auto"):
        filtered, energy = pion(frobenius(row, torch.float64), promotion_steps)
        assert torch.allclose(filtered, row / row.norm(), atol=1e-13)
        assert energy.item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("promotion_steps", "threshold"), [(0, 0.8165), (1, 0.5230), (2, 0.2957), (3, 0.1605), (4, 0.0860)]
)
def test_published_thresholds(promotion_steps: int, threshold: float) -> None:
    assert gate_threshold(promotion_steps) == pytest.approx(threshold, abs=6e-5)


@pytest.mark.parametrize(
    ("rank", "expected"), [(1, 0), (2, 1), (3, 1), (4, 2), (11, 2), (12, 3), (38, 3), (39, 4), (64, 4)]
)
def test_auto_takes_the_narrowest_gate_that_passes_the_top_direction(rank: int, expected: int) -> None:
    isometry = orthogonal(70, 1)[:, :rank] @ orthogonal(90, 2)[:rank, :]
    assert auto_promotion_steps(frobenius(isometry[None], torch.float64)).item() == expected


def test_auto_decides_block_by_block_and_matches_the_fixed_filters() -> None:
    ranks = (1, 3, 8, 20)
    blocks = torch.stack([orthogonal(40, 1)[:, :rank] @ orthogonal(60, 2)[:rank, :] for rank in ranks])
    blocks = frobenius(blocks + 1e-3 * random_blocks(4, 40, 60), torch.float64)
    together, energy = pion(blocks, "auto")
    for block, filtered, promotion_steps in zip(blocks, together, (0, 1, 2, 3), strict=True):
        assert torch.allclose(filtered, pion(block[None], promotion_steps)[0][0], atol=1e-13)
    assert (energy > 0.5).all()


def test_auto_leaves_zero_blocks_zero() -> None:
    filtered, energy = pion(torch.zeros(2, 4, 5), "auto")
    assert not filtered.any()
    assert energy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("wrong", [-1, 6, 5.5, "auot", True, math.nan])
def test_a_wrong_k_p_is_refused(wrong) -> None:
    with pytest.raises(ConfigError, match="promotion_steps"):
        high_pass.check(promotion_steps=wrong, ns_steps=5)


def test_more_iterations_extend_the_schedule() -> None:
    assert high_pass_schedule(2, 7) == (PROMOTION,) * 2 + (SUPPRESSION,) * 5


@pytest.mark.parametrize("right", [0, 5, 2.5, "auto"])
def test_a_right_k_p_is_not(right) -> None:
    high_pass.check(promotion_steps=right, ns_steps=5)


def test_an_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean polar_express"):
        polar.check(schedule="polar_expres", ns_steps=5)


def test_fractions_of_k_p_open_the_gate_continuously_and_monotonically() -> None:
    x = torch.linspace(0, 1, 501, dtype=torch.float64)
    last = torch.zeros_like(x)
    for k_p in torch.arange(0, 5.01, 0.05).tolist():
        passed = transfer(x, high_pass_schedule(round(k_p, 2)))
        assert (passed - last).min() > -1e-12  # monotone in k_p
        assert passed.diff().min() > -1e-12  # and in the singular value
        last = passed
    for whole in range(5):
        near = transfer(x, high_pass_schedule(whole + 1 - 1e-9))
        assert torch.allclose(near, transfer(x, high_pass_schedule(whole + 1)), atol=1e-5)
        near = transfer(x, high_pass_schedule(whole + 1e-9))
        assert torch.allclose(near, transfer(x, high_pass_schedule(whole)), atol=1e-5)


@pytest.mark.parametrize(("fraction", "threshold"), [(0.25, 0.7746), (0.5, 0.7071), (0.8, 0.5345), (0.9, 0.4082)])
def test_the_interpolating_steps_repelling_point(fraction: float, threshold: float) -> None:
    """Iterated, p_a separates at sqrt((1 - a) / (3/2 - a)); a is 15/8 of k_p's fraction."""
    a = PROMOTION[0] * (fraction / PROMOTION[0])
    between = high_pass_schedule(fraction / PROMOTION[0], 1)
    assert between == ((pytest.approx(a), pytest.approx(2.5 - 2 * a), pytest.approx(a - 1.5)),)
    x = torch.tensor([threshold - 2e-3, threshold + 2e-3], dtype=torch.float64)
    assert transfer(x, between * 200).round(decimals=3).tolist() == [0.0, 1.0]


def test_a_fractional_k_p_equals_its_svd_transfer_function() -> None:
    matrix = random_blocks(9, 30) * 0.6 ** torch.arange(30)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    x = f_p(f_p(s / s.norm()))
    x = 0.9375 * x + (2.5 - 1.875) * x**3 + (0.9375 - 1.5) * x**5
    filtered, energy = pion(frobenius(matrix[None], torch.float64), 2.5)
    assert (filtered[0] - u @ torch.diag(f_s(f_s(x))) @ vh).abs().max() < 1e-12
    assert energy.item() == pytest.approx(f_s(f_s(x)).square().sum().item(), abs=1e-12)


def test_thresholds_of_fractions_lie_between_those_of_whole_numbers() -> None:
    thresholds = [gate_threshold(k_p) for k_p in (0, 0.3, 0.6, 1, 1.5, 2, 3.5, 4)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) == len(thresholds)


@pytest.mark.parametrize("ns_steps", [1, 3, 8])
def test_any_number_of_iterations_works(ns_steps: int) -> None:
    blocks = frobenius(random_blocks(2, 6, 16) * 0.4 ** torch.arange(16), torch.float64)
    u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
    for k_p in (0, 0.5, ns_steps):
        expected = u @ torch.diag_embed(transfer(s, high_pass_schedule(k_p, ns_steps))) @ vh
        assert (pion(blocks, k_p, ns_steps)[0] - expected).abs().max() < 1e-12
    assert pion(blocks, "auto", ns_steps)[0].isfinite().all()
    for schedule in SCHEDULES:
        assert run(polar, blocks, schedule=schedule, ns_steps=ns_steps)[0].isfinite().all()


def test_the_spectral_normaliser_always_lets_the_top_direction_pass() -> None:
    blocks = random_blocks(3, 40, 90)  # noise: Frobenius normalisation shuts the gate
    step = Step({"normalise": "spectral"}, 1.0, 1.0, 1, torch.float64)
    assert pion(frobenius(blocks, torch.float64), 0)[1].max() < 1e-10
    passed = pion(normalise(blocks, step), 0)[1]
    assert (passed > 0.9).all()
    assert step.normalised is not None


def test_low_pass_passes_what_high_pass_stops() -> None:
    passing, stopped = torch.linspace(0.05, 0.45, 100), torch.linspace(0.55, 1.0, 100)
    assert len(LOW_PASS) == 5
    assert (transfer(passing.double(), LOW_PASS) - 1).abs().max() < LOW_PASS_ERROR
    assert transfer(stopped.double(), LOW_PASS).abs().max() < LOW_PASS_ERROR
    blocks = frobenius(random_blocks(2, 12, 12) * 0.5 ** torch.arange(12), torch.float64)
    u, s, vh = torch.linalg.svd(blocks)
    filtered, energy = run(low_pass, blocks)
    expected = transfer(s, LOW_PASS)
    assert (filtered - u @ torch.diag_embed(expected) @ vh).abs().max() < 1e-12
    assert torch.allclose(energy, expected.square().sum(1))


@pytest.mark.parametrize("rank", [1, 4, 500])
def test_low_rank_is_the_polar_factor_of_the_top_directions(rank: int) -> None:
    blocks = frobenius(random_blocks(3, 10, 7), torch.float64)
    u, _, vh = torch.linalg.svd(blocks, full_matrices=False)
    filtered, energy = run(low_rank, blocks, rank=rank)
    assert (filtered - u[:, :, :rank] @ vh[:, :rank]).abs().max() < 1e-12
    assert energy.tolist() == [min(rank, 7)] * 3


def test_low_rank_leaves_out_directions_that_are_only_rounding() -> None:
    block = (orthogonal(12, 1)[:, :2] @ orthogonal(9, 2)[:2]).float()
    filtered, energy = run(low_rank, torch.stack([block, torch.zeros_like(block)]), rank=5)
    assert torch.allclose(filtered[0], block, atol=1e-5)
    assert energy.tolist() == [2, 0]
    assert not filtered[1].any()


@pytest.mark.parametrize("wrong", [0, -3, 2.0, True])
def test_a_wrong_rank_is_refused(wrong) -> None:
    with pytest.raises(ConfigError, match="rank"):
        low_rank.check(rank=wrong)


@every_filter
@pytest.mark.parametrize("normaliser", [name for name in NORMALISERS if name != "none"])
def test_zero_blocks_stay_zero_beside_others(apply, normaliser: str) -> None:
    blocks = random_blocks(2, 5, 9)
    blocks[0] = 0
    filtered = apply(NORMALISERS[normaliser](blocks, torch.float64))
    assert not filtered[0].any()
    assert filtered[1].isfinite().all()
