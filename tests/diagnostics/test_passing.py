"""What filters are said to pass is what the optimizers' own stages pass."""

from __future__ import annotations

import pytest
import torch
from subjects import with_spectrum

from rlspec.diagnostics.measures.passing import (
    ADAMW,
    AUTO,
    MUON,
    SPECTRAL,
    auto_steps,
    filtered,
    normalised,
    pass_energy,
)
from rlspec.diagnostics.measures.ranks import singular_values
from rlspec.optim import SpectralOptimizer

MATRIX = with_spectrum([1.0, 0.7, 0.3, 0.2, 0.1, 0.05, 0.02], 12, 9)


def by_the_optimizer(name: str, matrix: torch.Tensor) -> torch.Tensor:
    """The step of the rule, of unit length."""
    rule, options = ("muon", {}) if name == MUON else (ADAMW, {"eps": 0.0}) if name == ADAMW else ("pion", {})
    if rule == "pion":
        options = {"promotion_steps": AUTO if name == AUTO else int(name[-1]), "adjust_lr": "none"}
    parameter = torch.nn.Parameter(torch.zeros_like(matrix))
    optimizer = SpectralOptimizer([parameter], lr=1.0, rule=rule, momentum=0.0, **options)
    parameter.grad = matrix.clone()
    optimizer.step()
    return -parameter.detach()


@pytest.mark.parametrize("name", [*SPECTRAL, ADAMW])
def test_a_filter_makes_of_a_matrix_what_the_rule_makes_of_it(name: str) -> None:
    update, step = filtered(MATRIX[None], name)[0].double(), by_the_optimizer(name, MATRIX)
    torch.testing.assert_close(update / update.norm(), step / step.norm(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_energy_of_a_spectrum_is_that_of_the_filtered_matrix(name: str) -> None:
    energy = pass_energy(singular_values(MATRIX[None]), name)
    torch.testing.assert_close(energy, filtered(MATRIX[None], name).double().square().sum((1, 2)), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    ("equal", "steps"), [(1, 0), (2, 1), (3, 1), (4, 2), (11, 2), (12, 3), (38, 3), (39, 4), (200, 5)]
)
def test_auto_opens_the_gate_just_as_far_as_the_stable_rank_asks(equal: int, steps: int) -> None:
    """Gates let 1 / theta^2 equal directions pass: 1.50, 3.66, 11.4, 38.8, 135."""
    assert int(auto_steps(normalised(torch.ones(1, equal, dtype=torch.float64)))) == steps


def test_nothing_passes_of_zeros() -> None:
    assert float(pass_energy(torch.zeros(1, 4), "k_p=2")) == 0.0
    assert float(filtered(torch.zeros(1, 3, 4), MUON).abs().sum()) == 0.0
