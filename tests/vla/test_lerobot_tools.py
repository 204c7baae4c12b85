"""Our policies and environments under LeRobot's own commands: training, saving, resuming, evaluating."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlspec.errors import UserError
from rlspec.vla.ignored import refuse_ignored_settings

TINY: dict[str, Any] = {
    "image_size": 64, "head_width": 32, "head_heads": 2, "max_text_length": 32, "device": "cpu", "push_to_hub": False,
}  # fmt: skip


def settings_of(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    if kind == "rlspec_smolvla":
        from tiny_smolvla import tiny_settings

        return tiny_settings(request.getfixturevalue("tiny_vlm"))
    if kind == "rlspec_pi05":
        return dict(request.getfixturevalue("tiny_pi05"))
    return TINY


def arguments(section: str, values: dict[str, Any]) -> list[str]:
    return [
        f"--{section}.{key}={json.dumps(value) if not isinstance(value, str) else value}"
        for key, value in values.items()
    ]


def data(folder: Path, output: Path, **changes: Any) -> list[str]:
    settings = {
        "output_dir": output, "steps": 4, "save_freq": 4, "env_eval_freq": 0, "batch_size": 2, "num_workers": 0,
    } | changes  # fmt: skip
    return [
        "--dataset.repo_id=local/images", f"--dataset.root={folder}",
        *(f"--{key}={value}" for key, value in settings.items()),
    ]  # fmt: skip


# The way is the same for every policy: the default run takes it with one.
OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("rlspec_adapter", "rlspec_smolvla", "rlspec_pi05")]


@pytest.mark.parametrize("kind", ["rlspec_flow", *OTHERS])
def test_lerobot_trains_resumes_and_evaluates(
    kind: str, images_dataset: Path, lerobot: Callable[..., None], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = tmp_path / "run"
    lerobot(
        "train",
        f"--policy.type={kind}",
        *arguments("policy", settings_of(kind, request)),
        *data(images_dataset, output),
    )
    stored = output / "checkpoints/000004/pretrained_model"
    lerobot("train", f"--config_path={stored / 'train_config.json'}", "--resume=true", "--steps=6")
    state = output / "checkpoints/000006/training_state"
    assert json.loads((state / "training_step.json").read_text())["step"] == 6
    groups = json.loads((state / "optimizer_param_groups.json").read_text())
    assert {"muon", "pion", "adamw"} == {group["rule"] for group in groups}
    lerobot(
        "eval", f"--policy.path={output / 'checkpoints/000006/pretrained_model'}", "--env.type=rlspec_franka",
        "--env.task=pick_place", "--env.image_size=64", "--env.episode_length=3", "--eval.n_episodes=2",
        "--eval.batch_size=2", "--eval.use_async_envs=false", f"--output_dir={tmp_path / 'eval'}",
    )  # fmt: skip
    found = json.loads((tmp_path / "eval/eval_info.json").read_text())
    assert found["overall"]["n_episodes"] == 2
    assert found["overall"]["pc_success"] == 0.0
    assert list(found["per_group"]) == ["franka_pick_place"]


SPECTRAL = ("--optimizer.type=spectral", "--optimizer.lr=1e-3")
SCHEDULER = (
    "--scheduler.type=cosine_decay_with_warmup", "--scheduler.num_warmup_steps=1", "--scheduler.num_decay_steps=4",
    "--scheduler.peak_lr=1e-3", "--scheduler.decay_lr=1e-4",
)  # fmt: skip
OURS = ("--policy.type=rlspec_adapter", "--policy.push_to_hub=false", "--policy.device=cpu")


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_an_optimizer_that_would_be_ignored_is_refused(
    kind: str, lerobot: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = OURS if kind == "ours" else ("--policy.type=act", *OURS[1:])
    command = [*policy, *data(tmp_path / "none", tmp_path / "run"), *SPECTRAL]
    with pytest.raises(SystemExit):
        lerobot("train", *command)
    said = capsys.readouterr().err
    assert "would ignore --optimizer.type, --optimizer.lr" in said
    assert "--use_policy_training_preset=false" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [["--optimizer.type=adamw"], SCHEDULER], ids=["optimizer", "scheduler"])
def test_what_is_not_ours_is_refused_with_our_policies(
    given: list[str], lerobot: Callable[..., None], tmp_path: Path
) -> None:
    """LeRobot reads it without us; it would be replaced when our policy is asked for its preset."""
    with pytest.raises(UserError, match=f"would ignore {given[0].partition('=')[0]}"):
        lerobot("train", *OURS, *data(tmp_path / "none", tmp_path / "run"), *given)


def test_an_optimizer_in_a_config_file_is_refused(lerobot: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"optimizer": {"type": "adamw", "lr": 1e-3}, "steps": 4}))
    command = [f"--config_path={file}", *OURS, *data(tmp_path / "none", tmp_path / "run")]
    with pytest.raises(UserError, match="would ignore optimizer of the config file"):
        lerobot("train", *command)


def test_resuming_refuses_settings_that_the_state_brings(lerobot: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "train_config.json"
    file.write_text(json.dumps({"checkpoint_path": None, "resume": True}))
    command = [f"--config_path={file}", *OURS, *data(tmp_path / "none", tmp_path / "run"), "--resume=true"]
    refuse_ignored_settings([*command, "--optimizer.grad_clip_norm=1.0"])
    with pytest.raises(UserError, match=r"would ignore --optimizer\.lr: a resumed optimizer has"):
        refuse_ignored_settings([*command, "--optimizer.lr=1", "--optimizer.grad_clip_norm=1.0"])


@pytest.mark.parametrize("section", ["optimizer", "scheduler"])
def test_what_lerobot_stores_and_what_it_takes_is_not_refused(section: str, tmp_path: Path) -> None:
    """A stored config has the preset it was trained with; a command without the preset uses what it is given."""
    file = tmp_path / "train_config.json"
    content: dict[str, Any] = {section: {"type": "spectral"}, "checkpoint_path": None}
    file.write_text(json.dumps(content))
    refuse_ignored_settings([f"--config_path={file}"])
    del content["checkpoint_path"]
    file.write_text(json.dumps(content | {"use_policy_training_preset": False}))
    refuse_ignored_settings([f"--config_path={file}", f"--{section}.lr=1"])
    file.write_text(json.dumps(content))
    refuse_ignored_settings([f"--config_path={file}", "--use_policy_training_preset=false"])
    with pytest.raises(UserError, match=f"{section} of the config file"):
        refuse_ignored_settings([f"--config_path={file}"])
    with pytest.raises(UserError, match=f"{section} of the config file"):
        refuse_ignored_settings(["--config_path", str(file), "--use_policy_training_preset=true"])
    refuse_ignored_settings(["--optimizers.lr=1", "--steps=4"])


@pytest.mark.filterwarnings("ignore:rule muon updates nothing")
def test_lerobots_checkpoints_are_fine_tuned_with_adapters(
    images_dataset: Path, tiny_vlm: Path, lerobot: Callable[..., None], tmp_path: Path
) -> None:
    """From a folder of type smolvla, with LoRA, evaluated in the simulator while training."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from tiny_smolvla import tiny_settings

    images = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for name in ("external", "wrist")
    }
    stock = SmolVLAConfig(
        **tiny_settings(tiny_vlm),
        input_features={**images, "observation.state": PolicyFeature(FeatureType.STATE, (8,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
    )
    SmolVLAPolicy(stock).save_pretrained(tmp_path / "stock")
    for pipeline in make_pre_post_processors(stock):
        pipeline.save_pretrained(tmp_path / "stock")
    output = tmp_path / "run"
    lerobot(
        "train", "--policy.type=rlspec_smolvla", f"--policy.pretrained_path={tmp_path / 'stock'}",
        *arguments("policy", tiny_settings(tiny_vlm)), "--peft.method_type=LORA", "--peft.r=2",
        *data(images_dataset, output, steps=2, save_freq=2, env_eval_freq=2), "--env.type=rlspec_franka",
        "--env.image_size=64", "--env.episode_length=2", "--eval.n_episodes=1", "--eval.batch_size=1",
    )  # fmt: skip
    groups = json.loads((output / "checkpoints/000002/training_state/optimizer_param_groups.json").read_text())
    assert {group["rule"] for group in groups} == {"adamw"}
    assert all("lora_" in name for group in groups for name in group["param_names"])
    assert (output / "checkpoints/000002/pretrained_model/adapter_model.safetensors").is_file()
    assert list((output / "eval").rglob("*.mp4"))


@pytest.mark.slow
@pytest.mark.timeout(900)  # each worker imports LeRobot
def test_evaluation_in_worker_processes(tmp_path: Path, lerobot: Callable[..., None]) -> None:
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_pre_post_processors

    from rlspec.vla import RlspecAdapterConfig
    from rlspec.vla.policies.adapter.modeling_adapter import RlspecAdapterPolicy

    images = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for name in ("external", "wrist")
    }
    config = RlspecAdapterConfig(
        **TINY,
        input_features={**images, "observation.state": PolicyFeature(FeatureType.STATE, (8,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
    )
    RlspecAdapterPolicy(config).save_pretrained(tmp_path / "policy")
    stats = {
        "observation.state": {"mean": torch.zeros(8), "std": torch.ones(8)},
        "action": {"mean": torch.zeros(7), "std": torch.ones(7)},
    }
    for pipeline in make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(tmp_path / "policy")
    lerobot(
        "eval", f"--policy.path={tmp_path / 'policy'}", "--env.type=rlspec_franka", "--env.task=pick_place,push",
        "--env.image_size=64", "--env.episode_length=3", "--eval.n_episodes=2", "--eval.batch_size=2",
        "--eval.use_async_envs=true", f"--output_dir={tmp_path / 'eval'}",
    )  # fmt: skip
    found = json.loads((tmp_path / "eval/eval_info.json").read_text())
    assert list(found["per_group"]) == ["franka_pick_place", "franka_push"]
    assert found["overall"]["n_episodes"] == 4
