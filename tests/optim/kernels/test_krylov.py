"""The largest singular value for telemetry, against float64 SVD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlspec.optim.kernels.krylov import top_singular

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


@pytest.mark.parametrize("spectrum", [*SPECTRA, "random"])
@pytest.mark.parametrize("shape", [(64, 64), (128, 512), (512, 128), (576, 192)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_it_is_never_too_large_and_at_most_4_percent_too_small(
    spectrum: str, shape: tuple[int, int], scale: float
) -> None:
    blocks = blocks_of(spectrum, *shape) * scale
    share = top_singular(blocks.float()) / torch.linalg.matrix_norm(blocks, 2)
    assert share.max() < 1 + 1e-5 and share.min() > 0.96


def test_zeros_and_low_rank_give_their_own_norm() -> None:
    vectors = torch.randn(2, 100)
    blocks = torch.stack([torch.zeros(100, 100), torch.outer(*vectors)])
    assert top_singular(blocks).tolist() == [0.0, pytest.approx(float(vectors.norm(dim=1).prod()), rel=1e-5)]


def test_looking_draws_no_random_number() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    top_singular(torch.ones(1, 80, 80))
    assert torch.rand(1) == expected
