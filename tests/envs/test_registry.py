"""The package's front: ids, suites, tasks, cheap import, clear errors."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import pytest
import rlspec_envs

IDS = {
    "rlspec/FrankaPickPlace-v0",
    "rlspec/FrankaPush-v0",
    "rlspec/FrankaStack-v0",
    "rlspec/FrankaDrawer-v0",
    "rlspec/LiberoSpatial-v0",
    "rlspec/LiberoObject-v0",
    "rlspec/LiberoGoal-v0",
    "rlspec/Libero10-v0",
    "rlspec/Libero90-v0",
}


def test_all_ids_are_registered() -> None:
    assert {name for name in gymnasium.registry if name.startswith("rlspec/")} == IDS


def test_suites_and_tasks() -> None:
    assert rlspec_envs.SUITES == (
        "franka",
        "libero_spatial",
        "libero_object",
        "libero_goal",
        "libero_10",
        "libero_90",
    )
    assert rlspec_envs.list_tasks("franka") == ["pick_place", "push", "stack", "drawer"]


@pytest.mark.parametrize("task", ["pick_place", "push", "stack", "drawer"])
def test_every_franka_task_is_made_by_name(task: str) -> None:
    env = rlspec_envs.make_env("franka", task)
    plain = env.unwrapped
    assert (plain.suite, plain.task) == ("franka", task)
    assert plain.task_description == plain.instruction
    env.close()


def test_importing_is_cheap() -> None:
    code = "import sys, rlspec_envs; print([name for name in ('mujoco', 'torch', 'OpenGL') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"


def test_unknown_names_are_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="suite 'libero_spatal' is unknown; did you mean libero_spatial"):
        rlspec_envs.list_tasks("libero_spatal")
    with pytest.raises(ValueError, match="task 'pickplace' of suite franka is unknown: choose one of pick_place"):
        rlspec_envs.make_env("franka", "pickplace")
    with pytest.raises(ValueError, match="no environment of rlspec"):
        rlspec_envs.make_expert(gymnasium.make("CartPole-v1"))
