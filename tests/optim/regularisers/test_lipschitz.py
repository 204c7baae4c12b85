"""The bound against movements that were tried, and exactly where it is exact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim.regularisers.lipschitz import ACTIVATIONS, layer_bounds, lipschitz_bound
from rlspec.optim.stages.constraints import constrain


def network() -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 5))
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), inner).double()


def steepest(model: nn.Module, size: int, tries: int = 200) -> float:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(tries, size, generator=generator, dtype=torch.float64)
    jacobians = [torch.autograd.functional.jacobian(model, x) for x in inputs]
    return max(torch.linalg.matrix_norm(jacobian, 2).item() for jacobian in jacobians)


def test_no_movement_exceeds_the_bound_and_capped_weights_bring_it_down() -> None:
    model = network()
    before = lipschitz_bound(model)
    assert 0.1 * before < steepest(model, 8) <= before
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = constrain(layer.weight.data[None], 0.3)[0]
    assert steepest(model, 8) <= lipschitz_bound(model) < before
    assert lipschitz_bound(model) == pytest.approx(0.3**3 * ACTIVATIONS[nn.GELU], rel=1e-3)


def test_of_linear_layers_alone_with_aligned_vectors_it_is_exact() -> None:
    first = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    second = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    u, _, _ = torch.linalg.svd(first.weight.detach())
    second.weight.data = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)) @ u.T[:3]
    model = nn.Sequential(first, second)
    assert lipschitz_bound(model) == pytest.approx(steepest(model, 6, tries=1))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_no_slope_of_an_activation_exceeds_what_is_said_and_one_comes_near(kind: type[nn.Module]) -> None:
    x = torch.linspace(-9, 9, 200_001, dtype=torch.float64).reshape(1, -1).requires_grad_()
    (slope,) = torch.autograd.grad(kind().eval()(x).sum(), x)
    assert ACTIVATIONS[kind] * 0.999 <= slope.abs().max().item() <= ACTIVATIONS[kind]


def test_norms_are_bounded_by_their_gain_and_eps() -> None:
    for norm in (nn.LayerNorm(8, eps=0.01), nn.RMSNorm(8, eps=0.01)):
        norm = norm.double()
        norm.weight.data[3] = -5.0
        tiny = nn.Sequential(nn.Linear(8, 8, bias=False, dtype=torch.float64), norm)
        tiny[0].weight.data = 1e-4 * torch.eye(8, dtype=torch.float64)
        assert lipschitz_bound(norm) == pytest.approx(50.0)
        assert 0.8 * lipschitz_bound(tiny) < steepest(tiny, 8) <= lipschitz_bound(tiny)


def test_the_factors_are_the_layers_own() -> None:
    bounds = layer_bounds(network())
    assert list(bounds) == ["0", "1", "2.0", "2.1", "2.2"]
    assert torch.tensor(list(bounds.values())).prod().item() == pytest.approx(lipschitz_bound(network()), rel=1e-6)


def test_what_it_does_not_cover_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="1.0 is a MultiheadAttention"):
        lipschitz_bound(nn.Sequential(nn.ReLU(), nn.Sequential(nn.MultiheadAttention(4, 2))))
    with pytest.raises(ConfigError, match="is a ELU"):
        lipschitz_bound(nn.ELU(alpha=2.0))
