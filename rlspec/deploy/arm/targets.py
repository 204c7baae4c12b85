"""From an action of the policy to the joint target that it asks for. What is malformed is refused, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlspec.contract.actions import ACTION_SPACES, DELTA_EEF_STEP, MAX_CARTESIAN_STEP, MAX_JOINT_STEP
from rlspec.contract.droid import euler_matrix, tip_of
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import flange, forward, rotation_matrix, rotation_vector, solve
from rlspec.deploy.arm.robot_limits import RobotLimits
from rlspec.errors import ConfigError, nearest

Array = NDArray[np.float64]
Action = ArrayLike | Mapping[str, float]

MISSING = "action_missing"
NOT_NUMBERS = "action_not_numbers"
WRONG_KEYS = "action_wrong_keys"
WRONG_LENGTH = "action_wrong_length"
NOT_FINITE = "action_not_finite"
WRONG_UNITS = "action_wrong_units"
STATE_NOT_FINITE = "state_not_finite"
"""Reasons for a refusal."""

_NONSENSE = {"unitless": 20.0, "rad": 2.0, "m": 2.0, "closure": 2.0}
"""Times the space's bound (about the middle of the range) from which a number must be of another unit."""

_IK_ITERATIONS = 2


@dataclass(frozen=True)
class Target:
    """What an action asks for.

    Attributes:
        joints: (7,) radians, outside of the joint limits where the policy says so; None: the action was refused.
        closure: Of the gripper, 0 open to 1 closed; None: refused.
        reasons: Why it was refused; empty where it was not.
    """

    joints: Array | None
    closure: float | None
    reasons: tuple[str, ...] = ()


class Targets:
    """Turns actions of one action space into joint targets.

    Args:
        action_space: Key of `rlspec.contract.actions.ACTION_SPACES`.
        limits: Joint range within which inverse kinematics stay; None: unbounded.

    Raises:
        ConfigError: The action space is unknown.
    """

    def __init__(self, action_space: str, limits: RobotLimits | None = None) -> None:
        if action_space not in ACTION_SPACES:
            hint = nearest(action_space, ACTION_SPACES)
            raise ConfigError(f"unknown action space {action_space!r}: {hint}")
        self.space = ACTION_SPACES[action_space]
        self._low = None if limits is None else limits.low
        self._high = None if limits is None else limits.high
        self._convert = getattr(self, f"_{action_space}")
        low, high = np.array(self.space.low), np.array(self.space.high)
        self._middle = (low + high) / 2.0
        self._reach = (high - low) / 2.0 * np.array([_NONSENSE[unit] for unit in self.space.units])
        self.reset()

    def reset(self) -> None:
        """Forget the previous episode."""
        self._rotation: Array | None = None  # the rotation that delta_eef keeps while it is asked for none

    def __call__(self, action: Action | None, state: RobotState) -> Target:
        """Return the joint target of an action at a measured state.

        Args:
            action: Numbers in the space's order, or a number for each of the space's names.
            state: From which relative actions count.
        """
        values, reason = self._read(action)
        if values is not None and not np.all(np.isfinite(state.joints)):
            values, reason = None, STATE_NOT_FINITE
        if values is None:
            return Target(None, None, (reason,))
        return Target(self._convert(values[:-1], state.joints), self.space.closure(float(values[-1])))

    def _read(self, action: Action | None) -> tuple[Array | None, str]:
        if action is None:
            return None, MISSING
        if isinstance(action, Mapping):
            if set(action) != set(self.space.names):
                return None, WRONG_KEYS
            action = [action[name] for name in self.space.names]
        try:
            values = np.asarray(action)
        except ValueError:
            return None, NOT_NUMBERS
        if values.dtype.kind not in "fiu":
            return None, NOT_NUMBERS
        if values.shape != (self.space.size,):
            return None, WRONG_LENGTH
        values = values.astype(np.float64)
        if not np.all(np.isfinite(values)):
            return None, NOT_FINITE
        if np.any(np.abs(values - self._middle) > self._reach):
            return None, WRONG_UNITS
        return values, ""

    def _joint_position(self, action: Array, joints: Array) -> Array:
        return action

    def _joint_velocity(self, action: Array, joints: Array) -> Array:
        """DROID: a vector that is too long is shortened as a whole, so that its direction stays."""
        return joints + MAX_JOINT_STEP * _shorten(action, float(np.abs(action).max()))

    def _cartesian_velocity(self, action: Array, joints: Array) -> Array:
        """DROID: the flange's motion, so that turns are about the flange and not about the fingertips."""
        position, rotation = flange(joints)
        metres, radians = MAX_CARTESIAN_STEP
        way = metres * _shorten(action[:3], float(np.linalg.norm(action[:3])))
        turn = radians * _shorten(action[3:], float(np.linalg.norm(action[3:])))
        return self._reaching(joints, position + way, euler_matrix(turn) @ rotation)

    def _cartesian_position(self, action: Array, joints: Array) -> Array:
        """DROID: towards the flange's pose, by no more than one step of `cartesian_velocity`."""
        position, rotation = flange(joints)
        metres, radians = MAX_CARTESIAN_STEP
        way = action[:3] - position
        turn = rotation_vector(euler_matrix(action[3:]) @ rotation.T)
        way = _shorten(way, float(np.linalg.norm(way)) / metres)
        turn = _shorten(turn, float(np.linalg.norm(turn)) / radians)
        return self._reaching(joints, position + way, rotation_matrix(turn) @ rotation)

    def _delta_eef(self, action: Array, joints: Array) -> Array:
        """LIBERO: each number clipped by itself; a rotation of exactly zero keeps the rotation last asked for."""
        position, rotation = forward(joints)
        metres, radians = DELTA_EEF_STEP
        action = np.clip(action, -1.0, 1.0)
        if self._rotation is None or np.any(action[3:] != 0.0):
            self._rotation = rotation_matrix(radians * action[3:]) @ rotation
        return solve(
            joints,
            position + metres * action[:3],
            self._rotation,
            low=self._low,
            high=self._high,
            iterations=_IK_ITERATIONS,
        )

    def _reaching(self, joints: Array, position: Array, rotation: Array) -> Array:
        """Joints towards a pose of the flange, none further than DROID's joint step from where it is."""
        found = solve(joints, *tip_of(position, rotation), low=self._low, high=self._high, iterations=_IK_ITERATIONS)
        step = found - joints
        return joints + _shorten(step, float(np.abs(step).max()) / MAX_JOINT_STEP)


def _shorten(vector: Array, length: float) -> Array:
    """Divide by `length` where that exceeds 1."""
    return vector / length if length > 1.0 else vector
