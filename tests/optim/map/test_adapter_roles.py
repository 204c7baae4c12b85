"""peft's variants on a real, tiny Qwen3: every trainable parameter has a role, and an optimizer that learns."""

from __future__ import annotations

from collections.abc import Callable

import peft
import pytest
import torch
from torch import nn

from rlspec.optim import build_optimizer, symmetry_map

Build = Callable[..., nn.Module]
WHERE = {"target_modules": ["q_proj", "down_proj"]}
FACTORS = {"lora.A.attention.q", "lora.B.attention.q", "lora.A.mlp.down", "lora.B.mlp.down"}
VARIANTS = {
    "pissa": (peft.LoraConfig(r=4, init_lora_weights="pissa", **WHERE), FACTORS),
    "olora": (peft.LoraConfig(r=4, init_lora_weights="olora", **WHERE), FACTORS),
    "rslora": (peft.LoraConfig(r=4, use_rslora=True, **WHERE), FACTORS),
    "dora": (peft.LoraConfig(r=4, use_dora=True, **WHERE), {*FACTORS, "vector"}),
    "fourierft": (peft.FourierFTConfig(n_frequency=64, **WHERE), {"vector"}),
    "loha": (peft.LoHaConfig(r=4, **WHERE), {"adapter"}),
    "lokr": (peft.LoKrConfig(r=4, **WHERE), {"adapter"}),
    "oft": (peft.OFTConfig(oft_block_size=8, **WHERE), {"adapter"}),
    "hra": (peft.HRAConfig(r=4, **WHERE), {"adapter"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_a_role_and_learns(variant: str, tiny_qwen3: Build, backward: Callable) -> None:
    config, roles = VARIANTS[variant]
    model = peft.get_peft_model(tiny_qwen3(), config)
    mapping = symmetry_map(model, rule="muon")
    assert set(mapping.roles) == roles
    assert {spec.rule for spec in mapping} == {"adamw"}
    optimizer = build_optimizer(model, rule="adamw", lr=1e-2)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    losses = []
    for _ in range(4):
        losses.append(backward(model).item())
        optimizer.step()
    assert losses[-1] < losses[0]
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert moved == {spec.name for spec in mapping}


@pytest.mark.parametrize("rule", ["lora_muon", "lora_pion", "lora_rite"])
@pytest.mark.parametrize("variant", ["pissa", "dora"])
def test_rules_of_pairs_take_the_factors_of_pissa_and_dora(
    variant: str, rule: str, tiny_qwen3: Build, backward: Callable
) -> None:
    model = peft.get_peft_model(tiny_qwen3(), VARIANTS[variant][0])
    optimizer = build_optimizer(model, rule=rule, lr=1e-3, promotion_steps="auto")
    assert {group["rule"] for group in optimizer.param_groups if group["role"].startswith("lora")} == {rule}
    first = backward(model).item()
    for _ in range(4):
        backward(model)
        optimizer.step()
    assert backward(model).item() < first
