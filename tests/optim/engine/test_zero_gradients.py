"""A step in which every gradient is 0 says nothing: it is left out where that is asked for."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from rlspec.optim import SpectralOptimizer

RULES = ("muon", "pion", "adamw", "lora_muon")
SETTINGS: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "promotion_steps": "auto"}


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 8), (6, 3))]


def step(optimizer: SpectralOptimizer, scale: float, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = scale * torch.randn(param.shape, generator=generator)
    optimizer.step()


def everything(optimizer: SpectralOptimizer) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    kept = [value for param in params for name, value in optimizer.state[param].items() if name != "step"]
    return [tensor.detach().clone() for tensor in (*params, *kept)]


@pytest.fixture(params=[False, True], ids=["host", "device"])
def on_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:  # as on CUDA, where nothing waits for the flags
        monkeypatch.setattr(SpectralOptimizer, "_defers", lambda self, param: True)
    return bool(request.param)


@pytest.mark.parametrize("check_finite", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_such_a_step_leaves_weights_and_state_as_they_are(rule: str, check_finite: bool, on_device: bool) -> None:
    optimizer = SpectralOptimizer(
        parameters(), rule=rule, skip_zero_gradients=True, check_finite=check_finite, **SETTINGS
    )
    step(optimizer, 1.0)
    before = everything(optimizer)
    for _ in range(3):
        step(optimizer, 0.0)
    assert all(torch.equal(old, new) for old, new in zip(before, everything(optimizer), strict=True))
    assert optimizer.zero_steps() == 3
    assert all(numbers["skipped"] == 0 for numbers in optimizer.telemetry().values())
    step(optimizer, 1.0)
    assert not torch.equal(before[0], everything(optimizer)[0])


@pytest.mark.parametrize("rule", ["muon", "pion"])
def test_without_it_a_rule_that_normalises_goes_on_at_full_length(rule: str) -> None:
    optimizer = SpectralOptimizer(parameters(), rule=rule, **SETTINGS | {"weight_decay": 0.0})
    moves = []
    for number in range(6):
        before = everything(optimizer)[0]
        step(optimizer, float(number == 0))
        moves.append(float((everything(optimizer)[0] - before).norm()))
    assert moves[-1] == pytest.approx(moves[0], rel=1e-3)
    assert optimizer.zero_steps() == 0


def test_one_value_that_is_not_zero_makes_it_a_step_like_any_other(on_device: bool) -> None:
    taken, reference = (
        SpectralOptimizer(parameters(), rule="muon", skip_zero_gradients=skips, **SETTINGS) for skips in (True, False)
    )
    for optimizer in (taken, reference):
        step(optimizer, 1.0)
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.zeros_like(param)
        param.grad[2, 1] = 1e-30  # its square vanishes in float32
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(everything(taken), everything(reference), strict=True))
    assert taken.zero_steps() == 0


def test_steps_are_the_same_bits_as_without_the_ones_left_out() -> None:
    settings = {"rule": "adamw", "lr": 0.1, "skip_zero_gradients": True}
    with_zeros, without = (SpectralOptimizer(parameters(), **settings) for _ in "ab")
    for number in range(6):
        step(with_zeros, float(number % 2), seed=number)
        if number % 2:
            step(without, 1.0, seed=number)
    assert all(torch.equal(a, b) for a, b in zip(everything(with_zeros), everything(without), strict=True))


def test_a_missing_gradient_is_no_zero() -> None:
    optimizer = SpectralOptimizer(parameters(), rule="muon", skip_zero_gradients=True, **SETTINGS)
    optimizer.step()
    assert optimizer.zero_steps() == 0


@pytest.mark.parametrize("rule", ["muon", "adamw"])
def test_torchs_distributed_checkpoint_fills_a_fresh_optimizer(rule: str) -> None:
    model, other = (nn.Sequential(nn.Linear(4, 3, bias=False)) for _ in "ab")
    settings = {"rule": rule, "skip_zero_gradients": True, "lr": 0.1}
    optimizer, fresh = (SpectralOptimizer(each.named_parameters(), **settings) for each in (model, other))
    step(optimizer, 1.0)
    stored = get_optimizer_state_dict(model, optimizer)
    template = get_optimizer_state_dict(other, fresh)  # what a checkpoint on disk is loaded into
    assert template["state"]["0.weight"].keys() == stored["state"]["0.weight"].keys()
    set_optimizer_state_dict(other, fresh, stored)
    assert fresh.param_groups[0]["lr"] == 0.1
    for (param,), (twin,) in [(optimizer.param_groups[0]["params"], fresh.param_groups[0]["params"])]:
        assert optimizer.state[param].keys() == fresh.state[twin].keys()
        assert all(torch.equal(value, fresh.state[twin][name]) for name, value in optimizer.state[param].items())


def test_ten_steps_of_zeros_make_no_role_idle_and_no_parameter_unused() -> None:
    settings = {"rule": "pion", "role": "r", "skip_zero_gradients": True, "telemetry_every": 1}
    optimizer = SpectralOptimizer(parameters(), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            step(optimizer, 0.0)
    assert optimizer.inactive_spectral_groups() == []
    assert optimizer.telemetry() == {}
    assert copy.deepcopy(optimizer).skip_zero_gradients
