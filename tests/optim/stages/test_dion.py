"""Dion against a plain float64 loop, and its limit of full rank; the rest is the battery's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer


def plain_loop(gradients: list[torch.Tensor], basis: torch.Tensor, momentum: float) -> torch.Tensor:
    weight, buffer = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    for gradient in gradients:
        buffer = buffer + gradient
        left = torch.linalg.qr(buffer @ basis).Q
        right = buffer.T @ left
        buffer = buffer - (1 - momentum) * left @ right.T
        basis = right / right.norm(dim=0)
        weight = weight - left @ basis.T
    return weight


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_it_is_the_papers_loop(shape: tuple[int, int], fraction: float) -> None:
    gradients = [torch.randn(shape, dtype=torch.float64) for _ in range(5)]
    rank = round(12 * fraction)
    start = torch.randn((shape[1], rank), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    param = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = SpectralOptimizer([param], rule="dion", lr=1.0, adjust_lr="none", dion_rank=fraction, momentum=0.9)
    for gradient in gradients:
        param.grad = gradient
        optimizer.step()
    assert torch.allclose(param.detach(), plain_loop(gradients, start, 0.9), atol=1e-10)


def test_on_one_matrix_again_and_again_it_tends_to_the_polar_factor() -> None:
    gradient = torch.randn(8, 14, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    param = nn.Parameter(torch.zeros(8, 14, dtype=torch.float64))
    optimizer = SpectralOptimizer([param], rule="dion", lr=1.0, adjust_lr="none", dion_rank=1.0, momentum=0.0)
    for _ in range(400):
        param.grad, before = gradient, param.detach().clone()
        optimizer.step()
    assert torch.allclose(before - param.detach(), u @ vh, atol=1e-3)


def test_an_impossible_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="dion_rank=0"):
        SpectralOptimizer([nn.Parameter(torch.ones(4, 4))], rule="dion", dion_rank=0)
