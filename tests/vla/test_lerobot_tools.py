"""Our policies and environments under LeRobot's own commands: training, saving, resuming, evaluating."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlspec.errors import UserError

TINY = {
    "image_size": 64, "head_width": 32, "head_heads": 2, "max_text_length": 32, "device": "cpu", "push_to_hub": False,
}  # fmt: skip


def settings_of(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    if kind == "rlspec_smolvla":
        from rlspec.vla.policies.smolvla.tiny import tiny_settings

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


@pytest.mark.parametrize("kind", ["rlspec_adapter", "rlspec_flow", "rlspec_smolvla", "rlspec_pi05"])
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
