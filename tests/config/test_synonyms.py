"""Other tools' words, on every command line: a wrong key is answered with the key of the same meaning."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from readme_commands import judge

from rlspec import cli
from rlspec.config.command import CommandLine
from rlspec.config.sources import read_knobs
from rlspec.config.synonyms import _KNOBS, _TABLE, same_meaning

# Command, what it needs beside the wrong key, and: wrong key -> the one that is meant.
WORDS = {
    "train": (
        "recipe=grpo_math",
        "learning_rate=optim.lr max_steps=trainer.max_steps num_train_epochs=trainer.num_train_epochs ckpt=model "
        "num_generations=batch.samples_per_prompt train_batch_size=batch.prompts_per_step beta=trainer.beta "
        "clip_ratio=trainer.epsilon optimizer=optim dataset_name=data model_name_or_path=model "
        "save_freq=checkpoints.every adam_lr=optim.adamw_lr_scale adapter_name_or_path=model.lora.path "
        "use_flash_attention=model.attn_implementation "
        "max_completion_length=trainer.max_completion_length wandb.enable=report.wandb output=output_dir "
        "resume_from_checkpoint=resume kl_coef=trainer.beta eval_steps=evaluation.every actor_rollout_ref.rollout.n="
        "batch.samples_per_prompt top_p=trainer.top_p per_device_train_batch_size=batch.micro_batch "
        "lr_scheduler_type=trainer.lr_scheduler_type data.test_size=data.test_fraction "
        "torch_dtype=model.weights_dtype model.dtype=model.weights_dtype",
    ),
    "evaluate": ("env=franka policy=expert", "num_episodes=episodes n=episodes output_dir=out num_workers=workers"),
    "compare": ("recipe=grpo_math", "learning_rate=optim.lr num_workers=workers jobs=workers save_dir=out"),
    "diagnose": ("what=spectra model=tiny", "output=out ckpt=checkpoint"),
    "plan": ("model=qwen3_4b", "num_gpus=gpus n_gpus=gpus"),
    "report": ("run=/", "output=out"),
    "trials": ("policies=hold tasks=pick_place robot=mujoco", "output_dir=out"),
    "truncate": ("before=/ after=/ out=/x keep=0.9", "output_dir=out"),
    "collect": (
        "env=franka",
        "num_episodes=episodes n=episodes output_dir=out n_workers=workers noise_std=noise tasks=task random_seed=seed "
        "output_format=format use_videos=video failure_rate=failures",
    ),
    "convert": (
        "source=droid_raw path=/ out=/x",
        "dataset=path output=out resolution=image_size controller=execution_law num_proc=workers max_episodes=limit "
        "camera_names=cameras action_type=action_space framerate=fps",
    ),
    "adopt": ("source=openpi path=/ out=/x", "output_dir=out stats=norm_stats camera_names=cameras"),
    "serve": (
        "policy=hold",
        "ckpt=checkpoint checkpoint_path=checkpoint model=checkpoint policy.dir=checkpoint policy.path=checkpoint "
        "ip=host address=host default_prompt=prompt api_key=token action_horizon=n_action_steps hz=control_hz "
        "chunk_size=horizon",
    ),
    "stats": ("path=/", "dataset=path repo_id=path repair=--fix reference=against export=norm_stats"),
    "doctor": ("robot=mujoco", "ip=host url=server robot_type=robot camera_names=cameras"),
    "grade": ("answer=4 gold=4", "prediction=answer ground_truth=gold num_workers=workers dataset=data gt=gold"),
    "rules": ("", "optimizer=name"),
    "symmetry": ("model=tiny", "learning_rate=optim.lr output=out preset=roles"),
    "deploy": (
        "robot=dry_run policy=hold",
        "duration_s=seconds duration=seconds time=seconds minutes=seconds ckpt=checkpoint checkpoint_path=checkpoint "
        "model=checkpoint ip=host address=host robot_ip=host robot.type=robot robot.ip=host "
        "instruction=prompt hz=rate fps=rate "
        "open_loop_horizon=n_action_steps output_dir=out remote_host=server server_address=server dry_run=mode",
    ),
}
OF_A_POLICY = (
    "recipe=vla_franka",
    "roles=optim.roles scheduler.type=training.scheduler.type policy.repo_id=push policy.push_to_hub=push "
    "early_stopping_threshold=evaluation.stop_at_success "
    "policy.chunk_size=policy.options.chunk_size per_device_train_batch_size=training.batch_size",
)
CASES = [
    (command, beside, *pair.split("="))
    for command, (beside, pairs) in (*WORDS.items(), ("train", OF_A_POLICY))
    for pair in pairs.replace("rollout.n= ", "rollout.n=").split()
]


def door(command: str) -> object:
    return importlib.import_module(f"rlspec.{command}.__main__" if command == "deploy" else f"rlspec.{command}")


@pytest.mark.parametrize(("command", "beside", "wrong", "meant"), CASES, ids=lambda value: value.replace(" ", "_"))
def test_a_wrong_key_is_answered_with_the_key_of_the_same_meaning(
    command: str, beside: str, wrong: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door(command).main([*beside.split(), f"{wrong}=3"]) == 2  # type: ignore[attr-defined]
    error = capsys.readouterr().err
    assert f"did you mean {meant}" in error and error.startswith(f"{wrong}"), error
    assert error.count("\n") == 1


def test_every_command_is_in_the_table_above() -> None:
    """A new command says what its keys are called elsewhere."""
    ours = {name for name in cli.commands() if any(isinstance(each, type) and issubclass(each, CommandLine)
            for each in vars(door(name)).values())}  # fmt: skip
    assert ours <= WORDS.keys()


def test_a_wrong_key_costs_no_heavy_import(tmp_path: Path) -> None:
    lines = [[command, *beside.split(), "zzz=1"] for command, (beside, _) in WORDS.items()]
    for line, verdict in zip(lines, judge(lines, tmp_path), strict=True):
        assert not verdict.understood, f"{line}: its work began"
        assert "zzz" in verdict.output and "\n" not in verdict.output, verdict.output


def test_the_whole_word_goes_before_its_last_part() -> None:
    assert same_meaning("robot.type", lambda key: key in ("robot", "source")) == ["robot"]
    assert same_meaning("learning-rate", lambda key: key == "optim.lr") == ["optim.lr"]
    assert same_meaning("seconds", lambda key: True) == []
    assert same_meaning("no_such_word", lambda key: True) == []


def test_no_meaning_is_empty_and_the_first_words_are_ours() -> None:
    assert all(ours and words > set(ours) for ours, words in _TABLE)
    assert {*_KNOBS.split()} <= read_knobs("GRPOConfig").keys()
