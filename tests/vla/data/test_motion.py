"""Signs that are wrong are named; what is right, still or unknown is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlspec.contract.actions import ACTION_SPACES, DELTA_EEF, JOINT_POSITION, JOINT_VELOCITY
from rlspec.vla.data.motion import motion_findings

FRAMES = 400


def recording(space: str) -> dict[str, NDArray[Any]]:
    """A robot that follows its actions with some noise, and whose fingers need four frames."""
    rng = np.random.default_rng(0)
    episode = np.repeat([0, 1], FRAMES // 2)
    wanted = np.repeat(rng.normal(size=(FRAMES // 10, 7)), 10, 0) * 0.02
    moved = wanted + 0.005 * rng.normal(size=wanted.shape)
    joints = np.cumsum(moved, 0) - moved
    closing = np.repeat(rng.integers(0, 2, FRAMES // 20), 20).astype(float)
    closure = np.roll(closing, 4) + 0.01 * rng.normal(size=FRAMES)
    opened, closed = ACTION_SPACES[space].gripper
    gripper = opened + closing * (closed - opened)
    if space == DELTA_EEF:
        width = 0.04 * (1 - closure)
        state = np.column_stack([joints[:, :6], width, -width])
        action = np.column_stack([wanted[:, :6], gripper])
    else:
        state = np.column_stack([joints, closure])
        action = np.column_stack([wanted + (joints if space == JOINT_POSITION else 0.0), gripper])
    return {"action": action, "observation.state": state, "episode_index": episode[:, None]}


SPACES = [DELTA_EEF, JOINT_VELOCITY, JOINT_POSITION]


@pytest.mark.parametrize("space", SPACES)
def test_a_robot_that_follows_is_not_remarked_upon(space: str) -> None:
    assert list(motion_findings(recording(space), space)) == []


@pytest.mark.parametrize("space", SPACES)
def test_a_reversed_gripper_is_named(space: str) -> None:
    columns = recording(space)
    columns["action"][:, -1] = sum(ACTION_SPACES[space].gripper) - columns["action"][:, -1]
    ((fault, line),) = motion_findings(columns, space)
    assert not fault and "(gripper): the fingers open where it closes them" in line


@pytest.mark.parametrize("space", [DELTA_EEF, JOINT_VELOCITY])
def test_a_reversed_axis_is_named_and_the_others_are_not(space: str) -> None:
    columns = recording(space)
    columns["action"][:, 1] *= -1
    ((_, line),) = motion_findings(columns, space)
    name = ACTION_SPACES[space].names[1]
    assert line.startswith(f"action[1] ({name}): it runs against observation.state[1]")


def test_what_does_not_move_or_is_too_short_tells_nothing() -> None:
    columns = recording(JOINT_VELOCITY)
    columns["action"][:, -1] = 1.0
    assert list(motion_findings(columns, JOINT_VELOCITY)) == []
    short = {name: values[:40] * (-1 if name == "action" else 1) for name, values in recording(JOINT_VELOCITY).items()}
    assert list(motion_findings(short, JOINT_VELOCITY)) == []
    other = {**columns, "observation.state": columns["observation.state"][:, :3]}
    assert list(motion_findings(other, JOINT_VELOCITY)) == []
