"""Geometry of point clouds whose geometry is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor

from rlspec.diagnostics.measures.representation import (
    alpha_req,
    diffusion_entropy,
    diffusion_information,
    matrix_nuclear_norm,
    median_distance,
    rankme,
)


def cloud(points: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(points, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(points: int, width: int) -> Tensor:
    return torch.linalg.qr(cloud(points, width))[0]


def test_rankme_is_the_width_of_even_states_and_one_of_a_line() -> None:
    assert rankme(orthogonal(200, 16)) == pytest.approx(16, rel=1e-4)
    assert rankme(torch.outer(torch.arange(1.0, 50.0), torch.ones(8))) == pytest.approx(1, abs=1e-4)
    values = 1 / np.arange(1, 11)
    states = orthogonal(100, 10) @ torch.diag(torch.from_numpy(values))
    assert rankme(states) == pytest.approx(math.exp(scipy.stats.entropy(values)), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_alpha_req_is_the_exponent_of_the_eigenvalues(alpha: float) -> None:
    centred = orthogonal(400, 61) - orthogonal(400, 61).mean(0)
    white = torch.linalg.svd(centred, full_matrices=False)[0][:, :60]
    spectrum = torch.arange(1, 61, dtype=torch.float64) ** (-alpha / 2)
    assert alpha_req(white * spectrum + 7.0) == pytest.approx(alpha, abs=1e-6)
    assert math.isnan(alpha_req(cloud(3, 2)))


def test_diffusion_entropy_reaches_both_of_its_ends() -> None:
    assert diffusion_entropy(torch.ones(20, 3), 1.0) == 0.0
    far = 1000 * torch.arange(33, dtype=torch.float64)[:, None]
    assert diffusion_entropy(far, 1.0) == pytest.approx(math.log2(32), abs=1e-6)
    pair = 1000 * torch.tensor([[0.0]] * 8 + [[1.0]] * 8)
    assert diffusion_entropy(pair, 1.0) == pytest.approx(0, abs=1e-6)  # two states, of which one always is there


def test_diffusion_entropy_is_that_of_the_random_walk() -> None:
    """The symmetric operator has the eigenvalues of the row-stochastic one, by scipy and in another order of steps."""
    points = cloud(40, 3)
    affinity = np.exp(-np.square(points[:, None] - points[None]).sum(-1).numpy() / (2 * 0.7**2))
    walk = affinity / affinity.sum(1, keepdims=True)
    values = np.sort(np.abs(scipy.linalg.eigvals(walk)))[::-1][1:]
    assert diffusion_entropy(points, 0.7) == pytest.approx(scipy.stats.entropy(values, base=2), abs=1e-6)


def test_labels_tell_of_clusters_and_nothing_of_what_they_do_not_sort() -> None:
    centres = 50 * torch.arange(4, dtype=torch.float64).repeat_interleave(40)[:, None]
    states, labels = centres + cloud(160, 2), torch.arange(4).repeat_interleave(40)
    told = diffusion_information(states, labels, 1.0)
    shuffled = labels[torch.randperm(160, generator=torch.Generator().manual_seed(1))]
    assert told > 0.3
    assert abs(diffusion_information(states, shuffled, 1.0)) < 0.3 * told
    assert math.isnan(diffusion_information(states, torch.zeros(160), 1.0))
    assert math.isnan(diffusion_information(states, torch.arange(160), 1.0))


def test_the_nuclear_norm_bound_is_tight_for_orthogonal_columns() -> None:
    """Of centred unit rows on the axes, both signs alike, columns are orthogonal and the bound is the norm itself."""
    states = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    assert matrix_nuclear_norm(states) == pytest.approx(float(torch.linalg.matrix_norm(states, "nuc")) / 12)
    line = torch.outer(torch.linspace(-1, 1, 12), torch.ones(6))
    assert matrix_nuclear_norm(states) < matrix_nuclear_norm(line) * 1.01  # the published number rewards lines: no rank


def test_the_median_distance_is_that_of_different_points() -> None:
    assert median_distance(torch.tensor([[0.0], [1.0], [3.0]])) == 2.0
