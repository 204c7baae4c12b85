"""The learned basis of a circle, a sphere and a flat torus: their harmonics, with the probes' eigenvalues."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from rlspec.diagnostics.measures.learned_basis import captured, draw_probes, learn_basis

SIGMA = 0.8


def circle() -> tuple[Tensor, list[Tensor], list[float]]:
    """Points, harmonics, and the kernel's eigenvalue of each: modified Bessel functions of its width."""
    angle = turns(400)
    waves = [torch.ones_like(angle), angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()]
    return torch.stack([angle.cos(), angle.sin()], 1), waves, [bessel(order, 1.0) for order in (0, 1, 1, 2, 2)]


def turns(count: int) -> Tensor:
    return 2 * torch.pi * torch.arange(count) / count


def bessel(order: float, radius: float) -> float:
    return float(scipy.special.ive(order, radius**2 / SIGMA**2))


def sphere() -> tuple[Tensor, list[Tensor], list[float]]:
    """Degree 0 and 1, on a spiral of even density; eigenvalues go as spherical Bessel functions."""
    height = 1 - (2 * torch.arange(500) + 1) / 500
    angle = torch.pi * (1 + 5**0.5) * torch.arange(500)
    across = (1 - height.square()).sqrt()
    points = torch.stack([across * angle.cos(), across * angle.sin(), height], 1)
    scale = (np.pi / (2 / SIGMA**2)) ** 0.5
    eigenvalues = [scale * bessel(degree + 0.5, 1.0) for degree in (0, 1, 1, 1)]
    return points, [torch.ones(500), *points.T], eigenvalues


def torus() -> tuple[Tensor, list[Tensor], list[float]]:
    """A flat one, the product of circles of radius 1 and 0.8."""
    first, second = torch.cartesian_prod(turns(22), turns(22)).T
    points = torch.stack([first.cos(), first.sin(), 0.8 * second.cos(), 0.8 * second.sin()], 1)
    waves = [torch.ones_like(first), first.cos(), first.sin(), second.cos(), second.sin()]
    orders = [(0, 0), (1, 0), (1, 0), (0, 1), (0, 1)]
    return points, waves, [bessel(one, 1.0) * bessel(other, 0.8) for one, other in orders]


@pytest.mark.parametrize("surface", [circle, sphere, torus])
def test_it_learns_the_harmonics_and_their_eigenvalues(
    surface: Callable[[], tuple[Tensor, list[Tensor], list[float]]],
) -> None:
    points, harmonics, eigenvalues = surface()
    basis = learn_basis(points, len(harmonics), SIGMA, steps=400)
    columns = torch.linalg.qr(basis(points))[0]
    for harmonic in harmonics:
        inside = (columns.T @ harmonic).norm() / harmonic.norm()
        assert float(inside**2) > 0.97
    found = basis.eigenvalues.sort(descending=True).values
    assert found.tolist() == pytest.approx(sorted(eigenvalues, reverse=True), rel=0.2)


def test_the_functions_are_orthonormal_over_the_points_and_go_on_beyond_them() -> None:
    points, harmonics, _ = circle()
    mixed = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    points, harmonics = points[mixed], [harmonic[mixed] for harmonic in harmonics]
    basis = learn_basis(points[:300], 3, SIGMA, steps=300)
    values = basis(points[:300])
    torch.testing.assert_close(values.T @ values / 300, torch.eye(3), atol=1e-4, rtol=0)
    probes = draw_probes(points[300:], 500, SIGMA, torch.Generator().manual_seed(5))
    learnt, exact = captured(basis(points[300:]), probes), captured(torch.stack(harmonics[:3], 1)[300:], probes)
    assert float(learnt[-1]) == pytest.approx(float(exact[-1]), abs=0.02)


def test_probes_have_the_covariance_that_they_claim() -> None:
    points = torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, 1.0]], dtype=torch.float64)
    draws = torch.cat([draw_probes(points, 400, SIGMA, torch.Generator().manual_seed(seed)) for seed in range(50)], 1)
    wanted = (-torch.cdist(points, points).square() / (2 * SIGMA**2)).exp()
    torch.testing.assert_close(draws @ draws.T / draws.shape[1], wanted, atol=0.05, rtol=0)
