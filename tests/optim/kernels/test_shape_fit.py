"""Coefficients for a shape, against singular values of matrices that are drawn, and against the published ones."""

from __future__ import annotations

import math

import pytest
import torch

from rlspec.optim.kernels.schedules import KELLER, Coefficients, transfer
from rlspec.optim.kernels.shape_fit import fit_quintic, gaussian_singular_values
from rlspec.optim.stages.outliers import FITTED

SHAPES = [(1, 1), (1, 10), (2, 2), (5, 7), (16, 4096), (64, 64), (64, 896), (256, 257), (896, 4864), (2048, 2048)]


def drawn(short: int, long: int) -> torch.Tensor:
    """Normalised singular values of a Gaussian matrix, ascending."""
    matrix = torch.randn(short, long, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.svdvals(matrix / matrix.norm()).flip(0)


def error(values: torch.Tensor, coefficients: Coefficients, steps: int = 5) -> float:
    return (transfer(values, (coefficients,) * steps) - 1).square().mean().item()


@pytest.mark.parametrize("shape", [(96, 96), (96, 128), (100, 400), (64, 896)])
def test_the_law_is_that_of_matrices_that_are_drawn(shape: tuple[int, int]) -> None:
    found = drawn(*shape)
    assert (gaussian_singular_values(*shape, points=shape[0]) - found).abs().max() < 0.03 * found.max()


@pytest.mark.parametrize("steps", [3, 5, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_fit_is_finite_bounded_and_no_worse_than_muons_on_its_shape_and_on_any_spectrum(
    shape: tuple[int, int], steps: int
) -> None:
    fitted = fit_quintic(*shape, steps)
    values, spread = gaussian_singular_values(*shape), torch.logspace(-2, 0, 200, dtype=torch.float64)
    assert all(math.isfinite(value) for value in fitted)
    assert error(torch.cat([values, spread]), fitted, steps) <= 1.001 * error(
        torch.cat([values, spread]), KELLER, steps
    )
    lifted = transfer(torch.linspace(0, 1, 20_000, dtype=torch.float64), (fitted,) * steps)
    assert lifted.min() > -1e-9 and lifted.max() < 1.31
    if steps == 5:
        assert transfer(spread, (fitted,) * 5).min() > 0.9


@pytest.mark.parametrize("shape", [(5, 7), (64, 64), (64, 896), (256, 257), (256, 1390)])
def test_drawn_matrices_come_out_nearer_to_orthogonal_than_by_muons(shape: tuple[int, int]) -> None:
    values = drawn(*shape)
    assert error(values, fit_quintic(*shape, 5)) < 0.7 * error(values, KELLER)


@pytest.mark.parametrize("shape", FITTED)
def test_the_error_of_muons_is_the_papers_and_a_fit_is_below_that_of_the_published_coefficients(
    shape: tuple[int, int],
) -> None:
    values = gaussian_singular_values(*shape)
    assert error(values, fit_quintic(*shape, 5)) < error(values, FITTED[shape]) < error(values, KELLER)
