"""SGD against torch's, signum against a plain loop, for parameters of any shape."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer, build_optimizer
from rlspec.optim.transfer import update_rms

SHAPES = [(), (7,), (6, 9), (2, 3, 3, 3), (6, 9), (0, 4)]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def gradients(step: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 5) -> list[nn.Parameter]:
    for step in range(steps):
        for param, gradient in zip(params, gradients(step, params[0].dtype), strict=True):
            param.grad = gradient
        optimizer.step()
    return params


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("momentum", "nesterov", "dampening"), [(0.0, False, 0.0), (0.9, False, 0.0), (0.9, True, 0.0), (0.9, False, 0.3)]
)
def test_sgd_equals_torch_sgd_bitwise(momentum: float, nesterov: bool, dampening: float, dtype: torch.dtype) -> None:
    common = {"lr": 0.03, "momentum": momentum, "nesterov": nesterov, "dampening": dampening}
    theirs, ours = parameters(dtype), parameters(dtype)
    run(torch.optim.SGD(theirs, **common), theirs)
    run(SpectralOptimizer(ours, rule="sgd", **common), ours)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("nesterov", [False, True])
def test_signum_is_the_sign_of_an_average_with_decoupled_decay(nesterov: bool) -> None:
    start, params = parameters(torch.float64), parameters(torch.float64)
    settings = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.5, "adjust_lr": "none", "nesterov": nesterov}
    run(SpectralOptimizer(params, rule="signum", **settings), params)
    for position, (weight, param) in enumerate(zip(start, params, strict=True)):
        values, average = weight.detach().clone(), torch.zeros_like(weight)
        for step in range(5):
            gradient = gradients(step, torch.float64)[position]
            average = 0.8 * average + 0.2 * gradient
            direction = 0.2 * gradient + 0.8 * average if nesterov else average
            values = values * (1 - 0.1 * 0.5) - 0.1 * torch.sign(direction)
        assert torch.allclose(param, values, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("adjust_lr", "size"), [("match_rms_adamw", 0.2), ("none", 1.0), ("paper", 1.0), ("spectral", 1.0)]
)
def test_signums_entries_have_adamws_size_or_their_own(adjust_lr: str, size: float) -> None:
    params = parameters()
    before = [param.detach().clone() for param in params]
    run(SpectralOptimizer(params, rule="signum", lr=1.0, adjust_lr=adjust_lr), params, steps=1)
    for param, old in zip(params, before, strict=True):
        assert torch.allclose((param - old).abs(), torch.full_like(old, size), atol=1e-6)
    assert update_rms("signum", (6, 9), adjust_lr) == size


@pytest.mark.parametrize("rule", ["sgd", "signum"])
def test_an_elementwise_rule_is_that_of_all_parameters_and_cuts_nothing(rule: str) -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    optimizer = build_optimizer(model, rule=rule, lr=0.1)
    for group in optimizer.param_groups:  # as where another group has matrices
        group.update(gradient_clip=1e-3, update_clip=1e-3, spectral_cap=1e-3)
    assert {spec.rule for spec in optimizer.symmetry} == {rule}
    assert sum(spec.matrices for spec in optimizer.symmetry) == 0
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    size = 0.1 * (0.2 if rule == "signum" else 1.0)  # bounds on singular values leave entries alone
    for name, param in model.named_parameters():
        assert torch.allclose(before[name] - param, torch.full_like(param, size), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nesterov": True, "dampening": 0.1}, "no dampening"),
        ({"nesterov": True, "momentum": 0.0}, "momentum above 0"),
        ({"dampening": math.nan}, "dampening=nan"),
    ],
)
def test_what_torchs_sgd_refuses_is_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SpectralOptimizer(parameters(), rule="sgd", **settings)
