"""An episode as a DROID workstation records it, whether a simulation or a robot was there.

Names, shapes and units are those of the DROID release (droid-dataset/droid). A pose (6,) is a position in metres and
extrinsic xyz Euler angles in radians; of which point, the recording says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlspec.contract.actions import (
    CARTESIAN_POSITION,
    CARTESIAN_VELOCITY,
    JOINT_POSITION,
    JOINT_VELOCITY,
    MAX_CARTESIAN_STEP,
)

Array = NDArray[np.float64]
Placement = tuple[Array, Array]
"""Position (..., 3) in metres and rotation (..., 3, 3)."""

HAND_LENGTH = 0.1034
"""Metres from the flange to the tool centre point, between the tips of the Franka hand's fingers."""
FLANGE, TCP = "flange", "tcp"
"""Whose poses a recording may hold: the flange's, as DROID's, or those of the tool centre point."""

_HAND_TURN = np.eye(3)
_HAND_TURN[:2, :2] = math.sqrt(0.5) * np.array([[1.0, 1.0], [-1.0, 1.0]])  # the hand is turned by -45 degrees
_MAX_GRIPPER_STEP = 0.25  # share of the gripper's way for one unit of its velocity (droid, RobotIKSolver)
_LOCKED = 1e-6  # cosine of the pitch below which roll and yaw turn about the same axis


@dataclass
class DroidEpisode:
    """What the files of an episode are made of.

    Attributes:
        arrays: Path in trajectory.h5 -> (T, ...) numbers.
        films: Camera of `features.CAMERAS` -> its T pictures, (H, W, 3) uint8 RGB, of even sides; read once.
        serials: Camera -> serial number, or what stands for it.
        extrinsics: Camera -> pose (6,) in the base frame at the first step, of those where it is known.
        instruction: The task in words.
        robot: In place of the arm's serial number, which begins with its model.
        law: By which targets became motion.
        pose_frame: Whose poses they are, FLANGE or TCP.
        building, user: Of DROID's metadata.
        rate: Steps per second.
    """

    arrays: dict[str, NDArray[Any]]
    films: dict[str, Iterator[NDArray[np.uint8]]]
    serials: dict[str, str]
    extrinsics: dict[str, list[float]]
    instruction: str
    robot: str
    law: str
    pose_frame: str
    building: str
    user: str
    rate: float


def euler_matrix(angles: Array) -> Array:
    """Rotations (..., 3, 3) of roll, pitch, yaw (..., 3) in radians about the fixed axes x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.moveaxis(np.cos(angles), -1, 0), np.moveaxis(np.sin(angles), -1, 0)
    rows = [
        [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
        [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
        [-sy, sx * cy, cx * cy],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def euler_angles(rotations: Array) -> Array:
    """The inverse of `euler_matrix`, (..., 3); with the pitch at a right angle, yaw is 0."""
    r = rotations
    cosine = np.hypot(r[..., 0, 0], r[..., 1, 0])
    locked = cosine < _LOCKED
    roll = np.where(locked, np.arctan2(-r[..., 1, 2], r[..., 1, 1]), np.arctan2(r[..., 2, 1], r[..., 2, 2]))
    yaw = np.where(locked, 0.0, np.arctan2(r[..., 1, 0], r[..., 0, 0]))
    return np.stack([roll, np.arctan2(-r[..., 2, 0], cosine), yaw], axis=-1)


def pose_of(position: Array, rotation: Array) -> Array:
    """The pose (..., 6) of a position (..., 3) and a rotation (..., 3, 3)."""
    return np.concatenate([position, euler_angles(rotation)], axis=-1)


def tip_of(position: Array, rotation: Array) -> Placement:
    """Where the tool centre point is, and how it is turned, when the flange is at (..., 3), (..., 3, 3)."""
    return position + HAND_LENGTH * rotation[..., 2], rotation @ _HAND_TURN


def flange_of(position: Array, rotation: Array) -> Placement:
    """The inverse of `tip_of`."""
    return position - HAND_LENGTH * rotation[..., 2], rotation @ _HAND_TURN.T


def commanded(
    here: Placement, there: Placement, joints: Array, joint_velocity: Array, closures: tuple[ArrayLike, ArrayLike]
) -> dict[str, Any]:
    """Commands in all of DROID's spaces: path in trajectory.h5 -> (..., n) numbers.

    Args:
        here: Where the hand is, and `there`, where it is with the target joints.
        there: See `here`.
        joints: Target, (..., 7) radians.
        joint_velocity: (..., 7), shares of the largest step.
        closures: Of the hand, measured and commanded, (...) from 0 open to 1 closed.
    """
    pose, (measured, closure) = pose_of(*there), (np.asarray(each, np.float64) for each in closures)
    return {
        f"action/{JOINT_POSITION}": joints,
        f"action/{JOINT_VELOCITY}": joint_velocity,
        f"action/{CARTESIAN_POSITION}": pose,
        f"action/{CARTESIAN_VELOCITY}": _cartesian_velocity(here, there),
        "action/gripper_position": closure,
        "action/gripper_velocity": np.clip((closure - measured) / _MAX_GRIPPER_STEP, -1.0, 1.0),
        "action/target_cartesian_position": pose,
        "action/target_gripper_position": closure,
    }


def _cartesian_velocity(here: Placement, there: Placement) -> Array:
    """DROID's unitless velocity (..., 6) from one place to another: each part is cut to one unit, as DROID cuts it."""
    way = (there[0] - here[0]) / MAX_CARTESIAN_STEP[0]
    turn = euler_angles(there[1] @ np.swapaxes(here[1], -1, -2)) / MAX_CARTESIAN_STEP[1]
    lengths = [np.linalg.norm(part, axis=-1, keepdims=True) for part in (way, turn)]
    return np.concatenate([way / np.maximum(1.0, lengths[0]), turn / np.maximum(1.0, lengths[1])], axis=-1)
