"""The largest singular value for telemetry, against float64 SVD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlspec.optim.kernels import krylov
from rlspec.optim.kernels.krylov import top_singular, top_stable_rank

SPECTRA = {
    "flat": lambda n: torch.ones(n),
    "crowded": lambda n: torch.linspace(1, 0.5, n),
    "power law": lambda n: torch.arange(1, n + 1) ** -0.5,
    "three directions": lambda n: (torch.arange(n) < 3).float() + 1e-3,
}


def blocks_of(spectrum: str, rows: int, cols: int) -> Tensor:
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(2, rows, cols, dtype=torch.float64), full_matrices=False)
    if spectrum != "random":
        values = SPECTRA[spectrum](values.shape[-1]).to(values).expand_as(values)
    return left * values[:, None, :] @ right


@pytest.fixture(autouse=True)
def without_gram_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(krylov, "largest_of_unit", None)


@pytest.mark.parametrize("spectrum", [*SPECTRA, "random"])
@pytest.mark.parametrize("shape", [(256, 256), (256, 512), (512, 256), (320, 257)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_it_is_never_too_large_and_hardly_too_small(spectrum: str, shape: tuple[int, int], scale: float) -> None:
    blocks = blocks_of(spectrum, *shape) * scale
    true = torch.linalg.matrix_norm(blocks, 2)
    share = top_singular(blocks.float()) / true
    assert share.max() < 1 + 1e-5 and share.min() > 0.96
    ranks = blocks.square().sum((1, 2)) / true**2
    assert torch.allclose(top_stable_rank(blocks.float()).double(), ranks, rtol=0.08)


def test_the_largest_error_is_that_of_large_square_matrices() -> None:
    blocks = torch.randn(1, 1536, 1536, generator=torch.Generator().manual_seed(0))
    assert 0.94 < float(top_singular(blocks) / torch.linalg.matrix_norm(blocks, 2)) < 0.99


def test_zeros_and_low_rank_give_their_own_norm_and_no_number_is_contagious() -> None:
    vectors = torch.randn(2, 300)
    blocks = torch.stack([torch.zeros(300, 300), torch.outer(*vectors), torch.full((300, 300), torch.nan)])
    blocks[2, 1:] = 1.0
    found, ranks = top_singular(blocks), top_stable_rank(blocks)
    assert found[:2].tolist() == [0.0, pytest.approx(float(vectors.norm(dim=1).prod()), rel=1e-5)]
    assert ranks[:2].tolist() == [0.0, pytest.approx(1.0, rel=1e-5)]
    assert found[2].isnan() and ranks[2].isnan()


def test_looking_draws_no_random_number() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    top_singular(torch.ones(1, 256, 256))
    assert torch.rand(1) == expected
