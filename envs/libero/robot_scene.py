"""What a scripted expert sees of the robot in a LIBERO scene, and how it moves it."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from rlspec_envs.libero.geometry import CollisionGeometry
from rlspec_envs.libero.simulation import LiberoSimulation

POSITION_SCALE, ROTATION_SCALE = 0.05, 0.5
"""What an action of 1 means to LIBERO's controller: m and rad."""
POSITION_GAIN, ROTATION_GAIN = 2.0, 1.5
SHOULDER_HEIGHT = 0.333
"""Of the Panda's shoulder above its base (m)."""
CORRIDOR = 0.09
"""Half the width (m) of the strip that the hand sweeps."""
MAX_REACH = 0.67
"""Distance (m) of the wrist from the shoulder with the elbow still bent; an arm that is stretched gets stuck."""
WRIST_HEIGHT, WRIST_OFFSET = 0.21, 0.088
"""Of the wrist above the gripper, of the gripper before the wrist (m)."""
DOWN = np.array([0.0, 0.0, -1.0])


class RobotScene:
    """Measurements of the present state; `refresh` once per action."""

    def __init__(self, simulation: LiberoSimulation) -> None:
        self._simulation = simulation
        self._model, self._data = simulation.model, simulation.data
        self._geometry = CollisionGeometry(self._model, self._data)
        self._obstacles = [self._geometry.geoms_below(body) for body in simulation.env.obj_body_id.values()]
        self._read_robot(simulation.env.robots[0])

    def _read_robot(self, robot: Any) -> None:
        model = self._model
        base = model.body(robot.robot_model.root_body).id
        self._shoulder = np.array(self._data.xpos[base]) + np.array([0.0, 0.0, SHOULDER_HEIGHT])
        self._robot_geoms = self._geometry.geoms_below(base)
        self._site = int(robot.eef_site_id)
        self._wrist_joint = robot._ref_joint_pos_indexes[-1]
        self._finger_joints = list(robot._ref_gripper_joint_pos_indexes)
        self._finger_dofs = list(robot._ref_gripper_joint_vel_indexes)
        self._fingers = [
            self._geometry.geoms_below(model.body(f"{robot.gripper.naming_prefix}{side}finger").id)
            for side in ("left", "right")
        ]

    def refresh(self) -> None:
        """Measure what most decisions need."""
        data = self._data
        self.eef = np.array(data.site_xpos[self._site])
        self.rotation = np.array(data.site_xmat[self._site]).reshape(3, 3)
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(self._model, data, mujoco.mjtObj.mjOBJ_SITE, self._site, velocity, 0)
        self.speed = float(np.linalg.norm(velocity[3:]))
        self.yaw = float(np.arctan2(self.rotation[1, 0], self.rotation[0, 0]))
        self.wrist = float(data.qpos[self._wrist_joint])
        self.opening = float(np.abs(data.qpos[self._finger_joints]).sum())
        self.fingers_still = bool(np.abs(data.qvel[self._finger_dofs]).max() < 0.01)
        self._contacts = np.asarray(data.contact.geom).reshape(-1, 2)

    def _fingers_at(self, geoms: np.ndarray) -> list[bool]:
        """Whether the left and the right finger touch one of `geoms`."""
        return [self._in_contact(finger, geoms) for finger in self._fingers]

    def _in_contact(self, first: np.ndarray, second: np.ndarray) -> bool:
        a, b = np.isin(self._contacts, first), np.isin(self._contacts, second)
        return bool(((a[:, 0] & b[:, 1]) | (a[:, 1] & b[:, 0])).any())

    def distance_xy(self, point: np.ndarray) -> float:
        """Horizontal distance (m) of the gripper from `point`."""
        return float(np.linalg.norm(point[:2] - self.eef[:2]))

    def yaw_error(self, yaw: float) -> float:
        """Turn (rad) that brings the line between the fingers to `yaw`."""
        return float((yaw - self.yaw + np.pi) % (2 * np.pi) - np.pi)

    def within_reach(self, position: np.ndarray) -> np.ndarray:
        """`position` drawn towards the robot until the arm is not stretched there."""
        rise = position[2] + WRIST_HEIGHT - self._shoulder[2]
        allowed = np.sqrt(max(MAX_REACH**2 - rise**2, 0.0)) + WRIST_OFFSET
        way = position[:2] - self._shoulder[:2]
        shrink = min(1.0, allowed / float(np.linalg.norm(way)))
        return np.array([*(self._shoulder[:2] + shrink * way), position[2]])

    def highest_between(self, end: np.ndarray) -> float:
        """Height (m) of the highest obstacle in the strip from the gripper to `end`."""
        low = np.minimum(self.eef[:2], end[:2]) - CORRIDOR
        high = np.maximum(self.eef[:2], end[:2]) + CORRIDOR
        highest = -np.inf
        for geoms in self._obstacles:
            points = self._geometry.vertices(geoms)
            if (points[:, :2].max(0) > low).all() and (points[:, :2].min(0) < high).all():
                highest = max(highest, float(points[:, 2].max()))
        return highest

    def pointing_down(self, yaw: float) -> np.ndarray:
        """Rotation (3, 3) of the gripper, fingers down, on the way to the finger line `yaw` (rad)."""
        ahead = self.yaw + np.clip(self.yaw_error(yaw), -1.0, 1.0)  # half a turn would have no direction
        return pose(DOWN, np.array([np.cos(ahead), np.sin(ahead), 0.0]))

    def turn_to(self, rotation: np.ndarray) -> np.ndarray:
        """Turn (3,) in rad, world axes, from the present rotation of the gripper to `rotation`."""
        turn, quaternion = np.zeros(3), np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, (rotation @ self.rotation.T).reshape(9))
        mujoco.mju_quat2Vel(turn, quaternion, 1.0)
        return turn

    def action_towards(self, position: np.ndarray, rotation: np.ndarray, gripper: float) -> np.ndarray:
        """Action (7,) float32 towards a gripper position (m) and rotation (3, 3)."""
        move = POSITION_GAIN * (position - self.eef) / POSITION_SCALE
        turn = ROTATION_GAIN * self.turn_to(rotation) / ROTATION_SCALE
        return np.clip([*move, *turn, gripper], -1.0, 1.0).astype(np.float32)


def pose(ahead: np.ndarray, fingers: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of a gripper that points `ahead` (3,), with its fingers on the line `fingers` (3,)."""
    return np.stack([fingers, np.cross(ahead, fingers), ahead], axis=1)
