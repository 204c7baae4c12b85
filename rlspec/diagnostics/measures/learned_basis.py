"""A spectral basis of a cloud of points, learnt without an operator or a mesh (arXiv 2512.01103).

A network maps points to k functions, made orthonormal over the points in their order. It learns to reconstruct random
smooth functions (probes) from the first 1, 2, ..., k of them at once; best for that are the eigenfunctions of the
probes' covariance, largest eigenvalue first. Probes are Gaussian processes of squared-exponential covariance
`exp(-|x - y|^2 / 2 sigma^2)`: on a circle, a sphere or a flat torus that commutes with all rotations, so that the
eigenfunctions are the Laplacian's harmonics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FEATURES = 256  # waves that a probe is the sum of


@dataclass(frozen=True)
class LearnedBasis:
    """Functions on points (N, d).

    Attributes:
        network: (N, d) -> (N, k), not yet orthonormal.
        transform: (k, k), which makes it so over the points that were learnt from.
        eigenvalues: (k,), mean squared coefficient of probes of unit variance, descending as far as it has learnt.
    """

    network: nn.Module
    transform: Tensor
    eigenvalues: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Values (N, k); over the points that were learnt from, columns have unit mean square and are orthogonal."""
        with torch.no_grad():
            values: Tensor = self.network(points) @ self.transform
            return values


def learn_basis(
    points: Tensor, functions: int, sigma: float, *, steps: int = 600, width: int = 96, probes: int = 64, seed: int = 0
) -> LearnedBasis:
    """Learn `functions` basis functions of points (N, d) with N > functions.

    Args:
        points: about unit size.
        functions: k.
        sigma: length over which probes vary.
        steps: of Adam, on all points.
        width: of the network's two hidden layers.
        probes: functions that are drawn for each step.
        seed: of network and probes.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(points.shape[1], width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, functions),
        ).to(points)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # Errors of the first 1, ..., k functions add up: the first takes part in all of them.
    weights = torch.arange(functions, 0, -1, dtype=points.dtype, device=points.device)
    with torch.enable_grad():
        for _ in range(steps):
            basis, _ = _orthonormal(network(points))
            energy = _coefficients(basis, draw_probes(points, probes, sigma, generator)).square().mean(1)
            optimizer.zero_grad()
            (-(weights * energy).sum()).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        basis, transform = _orthonormal(network(points))
        fresh = draw_probes(points, 4096, sigma, generator)
        return LearnedBasis(network, transform, _coefficients(basis, fresh).square().mean(1))


def draw_probes(points: Tensor, count: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Random smooth functions of unit variance at points: (N, d) -> (N, count), by random Fourier features."""
    size = points.shape[1]
    waves = torch.randn(size, _FEATURES, generator=generator).to(points) / sigma
    phases = 2 * torch.pi * torch.rand(_FEATURES, generator=generator).to(points)
    mix = torch.randn(_FEATURES, count, generator=generator).to(points)
    return (2 / _FEATURES) ** 0.5 * (points @ waves + phases).cos() @ mix


def captured(basis: Tensor, probes: Tensor) -> Tensor:
    """Share of the probes' energy that the first 1, ..., k functions hold by least squares: (k,).

    Args:
        basis: values (N, k).
        probes: values (N, m).
    """
    columns, _ = torch.linalg.qr(basis)
    return (columns.T @ probes).square().sum(1).cumsum(0) / probes.square().sum()


def _orthonormal(values: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of unit mean square, each orthogonal to those before it, and what makes them so."""
    columns, upper = torch.linalg.qr(values)
    root = len(values) ** 0.5
    transform = torch.linalg.solve_triangular(upper, torch.eye(len(upper)).to(values), upper=True) * root
    return columns * root, transform


def _coefficients(basis: Tensor, probes: Tensor) -> Tensor:
    return basis.T @ probes / len(basis)
