"""The norm test against its definition on gradients that are known, and on a model whose noise is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlspec.diagnostics.norm_test import NormTest
from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer


def attached(eta: float = 1.0, **settings: object) -> tuple[NormTest, nn.Linear, SpectralOptimizer]:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    optimizer = SpectralOptimizer(model.named_parameters(), rule="adamw", lr=0.0, **settings)  # type: ignore[arg-type]
    probe = NormTest(eta)
    assert probe(model, optimizer).numbers == {}
    return probe, model, optimizer


def step(model: nn.Linear, optimizer: SpectralOptimizer, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """One optimizer step over micro-batches; returns the gradient of each."""
    found = []
    for batch in batches:
        grads = torch.autograd.grad(model(batch).square().mean(), list(model.parameters()))
        found.append(torch.cat([grad.flatten() for grad in grads]))
    optimizer.zero_grad()
    for batch in batches:
        (model(batch).square().mean() / len(batches)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)  # as trainers do before the step
    optimizer.step()
    return found


@pytest.mark.parametrize("eta", [1.0, 0.3])
@pytest.mark.parametrize("passes", [2, 5])
def test_the_ratio_is_that_of_the_definition_whatever_is_clipped(passes: int, eta: float) -> None:
    probe, model, optimizer = attached(eta)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        gradients = torch.stack(step(model, optimizer, [torch.randn(3, 6, generator=generator) for _ in range(passes)]))
        mean = gradients.mean(0)
        covariance = (gradients - mean).square().sum() / (passes * (passes - 1))
        expected = (covariance / mean.square().sum() / eta**2).item()
        assert probe.ratio() == pytest.approx(expected, rel=1e-4)
        assert probe(model, optimizer).numbers == {"noise/norm_test_ratio": probe.ratio()}


def test_it_says_by_how_much_the_batch_would_have_to_grow_and_growing_it_does() -> None:
    def mean_ratio(size: int) -> float:
        probe, model, optimizer = attached()
        generator = torch.Generator().manual_seed(1)
        ratios = []
        for _ in range(40):
            targets = [0.3 + torch.randn(size, 4, generator=generator) for _ in range(8)]
            optimizer.zero_grad()
            for target in targets:
                (model.bias * (target.mean(0))).sum().backward()
            model.weight.grad = None
            optimizer.step()
            ratios.append(probe.ratio() or 0.0)
        return sorted(ratios)[20]

    # Noise of variance 4 / (8 size) against a gradient of squared norm 4 * 0.09: 1.4 at size 1.
    small, large = mean_ratio(1), mean_ratio(20)
    assert 0.6 < small < 1.6
    assert large == pytest.approx(1 / (8 * 20 * 0.09), rel=0.4)


def test_the_panel_speaks_where_the_batch_is_too_small_and_is_silent_where_not() -> None:
    probe, model, optimizer = attached()
    batch = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    step(model, optimizer, [batch, batch])
    assert probe(model, optimizer).numbers == {"noise/norm_test_ratio": pytest.approx(0.0, abs=1e-4)}
    assert probe(model, optimizer).panel == ""
    probe.eta = 1e-6
    step(model, optimizer, [batch, 2 * batch])
    assert "would pass the norm test" in probe(model, optimizer).panel


def test_one_pass_a_step_or_a_gradient_that_is_no_number_tells_nothing() -> None:
    probe, model, optimizer = attached()
    step(model, optimizer, [torch.randn(3, 6)])
    assert probe.ratio() is None
    with pytest.warns(RuntimeWarning, match="NaN"):
        step(model, optimizer, [torch.full((3, 6), torch.nan), torch.randn(3, 6)])
    assert probe.ratio() is None
    with pytest.raises(ConfigError, match="eta=0"):
        NormTest(0)
