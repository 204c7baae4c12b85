"""pi0.5 as a plugin: what no loss reaches is frozen, LeRobot's checkpoints load, others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy

from rlspec.errors import CheckpointError
from rlspec.vla import RlspecPI05Config
from rlspec.vla.policies.pi05.modeling_pi05 import RlspecPI05Policy

FEATURES: dict[str, Any] = {
    "input_features": {
        "observation.images.external": PolicyFeature(FeatureType.VISUAL, (3, 56, 56)),
        "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
}


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "observation.images.external": torch.rand(2, 3, 56, 56, generator=generator),
        "observation.language.tokens": torch.randint(0, 250, (2, 12), generator=generator),
        "observation.language.attention_mask": torch.ones(2, 12, dtype=torch.bool),
        "action": torch.randn(2, 8, 7, generator=generator),
    }


def make(settings: dict[str, Any], **changes: Any) -> RlspecPI05Policy:
    torch.manual_seed(0)
    policy = RlspecPI05Policy(RlspecPI05Config(**settings, **FEATURES, **changes))
    for name, param in policy.named_parameters():
        if "dense" in name:  # adaptive norms start at zero, where nothing reaches the time
            torch.nn.init.normal_(param, std=0.1)
    return policy


@pytest.mark.parametrize("frozen", [{}, {"freeze_vision_encoder": True}, {"train_expert_only": True}])
def test_all_that_is_trained_gets_a_gradient_and_nothing_else(
    frozen: dict[str, bool], tiny_pi05: dict[str, Any]
) -> None:
    policy = make(tiny_pi05, **frozen)
    trained = {name for name, param in policy.named_parameters() if param.requires_grad}
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    assert {name for group in optimizer.param_groups for name in group["param_names"]} == trained
    for param in policy.parameters():
        param.requires_grad_(True)
    policy.train()
    policy(batch())[0].backward()
    reached = {name for name, param in policy.named_parameters() if param.grad is not None and param.grad.any()}
    if not frozen:
        assert trained == reached
    assert trained <= reached


def test_rules_of_every_part(tiny_pi05: dict[str, Any]) -> None:
    policy = make(tiny_pi05)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    rules = {name: group["rule"] for group in optimizer.param_groups for name in group["param_names"]}
    assert not any("lm_head" in name for name in rules)
    expert = "model.paligemma_with_expert.gemma_expert.model.layers.0."
    assert rules[f"{expert}self_attn.q_proj.weight"] == rules["model.time_mlp_in.weight"] == "pion"
    assert rules[f"{expert}input_layernorm.dense.weight"] == rules["model.action_out_proj.weight"] == "adamw"
    tower = "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.0."
    assert rules[f"{tower}self_attn.q_proj.weight"] == "muon"


def test_rules_of_every_part_as_openpis_runs_have_them(tiny_pi05: dict[str, Any]) -> None:
    policy = make(tiny_pi05, optimizer_roles="vla_openpi", optimizer_paper_scale=2.0, optimizer_promotion_steps=0.0)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    rules = {name: group["rule"] for group in optimizer.param_groups for name in group["param_names"]}
    expert = "model.paligemma_with_expert.gemma_expert.model.layers.0."
    assert rules[f"{expert}input_layernorm.dense.weight"] == rules[f"{expert}mlp.down_proj.weight"] == "pion"
    assert rules["model.action_out_proj.weight"] == "adamw"
    tower = "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model."
    assert rules[f"{tower}embeddings.patch_embedding.weight"] == "adamw"
    assert rules[f"{tower}encoder.layers.0.self_attn.q_proj.weight"] == "muon"


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_follows_an_episodes_end_is_no_target(
    reduction: str, tiny_pi05: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are numbers that the robot has not."""
    policy, given = make(tiny_pi05), batch()
    torch.manual_seed(0)
    ours = policy(given, reduction=reduction)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(ours, PI05Policy.forward(policy, given, reduction=reduction)[0])
    losses = torch.zeros(2, 8, 32)
    losses[0, 3:], losses[..., 7:], losses[0, :3, :7], losses[1, :, :7] = 1e3, 1e3, 2.0, 4.0
    monkeypatch.setattr(policy.model, "forward", lambda *_: losses)
    given["action_is_pad"] = torch.zeros(2, 8, dtype=torch.bool)
    given["action_is_pad"][0, 3:] = True
    expected = torch.tensor([2.0, 4.0]) if reduction == "none" else torch.tensor((3 * 2.0 + 8 * 4.0) / 11)
    torch.testing.assert_close(policy(given, reduction=reduction)[0], expected)


def test_it_reads_lerobots_checkpoints(tiny_pi05: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(3)
    stock = PI05Policy(PI05Config(**tiny_pi05, **FEATURES))
    stock.save_pretrained(tmp_path)
    ours = RlspecPI05Policy.from_pretrained(tmp_path)
    assert ours.config.type == "rlspec_pi05"
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in stock.state_dict().items())
    ours.save_pretrained(tmp_path / "ours")
    again = RlspecPI05Policy.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in stock.state_dict().items())


def test_weights_that_do_not_fit_are_refused(tiny_pi05: dict[str, Any], tmp_path: Path) -> None:
    """LeRobot prints a line and goes on with random weights."""
    policy = make(tiny_pi05)
    policy.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="size mismatch"):
        RlspecPI05Policy.from_pretrained(tmp_path, config=RlspecPI05Config(**tiny_pi05, **FEATURES, max_action_dim=16))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        RlspecPI05Policy.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors"):
        RlspecPI05Policy.from_pretrained(tmp_path)
