"""Inverse square roots without a decomposition, held to the eigendecomposition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlspec.optim.roots import ITERATIONS, inverse_sqrt, inverse_sqrt_exact, root_schedule
from rlspec.optim.schedules import transfer

F32, F64 = torch.float32, torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def spectrum(values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix with these eigenvalues, and its inverse square root, both exact in float64."""
    basis = torch.linalg.qr(random(2, len(values), len(values), seed=seed)).Q
    return (basis * values) @ basis.mT, (basis * values.rsqrt()) @ basis.mT


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm(dim=(1, 2)) / expected.norm(dim=(1, 2))).max())


@pytest.mark.parametrize(("dtype", "decades"), [(F32, 1), (F32, 3), (F32, 5), (F64, 2), (F64, 8), (F64, 14)])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_root_is_the_eigendecompositions_up_to_a_few_eps_times_the_condition_number(
    dtype: torch.dtype, decades: int, size: int
) -> None:
    gram, root = spectrum(torch.logspace(0, -decades, size, dtype=F64))
    bound = 6 * torch.finfo(dtype).eps * 10.0**decades  # the floor's share is 2 of the 6, the rest rounding
    assert relative(inverse_sqrt(gram.to(dtype)).to(F64), root) < max(bound, 20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("decades", [2, 5])
def test_the_exact_root_agrees_with_the_spectrum(decades: int) -> None:
    gram, root = spectrum(torch.logspace(0, -decades, 24, dtype=F64))
    bound = 40 * torch.finfo(F64).eps * 10.0**decades
    assert relative(inverse_sqrt_exact(gram), root) < bound


def test_damping_is_added_to_the_eigenvalues_as_a_number_or_per_block() -> None:
    gram, _ = spectrum(torch.linspace(0, 2, 9, dtype=F64))
    values, vectors = torch.linalg.eigh(gram)
    damping = torch.tensor([0.5, 3.0], dtype=F64)
    expected = (vectors * (values + damping[:, None]).rsqrt()[:, None, :]) @ vectors.mT
    for given in (damping, damping[:, None, None]):
        assert relative(inverse_sqrt(gram, given), expected) < 1e-13
        assert relative(inverse_sqrt_exact(gram, given), expected) < 1e-13
    assert relative(inverse_sqrt(gram, 0.5)[:1], expected[:1]) < 1e-13


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(F32, 1e-38), (F32, 1e-30), (F32, 1e30), (F32, 1e37), (F64, 1e-300), (F64, 1e-40), (F64, 1e40), (F64, 1e300)],
)
def test_the_scale_of_the_matrix_does_not_matter(dtype: torch.dtype, scale: float) -> None:
    gram, _ = spectrum(torch.linspace(0.1, 1, 6, dtype=F64))
    for root in (inverse_sqrt, inverse_sqrt_exact):
        scaled = root((gram * scale).to(dtype), 0.2 * scale).to(F64) * scale**0.5
        assert relative(scaled, root(gram, 0.2)) < 50 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("size", "rank"), [(64, 1), (64, 40), (96, 95)])
def test_a_rank_deficient_gram_gives_the_polar_factor_of_what_is_there(
    dtype: torch.dtype, size: int, rank: int
) -> None:
    left, right = torch.linalg.qr(random(2, 150, rank)).Q, torch.linalg.qr(random(2, size, rank, seed=1)).Q
    matrix = ((left * torch.linspace(1, 0.1, rank, dtype=F64)) @ right.mT).to(dtype)
    polar = left @ right.mT
    gram = matrix.mT @ matrix
    bound = 3e-3 if dtype == F32 else 1e-6  # rounding times the largest root, 3000 and 7e7, over the norm
    assert relative((matrix @ inverse_sqrt(gram)).to(F64), polar) < bound
    assert relative((inverse_sqrt(gram).mT @ matrix.mT).to(F64), polar.mT) < bound
    assert relative((matrix @ inverse_sqrt_exact(gram)).to(F64), polar) < 1e4 * torch.finfo(dtype).eps


def test_zeros_give_zeros_beside_blocks_that_are_not() -> None:
    gram = torch.stack([torch.zeros(3, 3), 4 * torch.eye(3)])
    for root in (inverse_sqrt, inverse_sqrt_exact):
        assert torch.equal(root(gram)[0], torch.zeros(3, 3))
        assert torch.allclose(root(gram)[1], 0.5 * torch.eye(3), rtol=1e-6)
        assert torch.allclose(root(gram, 0.25)[0], 2 * torch.eye(3), rtol=1e-6)


def test_half_precision_is_computed_in_float32_and_nothing_is_mutated() -> None:
    gram = (random(1, 4, 4) @ random(1, 4, 4).mT + torch.eye(4)).to(torch.bfloat16)
    before = gram.clone()
    assert inverse_sqrt(gram).dtype == inverse_sqrt_exact(gram).dtype == F32
    assert torch.equal(inverse_sqrt(gram), inverse_sqrt(gram.float()))
    assert torch.equal(gram, before)


@pytest.mark.parametrize(("dtype", "reach"), [(F32, 1 / 4400), (F64, 1 / 3.5e8)])
def test_the_schedule_converges_from_as_far_as_it_says(dtype: torch.dtype, reach: float) -> None:
    grid = torch.logspace(0, float(torch.log10(torch.tensor(reach))), 20_000, dtype=F64)
    values = transfer(grid, root_schedule(ITERATIONS[dtype]))
    assert float((values - 1).abs().max()) < 1e-2
    assert float((values[grid > 4 * reach] - 1).abs().max()) < 2e-7
