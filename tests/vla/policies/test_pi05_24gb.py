"""The recipe for 24 GB takes steps on a tiny pi0.5: its parts go together, not only in the account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from test_pi05 import batch, make

from rlspec.config.load import load_vla_recipe
from rlspec.optim import build_optimizer
from rlspec.vla.policies.adapters import add_adapters
from rlspec.vla.policies.recompute import enable_checkpointing


def test_the_recipe_for_24_gb_takes_a_step(tiny_pi05: dict[str, Any]) -> None:
    """bfloat16 weights, adapters beside a whole expert, layers that are computed again."""
    policy = make(tiny_pi05, dtype="bfloat16")
    policy.config.pretrained_path = Path("base")
    recipe = load_vla_recipe(["recipe=vla_libero", "policy=pi05_24gb"])
    assert recipe.policy.lora is not None
    adapted = add_adapters(policy, recipe.policy.lora).train()
    enable_checkpointing(adapted)
    optimizer = build_optimizer(adapted, lr=0.1, rule="muon", roles="vla")
    before = {name: value.detach().clone() for name, value in adapted.named_parameters()}
    for _ in range(2):  # the first factors of adapters move in the second step
        with torch.autocast("cpu", torch.bfloat16):
            loss = adapted(batch())[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in adapted.named_parameters() if not torch.equal(value, before[name])}
    trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    assert moved == trained.keys(), "also no adapter where no loss reaches, as in the language model's last layer"
    assert any("lora_A" in name for name in moved) and any("action_out_proj.modules_to_save" in name for name in moved)
    halves = [value for value in trained.values() if value.dtype == torch.bfloat16]
    assert halves and all(optimizer.state[value]["master"].dtype == torch.float32 for value in halves)
