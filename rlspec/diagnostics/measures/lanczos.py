"""Spectra of symmetric operators that are known by their products alone: stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ritz:
    """Ritz values (k,), ascending, and their weights (k,), which sum to 1."""

    values: Tensor
    weights: Tensor


def lanczos(product: Product, start: Tensor, steps: int) -> Ritz:
    """Lanczos with full reorthogonalisation.

    Args:
        product: of the operator with a vector (n,), symmetric.
        start: (n,), not zero; its dtype is that of the basis, of which `steps` vectors are kept.
        steps: at most; fewer where the Krylov space ends.
    """
    vector = start / start.norm()
    basis: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    scale = 0.0
    for _ in range(steps):
        basis.append(vector)
        image = product(vector)
        diagonal.append(float(image.double() @ vector.double()))
        scale = max(scale, float(image.norm()))
        for _ in range(2):  # twice is enough
            for known in basis:
                image = image - (known @ image) * known
        length = float(image.norm())
        if length <= 1e-6 * scale or len(basis) == steps:
            break
        beside.append(length)
        vector = image / length
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    matrix += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return Ritz(values, vectors[0].square())


def probe(size: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """A Rademacher vector (size,)."""
    signs = torch.randint(0, 2, (size,), generator=generator, device=generator.device)
    return (2 * signs - 1).to(dtype=like.dtype, device=like.device)


def trace(found: Sequence[Ritz], size: int) -> tuple[float, float]:
    """Hutchinson's estimate from Rademacher probes, and its standard error (NaN of a single probe)."""
    values = torch.stack([size * (each.values * each.weights).sum() for each in found])
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return float(values.mean()), error


def pooled(found: Sequence[Ritz]) -> Ritz:
    """All probes as one distribution."""
    values = torch.cat([each.values for each in found])
    weights = torch.cat([each.weights for each in found]) / len(found)
    order = values.argsort()
    return Ritz(values[order], weights[order])


def bulk_edges(found: Ritz, *, width: float = 5.0) -> tuple[float, float]:
    """Where the bulk of the density ends: weighted median -+ `width` weighted median absolute deviations."""
    centre = _weighted_median(found.values, found.weights)
    spread = width * _weighted_median((found.values - centre).abs(), found.weights)
    return centre - spread, centre + spread


def density(found: Ritz, points: Tensor, sigma: float) -> Tensor:
    """The density smoothed by Gaussians of standard deviation `sigma` at points (m,)."""
    gap = (points[:, None] - found.values) / sigma
    return ((-0.5 * gap.square()).exp() * found.weights).sum(1) / (sigma * (2 * torch.pi) ** 0.5)


def _weighted_median(values: Tensor, weights: Tensor) -> float:
    order = values.argsort()
    half = weights[order].cumsum(0) >= 0.5 * weights.sum()
    return float(values[order][int(half.nonzero()[0])])
