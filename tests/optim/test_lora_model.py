"""The pair rules at work: SpectralOptimizer on the adapters that peft puts into a real, tiny Qwen3."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from rlspec.optim import SpectralOptimizer, build_optimizer
from rlspec.optim.composition import Pair, Step
from rlspec.optim.rules import get_rule

RULES = ("lora_muon", "lora_pion", "lora_rite", "adapre_lora")
LR = {"lora_muon": 0.05, "lora_pion": 0.05, "lora_rite": 2e-3, "adapre_lora": 2e-3}
Layers = dict[str, tuple[Tensor, Tensor, float]]


@pytest.fixture
def adapted(tiny_qwen3: Callable[..., torch.nn.Module]) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    return get_peft_model(tiny_qwen3(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", bias="none"))


def layers(model: torch.nn.Module) -> Layers:
    """Name -> A, B, scaling."""

    def found() -> Iterator[tuple[str, tuple[Tensor, Tensor, float]]]:
        for name, module in model.named_modules():
            if hasattr(module, "lora_A"):
                pair = module.lora_A["default"].weight, module.lora_B["default"].weight
                yield name, (*pair, module.scaling["default"])

    return dict(found())


def make_optimizer(found: Layers, rule: str, **settings: Any) -> SpectralOptimizer:
    params = [
        (f"{name}.lora_{letter}", param)
        for name, pair in found.items()
        for letter, param in zip("AB", pair[:2], strict=True)
    ]
    (scaling,) = {pair[2] for pair in found.values()}
    defaults = {"lr": LR[rule], "adjust_lr": "none", "promotion_steps": "auto"}
    return SpectralOptimizer([{"params": params, "rule": rule, "scaling": scaling}], **(defaults | settings))


def products(found: Layers) -> dict[str, Tensor]:
    return {name: scaling * (b @ a).detach().double() for name, (a, b, scaling) in found.items()}


@pytest.mark.parametrize("rule", RULES)
def test_the_first_step_moves_b_alone_then_both_move_and_the_loss_falls(
    rule: str, adapted: torch.nn.Module, backward: Callable[[torch.nn.Module], Tensor]
) -> None:
    found = layers(adapted)
    assert len(found) == 14
    optimizer = make_optimizer(found, rule)
    start = {name: pair[0].detach().clone() for name, pair in found.items()}
    losses = []
    for step in range(12):
        losses.append(float(backward(adapted)))
        optimizer.step()
        unmoved = [torch.equal(pair[0], start[name]) for name, pair in found.items()]
        assert all(unmoved) if step == 0 else not any(unmoved)
        assert all(bool(pair[1].abs().sum() > 0) for pair in found.values())
    assert losses[-1] < losses[0] - 0.1


def test_a_step_of_lora_muon_moves_every_weight_by_lr_at_most(
    adapted: torch.nn.Module, backward: Callable[[torch.nn.Module], Tensor]
) -> None:
    found = layers(adapted)
    optimizer = make_optimizer(found, "lora_muon")
    for _ in range(4):
        backward(adapted)
        before = products(found)
        optimizer.step()
        for name, after in products(found).items():
            moved = float(torch.linalg.matrix_norm(after - before[name], 2))
            assert 0.3 * LR["lora_muon"] < moved < 1.26 * LR["lora_muon"]


@pytest.mark.parametrize("rule", RULES)
def test_the_optimizer_runs_the_rule_on_each_layer_as_by_hand(
    rule: str, adapted: torch.nn.Module, backward: Callable[[torch.nn.Module], Tensor]
) -> None:
    found = layers(adapted)
    lr, decay, length = LR[rule], 0.1, 1.0
    optimizer = make_optimizer(found, rule, weight_decay=decay, nesterov=True, compute_dtype="float32")
    name = next(name for name in found if name.endswith("k_proj"))
    a, b, scaling = found[name]
    mirror = a.detach().clone()[None], b.detach().clone()[None]
    momenta = [torch.zeros_like(tensor) for tensor in mirror]
    entry, state = get_rule(rule), {}
    assert entry.pair is not None
    group = optimizer.param_groups[0]
    for factor, shape in (("a", a.shape), ("b", b.shape)):
        for key, buffer in entry.buffers(*shape, group, factor).items():
            state[key] = buffer.new(1, torch.float32, a.device)
    for count in range(1, 4):
        backward(adapted)
        gradients = [param.grad.clone()[None] for param in (a, b) if param.grad is not None]
        directions = gradients
        if entry.momentum is not None:
            momenta = [torch.lerp(m, g, 0.05) for m, g in zip(momenta, gradients, strict=True)]
            directions = [torch.lerp(g, m, 0.95) for m, g in zip(momenta, gradients, strict=True)]
        step = Step(group, lr, length, count, torch.float32, state=state)
        updates = entry.pair(Pair(*mirror, *directions, *gradients, scaling), step)
        state = step.state
        shrink = math.sqrt(1 - lr * decay)
        mirror = tuple(shrink * old - lr * update for old, update in zip(mirror, updates, strict=True))
        optimizer.step()
        for got, want in zip((a, b), mirror, strict=True):
            assert torch.allclose(got, want[0], rtol=1e-3, atol=1e-3 * float(want.abs().max()))


@pytest.mark.parametrize("rule", RULES)
def test_continuing_from_a_stored_state_is_bitwise_the_same(
    rule: str, adapted: torch.nn.Module, backward: Callable[[torch.nn.Module], Tensor]
) -> None:
    found = layers(adapted)
    optimizer = make_optimizer(found, rule)
    for _ in range(2):
        backward(adapted)
        optimizer.step()
    twin = copy.deepcopy(adapted)
    other = make_optimizer(layers(twin), rule)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        for model, stepped in ((adapted, optimizer), (twin, other)):
            backward(model)
            stepped.step()
    for name, pair in layers(twin).items():
        assert torch.equal(pair[0], found[name][0])
        assert torch.equal(pair[1], found[name][1])


def test_adapters_in_bfloat16_move_by_their_float32_masters(
    adapted: torch.nn.Module, backward: Callable[[torch.nn.Module], Tensor]
) -> None:
    adapted.to(torch.bfloat16)
    found = layers(adapted)
    optimizer = make_optimizer(found, "lora_muon", lr=1e-5)
    for _ in range(3):
        backward(adapted)
        optimizer.step()
    for a, b, scaling in found.values():
        masters = [optimizer.state[param]["master"] for param in (a, b)]
        assert masters[0].dtype == torch.float32
        assert torch.equal(masters[1].bfloat16(), b)
        moved = float(torch.linalg.matrix_norm(scaling * masters[1] @ masters[0], 2))
        assert 0.3e-5 < moved < 3.8e-5


def test_a_nan_in_one_adapter_leaves_that_pair_alone(
    adapted: torch.nn.Module, backward: Callable[[torch.nn.Module], Tensor]
) -> None:
    found = layers(adapted)
    optimizer = make_optimizer(found, "lora_muon")
    backward(adapted)
    names = list(found)
    bad = found[names[0]][1]
    assert bad.grad is not None
    bad.grad[0, 0] = math.nan
    with pytest.warns(RuntimeWarning, match="lora_B has NaN"):
        optimizer.step()
    assert not bad.any()
    assert all(bool(found[name][1].any()) for name in names[1:])


@pytest.mark.parametrize("rule", RULES)
def test_the_symmetry_map_pairs_the_factors_with_their_scaling(
    rule: str, tiny_qwen3: Callable[..., torch.nn.Module], backward: Callable[[torch.nn.Module], Tensor]
) -> None:
    """Layers of two ranks and two scalings, against one optimizer for each layer."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 4}, use_rslora=True
    )
    model = get_peft_model(tiny_qwen3(), config)
    twin = copy.deepcopy(model)
    settings: dict[str, Any] = {"lr": LR[rule], "adjust_lr": "none", "promotion_steps": "auto"}
    together = build_optimizer(model, rule=rule, roles={"lora": rule}, **settings)
    alone = [make_optimizer({name: pair}, rule) for name, pair in layers(twin).items()]
    assert {pair[2] for pair in layers(model).values()} == {16 / math.sqrt(8), 16 / math.sqrt(4)}
    for _ in range(3):
        backward(model)
        together.step()
        backward(twin)
        for optimizer in alone:
            optimizer.step()
    for name, pair in layers(model).items():
        for got, want in zip(pair[:2], layers(twin)[name][:2], strict=True):
            assert torch.allclose(got, want, rtol=1e-3, atol=1e-3 * float(want.detach().abs().max()))
