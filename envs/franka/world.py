"""State of a table-top scene: what tasks, controllers and experts read and set."""

from __future__ import annotations

import math

import mujoco
import numpy as np
from numpy.typing import ArrayLike
from rlspec_envs.franka.arm import ARM_JOINTS, FINGER_JOINTS, TCP_SITE
from rlspec_envs.franka.kinematics import Kinematics
from rlspec_envs.franka.robots import FINGER_STROKE, HOME, JOINTS, Robot
from rlspec_envs.franka.rotations import Array, yaw_quaternion
from rlspec_envs.physics import relay_warnings


class World:
    """A compiled model with its data.

    Args:
        model: The arm's joints come first, then the fingers'; objects have free joints of their own names.
        robot: The arm's tables.
        substeps: Physics steps per control step.
    """

    def __init__(self, model: mujoco.MjModel, robot: Robot, substeps: int) -> None:
        relay_warnings()
        self.model = model
        self.data = mujoco.MjData(model)
        self.robot = robot
        self.substeps = substeps
        self.kinematics = Kinematics(model, robot)
        self._site = model.site(TCP_SITE).id
        if [model.joint(i).name for i in range(9)] != [*ARM_JOINTS, *FINGER_JOINTS]:
            raise AssertionError("the arm's joints have to come first in the model")

    @property
    def joints(self) -> Array:
        """Measured joint angles, (7,) radians."""
        return self.data.qpos[:JOINTS].copy()

    @property
    def fingers(self) -> Array:
        """How far each finger is open, (2,) metres."""
        return self.data.qpos[JOINTS : JOINTS + 2].copy()

    @property
    def gap(self) -> float:
        """Metres between the pads: 0 closed, 0.08 open."""
        return float(self.data.qpos[JOINTS] + self.data.qpos[JOINTS + 1])

    @property
    def tcp(self) -> Array:
        """Position of the tool centre point between the finger pads, (3,) metres."""
        return self.data.site_xpos[self._site].copy()

    @property
    def hand_rotation(self) -> Array:
        """Rotation of the hand, (3, 3)."""
        return self.data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def hand_yaw(self) -> float:
        """Direction of the hand's x axis on the table, radians."""
        matrix = self.data.site_xmat[self._site]
        return math.atan2(matrix[3], matrix[0])

    def position(self, body: str) -> Array:
        """Position of a body, (3,) metres."""
        return self.data.body(body).xpos.copy()

    def yaw(self, body: str) -> float:
        """Direction of a body's x axis on the table, radians."""
        matrix = self.data.body(body).xmat
        return math.atan2(matrix[3], matrix[0])

    def speed(self, body: str) -> float:
        """Speed of a free object's centre, m/s."""
        return float(np.linalg.norm(self.data.joint(body).qvel[:3]))

    def place(self, body: str, position: ArrayLike, yaw: float = 0.0) -> None:
        """Put a free object, a movable marker or a fixture somewhere, at rest."""
        body_id = self.model.body(body).id
        mocap = self.model.body_mocapid[body_id]
        if mocap < 0 and self.model.body_jntnum[body_id] == 0:
            self.model.body_pos[body_id], self.model.body_quat[body_id] = position, yaw_quaternion(yaw)
        elif mocap >= 0:
            self.data.mocap_pos[mocap] = position
            self.data.mocap_quat[mocap] = yaw_quaternion(yaw)
        else:
            joint = self.data.joint(body)
            joint.qpos[:3], joint.qpos[3:], joint.qvel[:] = position, yaw_quaternion(yaw), 0.0

    def paint(self, geom: str, rgb: ArrayLike) -> None:
        """Colour a geom, RGB from 0 to 1."""
        self.model.geom(geom).rgba[:3] = np.clip(rgb, 0.0, 1.0)

    def reset(self, jitter: Array, offset: Array) -> None:
        """Bring the arm near home with an open hand; objects go where the model has them.

        Args:
            jitter: Added to the home pose, (7,) radians.
            offset: By how much the hand is then moved without being turned, (3,) metres.
        """
        mujoco.mj_resetData(self.model, self.data)
        start = np.clip(np.array(HOME) + jitter, self.robot.low, self.robot.high)
        position, rotation = self.kinematics.pose(start)
        if offset.any():
            start = self.kinematics.solve(start, position + offset, rotation, iterations=10)
        self.data.qpos[:JOINTS] = start
        self.data.qpos[JOINTS : JOINTS + 2] = FINGER_STROKE
        self.command(start, 0.0)

    def command(self, joints: Array, closure: float) -> None:
        """Set the actuators' targets: joint angles (7,) and the hand's closure, 0 open to 1 closed."""
        self.data.ctrl[:JOINTS] = np.clip(joints, self.robot.low, self.robot.high)
        self.data.ctrl[JOINTS] = FINGER_STROKE * (1.0 - closure)

    def advance(self) -> None:
        """Simulate one control step."""
        mujoco.mj_step(self.model, self.data, nstep=self.substeps)
        mujoco.mj_kinematics(self.model, self.data)  # body and site poses of the state after the last substep

    @property
    def diverged(self) -> bool:
        """True when the physics has blown up (MuJoCo then resets silently) or holds numbers that are not finite."""
        kinds = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
        if any(self.data.warning[kind].number for kind in kinds):
            return True
        return not (np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all())
