"""Where the hand is for given joints, and which joints bring it where it should be."""

from __future__ import annotations

import mujoco
import numpy as np
from rlspec_envs.franka.arm import TCP_SITE
from rlspec_envs.franka.robots import HOME, JOINTS, Robot
from rlspec_envs.franka.rotations import Array, rotation_vector

_DAMPING = 0.05
_HOMING = 0.1  # share of the way home that the redundant direction goes per solution


class Kinematics:
    """Forward and inverse kinematics on a scratch copy of the model's state.

    Args:
        model: The arm's joints are its first seven.
        robot: Joint limits.
    """

    def __init__(self, model: mujoco.MjModel, robot: Robot) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site(TCP_SITE).id
        self._jacobian = np.zeros((6, model.nv))
        self.limits = robot.limits

    def pose(self, joints: Array) -> tuple[Array, Array]:
        """Tool centre point of seven joint angles: position (3,) in metres, rotation (3, 3)."""
        self._data.qpos[:JOINTS] = joints
        mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._site].copy(), self._data.site_xmat[self._site].reshape(3, 3).copy()

    def solve(self, joints: Array, position: Array, rotation: Array, iterations: int = 2) -> Array:
        """Joints near `joints` that reach a pose, by damped least squares; the redundant direction leans towards home.

        Returns:
            (7,) radians within the joint limits; the best effort where the pose cannot be reached.
        """
        solution = joints.copy()
        for iteration in range(iterations):
            here, turned = self.pose(solution)
            error = np.concatenate([position - here, rotation_vector(rotation @ turned.T)])
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site)
            jacobian = self._jacobian[:, :JOINTS]
            inverse = np.linalg.solve(jacobian @ jacobian.T + _DAMPING**2 * np.eye(6), jacobian).T
            step = inverse @ error
            if iteration == 0:
                homeward = _HOMING * (np.array(HOME) - solution)
                step = step + homeward - inverse @ (jacobian @ homeward)
            solution = np.clip(solution + step, self.limits[:, 0], self.limits[:, 1])
        return solution
