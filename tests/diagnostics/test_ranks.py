"""Ranks of matrices whose rank is known, and singular values against numpy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from subjects import with_spectrum

from rlspec.diagnostics.measures import ranks
from rlspec.diagnostics.measures.ranks import (
    effective_rank,
    energy_rank,
    participation_ratio,
    singular_values,
    stable_rank,
    utilisation,
)

RANKS = (stable_rank, effective_rank, energy_rank)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_a_partial_isometry_has_its_rank_by_every_measure(rank: int) -> None:
    values = singular_values(with_spectrum([3.0] * rank, 12, 20))
    for measure in RANKS:
        assert float(measure(values)) == pytest.approx(rank, abs=1e-5)


def test_a_power_law_has_the_ranks_of_its_sums() -> None:
    law = [1 / k for k in range(1, 31)]
    values = singular_values(with_spectrum(law, 40, 30))
    assert float(stable_rank(values)) == pytest.approx(sum(1 / k**2 for k in range(1, 31)))
    assert float(effective_rank(values)) == pytest.approx(math.exp(scipy.stats.entropy(law)))
    assert float(energy_rank(values)) == pytest.approx(math.exp(scipy.stats.entropy(np.square(law))))


def test_ranks_do_not_feel_a_common_factor_and_zeros_have_none() -> None:
    values = torch.rand(3, 7, dtype=torch.float64)
    for measure in RANKS:
        torch.testing.assert_close(measure(values * 1e-20), measure(values))
        assert float(measure(torch.zeros(7))) == 0.0


def test_singular_values_of_large_blocks_are_those_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = torch.randn(2, 9, 14, generator=torch.Generator().manual_seed(0))
    exact = np.linalg.svd(blocks.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(singular_values(blocks), exact, rtol=1e-10)
    monkeypatch.setattr(ranks, "LARGEST_EXACT", 0)
    np.testing.assert_allclose(singular_values(blocks), exact, rtol=1e-6)
    np.testing.assert_allclose(singular_values(blocks.mT), exact, rtol=1e-6)


def test_utilisation_is_one_for_even_variances_and_one_over_n_for_a_single_one() -> None:
    assert [float(share) for share in utilisation(torch.full((8,), 2.0))] == pytest.approx([1, 1, 1])
    single = torch.tensor([5.0] + [0.0] * 7)
    assert [float(share) for share in utilisation(single)] == pytest.approx([1 / 8] * 3)
    hard, soft, both = utilisation(torch.tensor([4.0, 1.0, 1.0, 0.0]))
    assert (
        float(hard)
        == pytest.approx(36 / 18 / 4)
        == pytest.approx(float(participation_ratio(torch.tensor([4.0, 1, 1]))) / 4)
    )
    assert float(both) == pytest.approx(2 / (1 / float(hard) + 1 / float(soft)))
