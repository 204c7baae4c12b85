"""Every rule and every preset builds an optimizer that learns a batch on a real, tiny Qwen3, as a run builds it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlspec.config.load import load_recipe
from rlspec.config.rules import list_optimizers
from rlspec.optim import RULES, build_optimizer
from rlspec.rlvr.session import optimizer_factory

GATED = {"pion_paper": "k_p = 0 moves only matrices of which one direction holds two thirds: none of these"}
RATES = {"auon": "0.1"}  # as long as the gradient, and no longer: the paper's rate is 0.24
ARCHITECTURE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 64,
    "tie_word_embeddings": True,
}


def tiny(lora: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**ARCHITECTURE))
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")) if lora else model


@pytest.mark.parametrize("optim", list_optimizers())
def test_it_builds_and_learns_one_batch(optim: str) -> None:
    adapters = ["model.lora.r=4"] if "lora" in optim else []
    rate = f"optim.lr={RATES.get(optim, '0.003')}"
    section = load_recipe(["recipe=grpo_math", f"optim={optim}", rate, *adapters]).optim
    assert section.name == optim and section.rule == (optim if optim in RULES else section.rule)
    pairs = RULES[section.rule].kind == "pair"
    model = tiny(lora=pairs)
    if not pairs:  # only what the rule updates, or AdamW on the rest would do the learning
        for name, param in model.named_parameters():
            param.requires_grad = param.ndim > 1 and "embed" not in name
    optimizer = optimizer_factory(section)(model)
    rules = {group["rule"] for group in optimizer.param_groups}
    if section.roles == "symmetric":
        assert rules == {section.rule, "row_then_polar", "column_then_polar"}
    else:
        assert rules == {section.rule}
    tokens = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if optim in GATED:
        assert losses[-1] > losses[0] - 0.02
        assert set(optimizer.inactive_spectral_groups()) >= {"mlp.gate", "mlp.up", "mlp.down"}
    else:
        assert losses[-1] < losses[0] - 0.05


def test_options_of_a_recipe_reach_the_rule() -> None:
    arguments = ["recipe=grpo_math", "optim=muon", "optim.options.schedule=cans", "optim.roles={mlp: {rule: pion}}"]
    section = load_recipe([*arguments, "optim.overrides=[{pattern: layers.0, lr_scale: 0.5}]"]).optim
    groups = optimizer_factory(section)(tiny(lora=False)).param_groups
    attention = [group for group in groups if group["role"] == "attention.q"]
    assert [group["schedule"] for group in attention] == ["cans", "cans"]
    assert sorted(group["lr"] / section.lr for group in attention) == pytest.approx([0.5, 1.0])
    assert {group["rule"] for group in groups if group["role"].startswith("mlp")} == {"pion"}


def test_a_role_gets_another_rule_and_its_options() -> None:
    optimizer = build_optimizer(tiny(lora=False), rule="muon", roles={"attention.v": "normuon"}, variance_beta=0.5)
    rules = {group["role"]: group["rule"] for group in optimizer.param_groups}
    assert rules["attention.v"] == "normuon"
    assert rules["attention.q"] == "muon"
