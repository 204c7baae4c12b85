"""Action spaces: from an action to targets of the joints, and from a wanted pose to an action (for experts)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from rlspec_envs.franka.robots import JOINTS
from rlspec_envs.franka.rotations import Array, rotation_matrix, rotation_vector
from rlspec_envs.franka.world import World

Action = NDArray[np.float32]

POSITION_SCALE = 0.05
ROTATION_SCALE = 0.5
"""Metres and radians that one unit of a `delta_eef` action adds to the current pose (LIBERO's OSC_POSE)."""

MAX_JOINT_DELTA = 0.2
"""Radians from the measured joints to the target for one unit of `joint_velocity`, and at most (DROID)."""


class Controller(ABC):
    """One action space on one world."""

    name: str
    default_hz: float
    space: spaces.Box

    def __init__(self, world: World) -> None:
        self.world = world

    def reset(self) -> None:  # noqa: B027 - most controllers keep no state
        """Forget the previous episode."""

    @abstractmethod
    def command(self, action: Array) -> tuple[Array, float]:
        """Return targets for `World.command`: joint angles (7,) in radians and closure 0 to 1."""

    @abstractmethod
    def towards(self, position: Array, rotation: Array, close: bool) -> Action:
        """Return the action that moves the hand towards a pose with this controller, clipped to the space."""

    def _clip(self, action: Array) -> Action:
        return np.clip(action, self.space.low, self.space.high).astype(np.float32)


class DeltaEef(Controller):
    """LIBERO's: (dx, dy, dz, rotation vector in the world's frame, gripper -1 open to +1 close), each in [-1, 1].

    The target lies `POSITION_SCALE` and `ROTATION_SCALE` per unit from the current pose. As in robosuite a rotation of
    exactly zero keeps the last wanted rotation, so that the hand does not drift; a gripper of zero keeps its command.
    """

    name = "delta_eef"
    default_hz = 20.0
    space = spaces.Box(-1.0, 1.0, (7,), np.float32)
    # The hand covers about 45% of the way to its target per step; experts ask for more to arrive sooner.
    _eagerness = 1.6

    def reset(self) -> None:
        """Start from the hand as it is, open."""
        self._rotation = self.world.hand_rotation
        self._closure = 0.0

    def command(self, action: Array) -> tuple[Array, float]:
        """See `Controller`."""
        if np.any(action[3:6] != 0.0):
            self._rotation = rotation_matrix(ROTATION_SCALE * action[3:6]) @ self.world.hand_rotation
        if action[6] != 0.0:
            self._closure = 1.0 if action[6] > 0.0 else 0.0
        position = self.world.tcp + POSITION_SCALE * action[:3]
        return self.world.kinematics.solve(self.world.joints, position, self._rotation), self._closure

    def towards(self, position: Array, rotation: Array, close: bool) -> Action:
        """See `Controller`; the direction of a long way is kept."""
        way = self._eagerness * (position - self.world.tcp) / POSITION_SCALE
        way /= max(1.0, float(np.abs(way).max()))
        turn = rotation_vector(rotation @ self.world.hand_rotation.T) / ROTATION_SCALE
        turn /= max(1.0, float(np.abs(turn).max()))
        return self._clip(np.concatenate([way, turn, [1.0 if close else -1.0]]))


class _JointSpace(Controller):
    default_hz = 15.0

    def _joints_towards(self, position: Array, rotation: Array) -> Array:
        """Joints that bring the hand at most one comfortable step nearer to a pose, each by less than 0.2 rad."""
        way = position - self.world.tcp
        way *= min(1.0, 0.075 / max(float(np.linalg.norm(way)), 1e-9))
        turn = rotation_vector(rotation @ self.world.hand_rotation.T)
        turn *= min(1.0, 0.3 / max(float(np.linalg.norm(turn)), 1e-9))
        joints = self.world.joints
        solution = self.world.kinematics.solve(
            joints, self.world.tcp + way, rotation_matrix(turn) @ self.world.hand_rotation
        )
        delta = 1.4 * (solution - joints)
        return joints + delta * min(1.0, MAX_JOINT_DELTA / max(float(np.abs(delta).max()), 1e-9))


class JointVelocity(_JointSpace):
    """DROID's: seven unitless velocities and the gripper (> 0.5 closes), each in [-1, 1].

    One unit puts a joint's target 0.2 rad from where the joint is now; 15 Hz by convention. It is not rad/s.
    """

    name = "joint_velocity"
    space = spaces.Box(-1.0, 1.0, (8,), np.float32)

    def command(self, action: Array) -> tuple[Array, float]:
        """See `Controller`."""
        return self.world.joints + MAX_JOINT_DELTA * action[:JOINTS], 1.0 if action[JOINTS] > 0.5 else 0.0

    def towards(self, position: Array, rotation: Array, close: bool) -> Action:
        """See `Controller`."""
        velocity = (self._joints_towards(position, rotation) - self.world.joints) / MAX_JOINT_DELTA
        return self._clip(np.concatenate([velocity, [1.0 if close else 0.0]]))


class JointPosition(_JointSpace):
    """Seven joint angles in radians and the gripper's closure, 0 open to 1 closed; 15 Hz by convention.

    As DROID does, a joint's target is held within 0.2 rad of where the joint is now.
    """

    name = "joint_position"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        low, high = world.robot.limits.T
        self.space = spaces.Box(
            np.append(low, 0.0).astype(np.float32), np.append(high, 1.0).astype(np.float32), dtype=np.float32
        )

    def command(self, action: Array) -> tuple[Array, float]:
        """See `Controller`."""
        joints = self.world.joints
        reach = np.clip(action[:JOINTS] - joints, -MAX_JOINT_DELTA, MAX_JOINT_DELTA)
        return joints + reach, float(action[JOINTS])

    def towards(self, position: Array, rotation: Array, close: bool) -> Action:
        """See `Controller`."""
        return self._clip(np.append(self._joints_towards(position, rotation), 1.0 if close else 0.0))


CONTROLLERS: dict[str, type[Controller]] = {kind.name: kind for kind in (DeltaEef, JointVelocity, JointPosition)}
