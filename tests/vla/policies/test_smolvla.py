"""SmolVLA as a plugin: LeRobot's numbers and checkpoints, our optimizer; whole, frozen and with adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tiny_smolvla import tiny_settings
from torch import Tensor

from rlspec.errors import CheckpointError
from rlspec.vla import RlspecSmolVLAConfig, SpectralOptimizerConfig
from rlspec.vla.policies.smolvla.modeling_smolvla import RlspecSmolVLAPolicy

FEATURES: dict[str, Any] = {
    "input_features": {
        "observation.images.external": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
}
STATS = {
    name: {"mean": torch.zeros(size), "std": torch.ones(size)}
    for name, size in [("observation.state", 8), ("action", 7)]
}


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return {**tiny_settings(folder), **FEATURES, **changes}


def make(folder: Path, **changes: Any) -> RlspecSmolVLAPolicy:
    torch.manual_seed(0)
    return RlspecSmolVLAPolicy(RlspecSmolVLAConfig(**settings(folder, **changes)))


def batch_of(config: PreTrainedConfig) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    preprocessor, _ = make_pre_post_processors(config, dataset_stats=STATS)
    raw = {
        "observation.images.external": torch.rand(2, 3, 64, 64, generator=generator),
        "observation.state": torch.randn(2, 8, generator=generator),
        "action": torch.randn(2, 8, 7, generator=generator),
        "task": ["pick up the red cube", "push"],
    }
    return preprocessor(raw)


def loss_of(policy: Any, batch: dict[str, Any]) -> Tensor:
    noise, time = torch.zeros(2, 8, 32), torch.tensor([0.3, 0.8])
    return policy(dict(batch), noise=noise, time=time)[0]


def test_it_is_lerobots_network_and_reads_its_checkpoints(tiny_vlm: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    stock = SmolVLAPolicy(SmolVLAConfig(**settings(tiny_vlm)))
    stock.save_pretrained(tmp_path)
    ours = RlspecSmolVLAPolicy.from_pretrained(tmp_path)
    assert isinstance(ours.config, RlspecSmolVLAConfig)
    assert ours.config.type == "rlspec_smolvla" and ours.config.chunk_size == 8
    batch = batch_of(ours.config)
    assert batch.keys() == batch_of(stock.config).keys()
    stock.eval()
    assert torch.equal(loss_of(ours, batch), loss_of(stock, batch))
    given = RlspecSmolVLAConfig(**settings(tiny_vlm), pretrained_path=tmp_path)
    again = get_policy_class("rlspec_smolvla").from_pretrained(tmp_path, config=given)
    assert again.config is given and torch.equal(loss_of(again, batch), loss_of(stock, batch))


def test_it_saves_and_loads_itself(tiny_vlm: Path, tmp_path: Path) -> None:
    policy = make(tiny_vlm, optimizer_rule="normuon")
    policy.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path).type == "rlspec_smolvla"
    loaded = RlspecSmolVLAPolicy.from_pretrained(tmp_path)
    assert loaded.config.optimizer_rule == "normuon"
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in policy.state_dict().items())


def test_a_checkpoint_of_another_policy_is_refused(tmp_path: Path) -> None:
    from lerobot.policies.act.configuration_act import ACTConfig

    ACTConfig(device="cpu", push_to_hub=False)._save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a policy of type act, and this loads rlspec_smolvla and smolvla"):
        RlspecSmolVLAPolicy.from_pretrained(tmp_path)


def test_weights_that_lack_what_is_trained_are_refused(tiny_vlm: Path, tmp_path: Path) -> None:
    policy = make(tiny_vlm)
    kept = {key: value for key, value in policy.state_dict().items() if "lm_expert.layers.1.mlp" not in key}
    policy.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(
        CheckpointError, match=r"lacks 3 of 77 trainable parameters, first .*lm_expert.layers.1.mlp.down"
    ):
        RlspecSmolVLAPolicy.from_pretrained(tmp_path)


def test_the_preset_is_lerobots_with_another_rule(tiny_vlm: Path) -> None:
    config = RlspecSmolVLAConfig(**settings(tiny_vlm))
    preset = config.get_optimizer_preset()
    theirs: Any = SmolVLAConfig(**settings(tiny_vlm)).get_optimizer_preset()
    assert isinstance(preset, SpectralOptimizerConfig)
    assert (preset.rule, preset.roles, preset.promotion_steps) == ("muon", "vla", "auto")
    for name in ("lr", "betas", "eps", "weight_decay", "grad_clip_norm"):
        assert getattr(preset, name) == getattr(theirs, name)


def rules_of(policy: Any) -> dict[str, str]:
    optimizer = RlspecSmolVLAConfig.get_optimizer_preset(policy.config).build(policy.get_optim_params())
    return {name: group["rule"] for group in optimizer.param_groups for name in group["param_names"]}


@pytest.mark.parametrize("frozen", [{}, {"freeze_vision_encoder": True}, {"train_expert_only": True}])
def test_what_is_trained_has_a_rule_and_moves(frozen: dict[str, bool], tiny_vlm: Path) -> None:
    policy = make(tiny_vlm, **frozen)
    rules = rules_of(policy)
    trained = {name for name, param in policy.named_parameters() if param.requires_grad}
    assert rules.keys() == trained
    assert {name for name in trained if "vision_model" in name and rules[name] == "muon"} if not frozen else True
    assert all(rules[name] == "pion" for name in trained if "lm_expert" in name and name.endswith("proj.weight"))
    assert rules["model.action_out_proj.weight"] == "adamw"
    before = {name: param.detach().clone() for name, param in policy.named_parameters()}
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    policy.train()
    loss_of(policy, batch_of(policy.config)).backward()
    optimizer.step()
    moved = {name for name, param in policy.named_parameters() if not torch.equal(param, before[name])}
    assert moved == trained


@pytest.mark.filterwarnings("ignore:rule muon updates nothing")
def test_adapters_of_lerobots_peft_path_are_trained(tiny_vlm: Path, tmp_path: Path) -> None:
    make(tiny_vlm).save_pretrained(tmp_path)
    policy = RlspecSmolVLAPolicy.from_pretrained(tmp_path)
    policy.config.pretrained_path = tmp_path
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2})
    rules = rules_of(wrapped)
    assert rules.keys() == {name for name, param in policy.named_parameters() if param.requires_grad}
    assert rules and set(rules.values()) == {"adamw"}
    policy.config.optimizer_rule = "lora_muon"
    assert set(rules_of(wrapped).values()) == {"lora_muon"}
    full = RlspecSmolVLAPolicy.from_pretrained(tmp_path)
    full.config.pretrained_path = tmp_path
    partly = {
        "method_type": "LORA",
        "r": 2,
        "full_training_modules": ["action_time_mlp_out"],
        "target_modules": ["q_proj"],
    }
    found = rules_of(full.wrap_with_peft(peft_cli_overrides=partly))
    assert [rule for name, rule in found.items() if "modules_to_save" in name and "weight" in name] == ["pion"]
