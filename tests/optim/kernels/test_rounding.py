"""Stochastic rounding: right on average, the same bits for the same seed, nothing else changed."""

from __future__ import annotations

import torch

from rlspec.optim.kernels.rounding import stochastic_round


def test_the_mean_over_seeds_is_the_value() -> None:
    values = torch.tensor([1.0 + 2**-10, -3.3e-7, 1e-30, 0.1])
    mean = torch.stack([stochastic_round(values, seed).double() for seed in range(4000)]).mean(0)
    spacing = torch.tensor([2**-7, 2**-29, 2**-107, 2**-11], dtype=torch.float64)
    assert ((mean - values.double()).abs() < 0.05 * spacing).all()
    assert (values.to(torch.bfloat16).double() - values.double()).abs()[0] > 0.1 * spacing[0]


def test_every_result_is_a_neighbour_and_exact_values_stay() -> None:
    exact = torch.tensor([0.0, -0.0, 1.0, 0.5, -96.0, float("inf"), -float("inf")])
    values = torch.randn(1000)
    for seed in range(5):
        assert torch.equal(stochastic_round(exact, seed).float(), exact)
        rounded = stochastic_round(values, seed).float()
        assert ((rounded - values).abs() <= values.abs() * 2**-7).all()
        assert torch.equal(rounded, stochastic_round(values, seed).float())
    assert not torch.equal(stochastic_round(values, 1), stochastic_round(values, 2))
    assert stochastic_round(torch.tensor([float("nan")]), 0).isnan().all()
