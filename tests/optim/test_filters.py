"""Pion's gate: its transfer function, its published table, its symmetries, and the automatic choice of k_p."""

from __future__ import annotations

import pytest
import torch

from rlspec.errors import ConfigError
from rlspec.optim.filters import auto_promotion_steps, gate_threshold, high_pass, identity, polar
from rlspec.optim.newton_schulz import PROMOTION, SUPPRESSION, frobenius, high_pass_schedule, keller

SHAPES = [(8, 20), (20, 8), (13, 13), (1, 6)]


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
def test_pion_equals_its_svd_transfer_function_to_1e_12(promotion_steps: int, shape: tuple[int, int]) -> None:
    # A decaying spectrum, so that some directions pass and some do not.
    matrix = random_blocks(*shape) * 0.5 ** torch.arange(shape[1])
    filtered, energy = high_pass(promotion_steps)(frobenius(matrix[None], torch.float64))
    expected = by_svd(matrix, promotion_steps)
    assert (filtered[0] - expected).abs().max() < 1e-12
    assert energy.item() == pytest.approx(expected.square().sum().item(), abs=1e-12)


@pytest.mark.parametrize("promotion_steps", range(6))
def test_pion_equals_an_independent_implementation(promotion_steps: int) -> None:
    matrix_functions = pytest.importorskip("pytorch_optimizer.optimizer.utils.matrix")
    matrix = random_blocks(24, 60)
    weights = [PROMOTION] * promotion_steps + [SUPPRESSION] * (5 - promotion_steps)
    theirs = matrix_functions.zero_power_via_newton_schulz_5(matrix, num_steps=5, weights=weights, dtype=torch.float64)
    ours, _ = high_pass(promotion_steps)(frobenius(matrix[None], torch.float64))
    assert (ours[0] - theirs).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("promotion_steps", "tolerance"), [(0, 5e-3), (1, 5e-3), (2, 5e-3), (3, 5e-3), (4, 5e-3), (5, 4e-2)]
)
def test_bf16_stays_near_the_exact_filter(promotion_steps: int, tolerance: float) -> None:
    matrix = random_blocks(32, 128) * 0.7 ** torch.arange(128)
    filtered, _ = high_pass(promotion_steps)(frobenius(matrix[None], torch.bfloat16))
    assert (filtered[0].double() - by_svd(matrix, promotion_steps)).abs().max() < tolerance


# Output of a partial isometry of rank r; the published gate table.
@pytest.mark.parametrize(
    ("promotion_steps", "rank", "expected"),
    [
        (0, 1, 1.0),
        (0, 2, 2.59e-5),
        (1, 3, 0.992),
        (1, 4, 0.591),
        (2, 11, 0.855),
        (2, 16, 0.349),
        (3, 32, 0.913),
        (4, 64, 0.980),
    ],
)
def test_the_gate_on_equal_directions(promotion_steps: int, rank: int, expected: float) -> None:
    isometry = orthogonal(70, 1)[:, :rank] @ orthogonal(90, 2)[:rank, :]
    filtered, energy = high_pass(promotion_steps)(frobenius(isometry[None], torch.float64))
    assert torch.linalg.svdvals(filtered[0])[0].item() == pytest.approx(expected, rel=5e-3)
    assert energy.item() == pytest.approx(rank * expected**2, rel=1e-2)


def test_noise_passes_nothing_when_the_gate_is_narrow() -> None:
    filtered, energy = high_pass(0)(frobenius(random_blocks(1, 128, 1024), torch.float64))
    assert filtered.abs().max() < 1e-20
    assert energy.item() < 1e-20


@pytest.mark.parametrize("make", [lambda: high_pass(0), lambda: high_pass(2), lambda: polar(keller()), identity])
@pytest.mark.parametrize("shape", SHAPES)
def test_filters_commute_with_rotations_on_both_sides(make, shape: tuple[int, int]) -> None:
    matrix, q, p = (
        random_blocks(*shape) * 0.5 ** torch.arange(shape[1]),
        orthogonal(shape[0], 3),
        orthogonal(shape[1], 4),
    )
    direct = make()(frobenius((q @ matrix @ p)[None], torch.float64))[0][0]
    assert (direct - q @ make()(frobenius(matrix[None], torch.float64))[0][0] @ p).abs().max() < 1e-13


@pytest.mark.parametrize("make", [lambda: high_pass(1), lambda: high_pass("auto"), lambda: polar(keller())])
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4])
def test_filters_are_odd_and_blind_to_scale(make, scale: float) -> None:
    matrix = random_blocks(2, 9, 14) * 0.6 ** torch.arange(14)
    base = make()(frobenius(matrix, torch.float64))[0]
    assert torch.allclose(make()(frobenius(scale * matrix, torch.float64))[0], base, rtol=1e-12, atol=1e-14)
    assert torch.equal(make()(frobenius(-matrix, torch.float64))[0], -base)


@pytest.mark.parametrize("promotion_steps", [0, 2, 5])
def test_descent_no_filtered_gradient_points_uphill(promotion_steps: int) -> None:
    gradient = random_blocks(4, 10, 16)
    filtered, _ = high_pass(promotion_steps)(frobenius(gradient, torch.float64))
    assert ((gradient * filtered).sum((1, 2)) >= 0).all()


def test_a_converged_polar_factor_against_the_gradient_is_the_nuclear_norm() -> None:
    gradient = random_blocks(3, 10, 16)
    filtered, energy = polar((PROMOTION,) * 25)(frobenius(gradient, torch.float64))
    nuclear = torch.linalg.svdvals(gradient).sum(1)
    assert torch.allclose((gradient * filtered).sum((1, 2)), nuclear, rtol=1e-12)
    assert torch.allclose(energy, torch.full((3,), 10.0, dtype=torch.float64))


def test_one_row_passes_every_gate_as_a_unit_vector() -> None:
    row = random_blocks(1, 1, 50)
    for promotion_steps in (0, 5, "auto"):
        filtered, energy = high_pass(promotion_steps)(frobenius(row, torch.float64))
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
    together, energy = high_pass("auto")(blocks)
    for block, filtered, promotion_steps in zip(blocks, together, (0, 1, 2, 3), strict=True):
        assert torch.allclose(filtered, high_pass(promotion_steps)(block[None])[0][0], atol=1e-13)
    assert (energy > 0.5).all()


def test_auto_leaves_zero_blocks_zero() -> None:
    filtered, energy = high_pass("auto")(torch.zeros(2, 4, 5))
    assert not filtered.any()
    assert energy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("wrong", [-1, 6, 2.5, "auot", True])
def test_a_wrong_k_p_is_refused(wrong) -> None:
    with pytest.raises(ConfigError, match="promotion_steps"):
        high_pass(wrong)


def test_more_iterations_extend_the_schedule() -> None:
    assert high_pass_schedule(2, 7) == (PROMOTION,) * 2 + (SUPPRESSION,) * 5
