"""`python -m rlspec.collect`: mistakes are one line, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlspec import collect
from rlspec.collect import CollectCommand


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("episodes=3", "env: required; add env=NAME; allowed: franka, franka_droid, "),
        ("env=franka_pick_plase", "env=franka_pick_plase: unknown; did you mean franka_pick_place?"),
        ("env=franka task=pik_place", "task=pik_place: franka has no such task; did you mean pick_place?"),
        ("env=franka task=push,pul", "task=pul: franka has no such task"),
        ("env=franka episode=3", "episode=3: unknown key; did you mean episodes?"),
        ("env=franka episodes=0", "episodes=0: must be a whole number >= 1"),
        ("env=franka episodes=many", "episodes=many: must be a whole number >= 1"),
        ("env=franka noise=-1e-1", "noise=-0.1: must be a number >= 0"),
        ("env=franka video=maybe", "video=maybe: must be true or false"),
        ("env=franka out=", "out=: no value; leave it out, or give one"),
        ("format=droid episodes=3", "format=droid: must be lerobot, droid_raw; did you mean droid_raw?"),
        ("format=droid_raw video=true", "video=true: only with format=lerobot; leave it out"),
        ("env=franka failures=0.1", "failures=0.1: only with format=droid_raw; leave it out"),
        ("format=droid_raw failures=-1", "failures=-1: must be a number >= 0"),
        ("format=droid_raw idle_steps=3", "idle_steps=3: must be a list of 2, each a whole number"),
        ("format=droid_raw lab=a/b", "lab=a/b: must be text"),
        ("env=franka fast", "'fast' is no setting: write key=value, for example episodes=200"),
    ],
)
def test_mistakes_are_one_line(arguments: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect.main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_mistake_costs_no_imports() -> None:
    code = (
        "import sys; from rlspec.collect import main; main(['env=franka', 'task=pul']);"
        "print([name for name in ('torch', 'lerobot', 'mujoco', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "franka has no such task" in done.stderr


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert collect.main([]) == 0
    usage = capsys.readouterr().out
    keys = ("env", "task", "episodes", "out", "seed", "workers", "noise", "video", "format", "failures", "lab")
    assert all(f"{key}=" in usage for key in keys)


def test_settings_arrive(tmp_path: Path) -> None:
    given = "env=franka task=push,stack episodes=7 seed=3 workers=4 noise=1e-1 noise_share=0.5 video=true"
    line = CollectCommand.read([*given.split(), "env.image_size=32", "env.robot=panda", f"out={tmp_path}/x"])
    env = line.environment()
    assert (env.suite, env.tasks, line.out) == ("franka", ["push", "stack"], tmp_path / "x")
    assert env.options == {"action_space": "delta_eef", "image_size": 32, "robot": "panda"}
    found: dict[str, Any] = line.settings.model_dump()
    expected = {"episodes": 7, "seed": 3, "workers": 4, "noise": 0.1, "noise_share": 0.5, "video": True}
    assert found == expected


def test_recordings_have_settings_and_an_environment_of_their_own() -> None:
    line = CollectCommand.read(["format=droid_raw", "episodes=3", "failures=0.1", "lab=X", "env.image_size=32"])
    env = line.environment()
    assert (env.name, env.options["action_space"], env.options["image_size"]) == ("franka_droid", "joint_velocity", 32)
    assert (type(line.settings).__name__, line.settings.episodes, line.out) == ("Recordings", 3, None)
