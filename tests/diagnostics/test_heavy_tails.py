"""Exponents of samples whose exponent is known, against the library powerlaw, and free of a matrix's shape."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from rlspec.diagnostics.measures.heavy_tails import eigenvalues, farms, hill


def pareto(exponent: float, size: int, seed: int = 0) -> torch.Tensor:
    """Samples of density x^-exponent above 1."""
    uniform = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1 - uniform) ** (-1 / (exponent - 1))


@pytest.mark.parametrize("exponent", [1.7, 2.5, 4.0])
def test_pareto_samples_give_their_exponent_within_five_percent(exponent: float) -> None:
    fit = hill(pareto(exponent, 20_000))
    assert fit.alpha == pytest.approx(exponent, rel=0.05)
    assert fit.distance < 0.02


def test_the_fit_is_powerlaws_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        powerlaw = pytest.importorskip("powerlaw")
        values = pareto(2.2, 501)
        fit = hill(values)
        other = powerlaw.Fit(values.numpy(), xmin=fit.smallest, verbose=False).power_law
    assert fit.smallest == pytest.approx(float(np.sort(values.numpy())[250]))
    assert fit.alpha == pytest.approx(other.alpha, rel=1e-6)
    assert fit.distance == pytest.approx(other.D, abs=5e-3)


def heavy(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    """A matrix of entries whose fourth moment is infinite: its eigenvalues have a tail."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.standard_t(1.5, (rows, cols)))


def test_the_shape_of_a_matrix_moves_a_plain_fit_and_not_that_of_windows() -> None:
    def gaussian(rows: int, cols: int) -> torch.Tensor:
        return torch.randn(rows, cols, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    square, wide = gaussian(400, 400), gaussian(400, 1600)
    assert farms(square).alpha == pytest.approx(farms(wide).alpha, rel=0.03)
    assert hill(eigenvalues(square)).alpha < 0.7 * hill(eigenvalues(wide)).alpha
    assert farms(wide.T).alpha == pytest.approx(farms(wide).alpha)


def test_heavier_entries_have_a_smaller_exponent() -> None:
    light = torch.randn(300, 300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert farms(heavy(300, 300)).alpha < 0.8 * farms(light).alpha


@pytest.mark.parametrize("shape", [(1, 5), (2, 2), (3, 200), (30, 31)])
def test_small_matrices_have_a_fit_or_none(shape: tuple[int, int]) -> None:
    alpha = farms(torch.randn(shape, generator=torch.Generator().manual_seed(3))).alpha
    assert np.isnan(alpha) if min(shape) < 3 else alpha > 1


def test_equal_values_have_no_tail() -> None:
    assert np.isnan(hill(torch.ones(10)).alpha)
    assert np.isnan(farms(torch.zeros(10, 10)).alpha)


def test_rounding_is_no_tail() -> None:
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(256, 16, generator=generator) @ torch.randn(16, 512, generator=generator)
    assert farms(thin).smallest > 1e-4 * float(torch.linalg.svdvals(thin)[0] ** 2) / 16
