"""Inverse square roots by products and by eigenvalues, held to spectra that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlspec.optim.kernels import roots
from rlspec.optim.kernels.roots import ITERATIONS, inverse_sqrt, root_schedule
from rlspec.optim.kernels.schedules import transfer

F32, F64 = torch.float32, torch.float64


@pytest.fixture(params=["products", "eigenvalues"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(roots, "DECOMPOSED_ON_CPU", 1 if request.param == "eigenvalues" else 1 << 30)
    return request.param


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


def test_damping_is_added_to_the_eigenvalues_as_a_number_or_per_block() -> None:
    gram, _ = spectrum(torch.linspace(0, 2, 9, dtype=F64))
    values, vectors = torch.linalg.eigh(gram)
    damping = torch.tensor([0.5, 3.0], dtype=F64)
    expected = (vectors * (values + damping[:, None]).rsqrt()[:, None, :]) @ vectors.mT
    for given in (damping, damping[:, None, None]):
        assert relative(inverse_sqrt(gram, given), expected) < 1e-13
    assert relative(inverse_sqrt(gram, 0.5)[:1], expected[:1]) < 1e-13


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(F32, 1e-38), (F32, 1e-30), (F32, 1e30), (F32, 1e37), (F64, 1e-300), (F64, 1e-40), (F64, 1e40), (F64, 1e300)],
)
def test_the_scale_of_the_matrix_does_not_matter(dtype: torch.dtype, scale: float) -> None:
    gram, _ = spectrum(torch.linspace(0.1, 1, 6, dtype=F64))
    scaled = inverse_sqrt((gram * scale).to(dtype), 0.2 * scale).to(F64) * scale**0.5
    assert relative(scaled, inverse_sqrt(gram, 0.2)) < 50 * torch.finfo(dtype).eps


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


def test_zeros_give_zeros_beside_blocks_that_are_not() -> None:
    gram = torch.stack([torch.zeros(3, 3), 4 * torch.eye(3)])
    assert torch.equal(inverse_sqrt(gram)[0], torch.zeros(3, 3))
    assert torch.allclose(inverse_sqrt(gram)[1], 0.5 * torch.eye(3), rtol=1e-6)
    assert torch.allclose(inverse_sqrt(gram, 0.25)[0], 2 * torch.eye(3), rtol=1e-6)


def test_half_precision_is_computed_in_float32_and_nothing_is_mutated() -> None:
    gram = (random(1, 4, 4) @ random(1, 4, 4).mT + torch.eye(4)).to(torch.bfloat16)
    before = gram.clone()
    assert inverse_sqrt(gram).dtype == F32
    assert torch.equal(inverse_sqrt(gram), inverse_sqrt(gram.float()))
    assert torch.equal(gram, before)


@pytest.mark.parametrize(("dtype", "reach"), [(F32, 1 / 4400), (F64, 1 / 3.5e8)])
def test_the_schedule_converges_from_as_far_as_it_says(dtype: torch.dtype, reach: float) -> None:
    grid = torch.logspace(0, float(torch.log10(torch.tensor(reach))), 20_000, dtype=F64)
    values = transfer(grid, root_schedule(ITERATIONS[dtype]))
    assert float((values - 1).abs().max()) < 1e-2
    assert float((values[grid > 4 * reach] - 1).abs().max()) < 2e-7


def test_nan_passes_through_where_a_decomposition_would_refuse_it() -> None:
    gram = torch.stack([torch.eye(3), torch.full((3, 3), torch.nan)])
    root = inverse_sqrt(gram)
    assert torch.allclose(root[0], torch.eye(3), atol=1e-5)
    assert root[1].isnan().all()


def test_the_cpu_decomposes_large_matrices_and_iterates_on_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    decomposed: list[int] = []
    eigenvalues = roots._from_eigenvalues
    monkeypatch.setattr(
        roots,
        "_from_eigenvalues",
        lambda matrix, shift: decomposed.append(len(matrix[0])) or eigenvalues(matrix, shift),
    )
    for size in (63, 64):
        inverse_sqrt(torch.eye(size)[None])
    inverse_sqrt(torch.eye(64)[None], iterations=5)
    assert decomposed == [64]


def cut_to_tf32(matrix: Tensor) -> Tensor:
    """Float32 rounded to the 10 bits that a product of TF32 sees of its factors."""
    bits = (matrix.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF
    return bits.view(F32)


@pytest.mark.parametrize("rank", [3, 24])
def test_tf32_products_have_a_floor_of_their_own(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "DECOMPOSED_ON_CPU", 1 << 30)
    left, right = torch.linalg.qr(random(1, 40, rank)).Q, torch.linalg.qr(random(1, 24, rank, seed=1)).Q
    matrix = ((left * torch.linspace(1, 0.3, rank, dtype=F64)) @ right.mT).float()
    gram = cut_to_tf32(matrix).mT @ cut_to_tf32(matrix)
    bmm, baddbmm = torch.bmm, torch.baddbmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: bmm(cut_to_tf32(a), cut_to_tf32(b)))
    monkeypatch.setattr(torch, "baddbmm", lambda c, a, b, **k: baddbmm(c, cut_to_tf32(a), cut_to_tf32(b), **k))
    blind = (matrix @ inverse_sqrt(gram)).double()
    monkeypatch.setattr(roots, "product_dtype", lambda blocks: torch.float16)
    aware = (matrix @ inverse_sqrt(gram)).double()
    assert relative(aware, left @ right.mT) < 0.05
    assert rank == 24 or not relative(blind, left @ right.mT) < 1
