"""LoRA on some parts of a policy while others are trained whole: trained, saved, loaded, resumed, moved, acted with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training_cases import MadeUpSamples, course, equal, make_recipe, resume, train

from rlspec.errors import CheckpointError, ConfigError
from rlspec.optim import build_optimizer
from rlspec.vla.evaluation.policy_actor import PolicySource
from rlspec.vla.evaluation.policy_actor import load_policy as act
from rlspec.vla.policies.adapters import owning_modules
from rlspec.vla.training.policy import LoadedPolicy, load_policy

LORA = "policy.lora={r: 2, target_modules: [q_proj, v_proj, down_proj], full_training: [action, connector]}"
HEAD = "policy.options.head=vla_adapter"  # whose layers have the names of the backbone's


def adapters(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on a policy that is built anew."""
    return train(tmp_path_factory.mktemp("whole"), LORA, "training.ema_decay=0.5", "checkpoints.every=2")


def test_adapters_and_whole_parts_move_and_nothing_else_is_kept_or_moves(whole: Path) -> None:
    base, saved = load_file(whole / "base" / "model.safetensors"), adapters(whole, 4)
    copies = {name.removeprefix("base_model.model."): value for name, value in saved.items() if "lora_" not in name}
    parts = ("model.action_head.", "model.action_queries.", "model.proprio_projector.", "model.backbone.multi_modal")
    assert copies.keys() == {name for name in base if name.startswith(parts)}
    assert sum(not torch.equal(base[name], value) for name, value in copies.items()) > 0.9 * len(copies)
    pairs = [name for name in saved if "lora_B" in name]
    assert pairs and all("language_model" in name for name in pairs), "not within the head, which is trained whole"
    assert all(saved[name].any() for name in pairs)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    stopped = train(tmp_path, LORA, "training.ema_decay=0.5", "checkpoints.every=2", stop_after=2)
    resume(stopped)
    assert equal(adapters(stopped, 4), adapters(whole, 4))
    assert course(stopped)[-1] == course(whole)[-1]


def test_a_moved_run_acts_with_its_head_and_its_adapters(whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(whole, moved)
    saved, original = moved / "checkpoints" / "checkpoint-4", whole / "checkpoints" / "checkpoint-4"
    away = whole.with_name("away")
    whole.rename(away)
    try:
        actor = act(PolicySource(str(saved), device="cpu"))
        lone = tmp_path / "lone"
        shutil.copytree(saved, lone)
        with pytest.raises(CheckpointError, match=r"its adapters belong to the policy in .*base, which is not there"):
            act(PolicySource(str(lone), device="cpu"))
    finally:
        away.rename(whole)
    weights = dict(actor.policy.named_parameters())
    for name, value in adapters(whole, 4).items():
        loaded = next(
            weights[key] for key in weights if key.replace(".default", "").replace("modules_to_save.", "") == name
        )
        assert torch.equal(loaded, value), name
    first = chunk(act(PolicySource(str(original), device="cpu")))
    assert torch.equal(chunk(actor), first)
    with actor.policy.disable_adapter():
        assert not torch.allclose(chunk(actor), first, atol=1e-3), "without them it is the policy below"


def chunk(actor: Any) -> torch.Tensor:
    batch = MadeUpSamples().take(np.arange(2))
    batch = {key: value.float() / 255 if "images" in key else value for key, value in batch.items()}
    del batch["action"], batch["action_is_pad"]
    return actor.policy.predict_action_chunk(actor.preprocessor(batch))


def loaded(folder: Path, *overrides: str) -> nn.Module:
    return load(folder, *overrides).policy


def load(folder: Path, *overrides: str) -> LoadedPolicy:
    settings = make_recipe(folder, *overrides).policy
    return load_policy(settings, MadeUpSamples(), device="cpu", seed=3, resume=None)  # type: ignore[arg-type]


def test_a_new_head_on_pretrained_weights_is_trained_whole(tmp_path: Path) -> None:
    load(tmp_path).save(tmp_path / "pretrained", step=1)
    file = tmp_path / "pretrained" / "model.safetensors"
    before = {name: value + 1 for name, value in load_file(file).items()}
    save_file(before, file, {"format": "pt"})
    policy = loaded(tmp_path, f"policy.path={tmp_path / 'pretrained'}", "policy.fresh=[action]", LORA)
    heads = {name: value for name, value in policy.named_parameters() if "modules_to_save" in name}
    fc2 = next(
        value for name, value in heads.items() if name.endswith("action_head.modules_to_save.default.fc2.weight")
    )
    assert fc2.requires_grad and not torch.equal(fc2, before["model.action_head.fc2.weight"])
    trained = {name for name, value in policy.named_parameters() if value.requires_grad}
    assert trained == {name for name, _ in policy.named_parameters() if "modules_to_save" in name or "lora_" in name}


@pytest.mark.parametrize("head", ["bridge", "vla_adapter_pro"])
def test_the_map_claims_pairs_as_pairs_and_the_whole_head_as_a_head(tmp_path: Path, head: str) -> None:
    policy = loaded(tmp_path, LORA, f"policy.options.head={head}")
    optimizer = build_optimizer(policy, lr=1e-3, rule="lora_muon")
    assert optimizer.symmetry is not None
    pairs = [spec for spec in optimizer.symmetry if "lora_" in spec.name]
    assert pairs and {spec.rule for spec in pairs} == {"lora_muon"}
    specs = list(build_optimizer(policy, lr=1e-3, rule="muon", roles="vla").symmetry or ())
    names = {name for name, value in policy.named_parameters() if value.requires_grad}
    assert [spec.name for spec in specs] == [name for name, _ in policy.named_parameters() if name in names]
    keys = [spec for spec in specs if spec.modality == "action" and "k_" in spec.name and spec.name.endswith("weight")]
    assert keys and {(spec.rule, spec.role) for spec in keys} == {("pion", "attention.k")}


def test_a_full_part_that_a_policy_lacks_is_named(tmp_path: Path) -> None:
    policy = loaded(tmp_path)
    assert "model.action_head" in owning_modules(policy, ["action"])
    with pytest.raises(ConfigError, match=r"full_training=vision: the policy has no such part; it has none"):
        owning_modules(nn.Linear(2, 2), ["vision"])


def test_adapters_without_a_start_or_beside_a_frozen_new_part_or_on_adapters_are_refused(
    tmp_path: Path, whole: Path
) -> None:
    with pytest.raises(ConfigError, match=r"add policy.path, or name the parts that are new"):
        make_recipe(tmp_path, "policy.lora={r: 4}")
    with pytest.raises(ConfigError, match=r"policy.fresh: adapters would leave action as it begins; add it to"):
        make_recipe(tmp_path, "policy.path=someone/base", "policy.fresh=[action]", "policy.lora={r: 4}")
    path = f"policy.path={whole / 'checkpoints' / 'checkpoint-4'}"
    with pytest.raises(ConfigError, match=r"policy.lora: .* holds adapters, which are trained further; drop"):
        loaded(tmp_path, path, LORA)
    further = loaded(tmp_path, path)
    assert sum(value.requires_grad for value in further.parameters()) == len(adapters(whole, 4))
