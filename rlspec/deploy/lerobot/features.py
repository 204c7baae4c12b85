"""Names under which LeRobot sees actions and states. LeRobot's rollout passes on keys that end in .pos or .vel only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import (
    ACTION_SPACES,
    DELTA_EEF,
    DELTA_EEF_STEP,
    JOINT_POSITION,
    JOINT_VELOCITY,
    MAX_JOINT_STEP,
)
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import forward, rotation_vector
from rlspec.errors import RobotError

Array = NDArray[np.float64]

GRIPPER = "gripper.pos"
POSITIONS = (*(f"joint_{i}.pos" for i in range(1, 8)), GRIPPER)
"""Of the state, and of actions in joint_position: radians, and the gripper's closure from 0 open to 1 closed."""

ACTION_KEYS: dict[str, tuple[str, ...]] = {
    JOINT_POSITION: POSITIONS,
    JOINT_VELOCITY: (*(f"joint_{i}.vel" for i in range(1, 8)), GRIPPER),
    DELTA_EEF: (*(f"eef_{axis}.vel" for axis in ("x", "y", "z", "rx", "ry", "rz")), GRIPPER),
}
"""By action space; units are those of `rlspec.contract.actions.ACTION_SPACES`."""


def understand(space: str, action: Mapping[str, float]) -> tuple[str, Array]:
    """The action space and the numbers of an action.

    A robot that is told velocities also takes a full set of positions: LeRobot's rollout goes home by them.

    Raises:
        RobotError: Keys are missing or foreign.
    """
    for meant in (space, JOINT_POSITION):
        keys = ACTION_KEYS[meant]
        if set(action) == set(keys):
            return meant, np.array([float(action[key]) for key in keys])
    wanted = set(ACTION_KEYS[space])
    wrong = sorted(set(action) ^ wanted)
    raise RobotError(f"action: keys {', '.join(wrong)} missing or foreign; action_space={space} takes {sorted(wanted)}")


def describe(space: str, state: RobotState, joints: Array, closure: float) -> dict[str, float]:
    """What was sent, in the words of an action space.

    Args:
        space: Of `ACTION_KEYS`.
        state: At which it was sent.
        joints: Target that was sent, (7,) radians.
        closure: That the hand goes for.
    """
    if space == JOINT_POSITION:
        numbers = joints
    elif space == JOINT_VELOCITY:
        numbers = (joints - state.joints) / MAX_JOINT_STEP
    else:
        (position, rotation), (here, turned) = forward(joints), forward(state.joints)
        metres, radians = DELTA_EEF_STEP
        numbers = np.concatenate([(position - here) / metres, rotation_vector(rotation @ turned.T) / radians])
    values = [*numbers, ACTION_SPACES[space].gripper_number(closure)]
    return {key: float(value) for key, value in zip(ACTION_KEYS[space], values, strict=True)}
