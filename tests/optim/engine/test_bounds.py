"""Bounds that go around any rule: on gradients, on updates, on the weights themselves."""

from __future__ import annotations

import pytest
import torch
from rule_cases import ALONE, change, matrices, set_gradients, train
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim import RULES, SpectralOptimizer


def top(matrix: torch.Tensor) -> float:
    return torch.linalg.matrix_norm(matrix.detach().double(), 2).item()


@pytest.mark.parametrize("rule", [name for name in ALONE if RULES[name].kind == "matrix"])
def test_no_singular_value_of_an_update_exceeds_the_clip_and_small_ones_stay(rule: str) -> None:
    clipped, plain, loose = (matrices((6, 9), (9, 6)) for _ in range(3))
    for params in (clipped, plain, loose):
        set_gradients(params)
    free = change(rule, plain, promotion_steps=2)
    bound = 0.5 * min(top(delta) for delta in free)
    for delta in change(rule, clipped, promotion_steps=2, update_clip=bound):
        assert 0.5 * bound < top(delta) < bound * (1 + 1e-4)
    for delta, expected in zip(change(rule, loose, promotion_steps=2, update_clip=1e4 * bound), free, strict=True):
        assert torch.allclose(delta, expected, rtol=1e-3, atol=1e-4 * bound)


def test_a_gradient_is_clipped_before_the_momentum() -> None:
    (param,) = matrices((6, 9))
    set_gradients([param], scale=100.0)
    start = param.grad.clone()
    optimizer = SpectralOptimizer([param], rule="row_norm", momentum=0.0, gradient_clip=0.1)
    optimizer.step()
    u, x, vh = torch.linalg.svd(start.double(), full_matrices=False)
    expected = u @ torch.diag(x / (1 + (x / 0.1) ** 2).sqrt()) @ vh
    assert torch.allclose(optimizer.state[param]["momentum_buffer"].double(), expected, atol=1e-3)
    assert torch.equal(param.grad, start)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("method", ["hard", "normalise"])
def test_weights_stay_within_their_spectral_cap_through_training(method: str, heads: int) -> None:
    params = matrices((6, 9), (9, 6), (6, 9))
    train("muon", params, steps=10, spectral_cap=0.7, cap_method=method, num_heads=heads)
    for param in params:
        for block in param.chunk(heads):
            assert top(block) < 0.7 * (1 + 1e-2)
            assert top(block) > 0.3


def test_the_cap_also_moves_the_master_of_a_half_precision_weight() -> None:
    params = matrices((6, 9), dtype=torch.bfloat16)
    optimizer = train("muon", params, steps=3, spectral_cap=0.7)
    assert top(optimizer.state[params[0]]["master"]) < 0.7 * (1 + 1e-2)
    assert torch.equal(optimizer.state[params[0]]["master"].to(torch.bfloat16), params[0])


@pytest.mark.parametrize("bound", ["gradient_clip", "update_clip", "spectral_cap"])
def test_lora_pairs_refuse_bounds_that_they_would_not_keep(bound: str) -> None:
    pair = [nn.Parameter(torch.randn(2, 9)), nn.Parameter(torch.randn(6, 2))]
    with pytest.raises(ConfigError, match=f"{bound} does not apply to the LoRA pairs of rule lora_muon"):
        SpectralOptimizer(pair, rule="lora_muon", **{bound: 1.0})
