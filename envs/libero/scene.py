"""What a scripted expert sees of a LIBERO scene: gripper, object to move, goal and obstacles."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from rlspec_envs.libero.environment import LiberoEnv
from rlspec_envs.libero.geometry import CollisionGeometry
from rlspec_envs.libero.grasps import Grasp, Situation, plan_grasps

POSITION_SCALE, ROTATION_SCALE = 0.05, 0.5
"""What an action of 1 means to LIBERO's controller: m and rad."""
POSITION_GAIN, ROTATION_GAIN = 2.0, 1.5
CLEARANCE = 0.025
"""Air (m) between a moving gripper or object and what it passes over."""
MAX_REACH = 0.67
"""Distance (m) of the wrist from the shoulder with the elbow still bent; an arm that is stretched gets stuck."""
SHOULDER_HEIGHT, WRIST_HEIGHT, WRIST_OFFSET = 0.333, 0.21, 0.088
"""Of the Panda's shoulder above its base, of the wrist above the gripper, of the gripper before the wrist (m)."""
CORRIDOR = 0.09
"""Half the width (m) of the strip that the hand sweeps."""


class PickPlaceScene:
    """Measurements of the present state; `refresh` once per action."""

    def __init__(self, env: LiberoEnv) -> None:
        simulation = env.simulation
        self._simulation = simulation
        self._model, self._data = simulation.model, simulation.data
        self._geometry = CollisionGeometry(self._model, self._data)
        bodies: dict[str, int] = simulation.env.obj_body_id
        (_, moved, goal), *_ = simulation.env.parsed_problem["goal_state"]
        self._body = bodies[moved]
        self._dof = int(self._model.body_dofadr[self._body])
        self._goal_is_container = goal not in bodies
        self._goal_site = self._model.site(goal).id if self._goal_is_container else -1
        goal_body = int(self._model.site_bodyid[self._goal_site]) if self._goal_is_container else bodies[goal]
        self._goal_body = goal_body
        self._geoms = self._geometry.geoms_below(self._body)
        self._goal_geoms = self._geometry.geoms_below(goal_body)
        self._others = [self._geometry.geoms_below(body) for body in bodies.values() if body != self._body]
        self._read_robot(simulation.env.robots[0])
        self.refresh()

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
        self._rotation = np.array(data.site_xmat[self._site]).reshape(3, 3)
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(self._model, data, mujoco.mjtObj.mjOBJ_SITE, self._site, velocity, 0)
        self.velocity = velocity[3:]
        self.speed = float(np.linalg.norm(self.velocity))
        self.yaw = float(np.arctan2(self._rotation[1, 0], self._rotation[0, 0]))
        self.wrist = float(data.qpos[self._wrist_joint])
        self.opening = float(np.abs(data.qpos[self._finger_joints]).sum())
        self.fingers_still = bool(np.abs(data.qvel[self._finger_dofs]).max() < 0.01)
        self.object_position = np.array(data.xpos[self._body])
        heights = self._geometry.vertices(self._geoms)[:, 2]
        self.object_bottom, self.object_top = float(heights.min()), float(heights.max())
        self.object_still = bool(np.abs(data.qvel[self._dof : self._dof + 6]).max() < 0.02)
        pairs = np.asarray(data.contact.geom).reshape(-1, 2)
        touched = [self._in_contact(pairs, finger, self._geoms) for finger in self._fingers]
        self.holding, self.touching = all(touched), any(touched)
        self.at_goal = self._in_contact(pairs, self._goal_geoms, self._geoms)

    @staticmethod
    def _in_contact(pairs: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
        a, b = np.isin(pairs, first), np.isin(pairs, second)
        return bool(((a[:, 0] & b[:, 1]) | (a[:, 1] & b[:, 0])).any())

    @property
    def success(self) -> bool:
        """LIBERO's goal predicate."""
        return self._simulation.check_success()

    def plan(self) -> list[Grasp]:
        """Grasps of the object, best first."""
        way = self.goal - self.object_position
        situation = Situation(self._robot_geoms, self.yaw, self.wrist, self._shoulder, way)
        return plan_grasps(self._geometry, self._body, situation)

    def distance_xy(self, point: np.ndarray) -> float:
        """Horizontal distance (m) of the gripper from `point`."""
        return float(np.linalg.norm(point[:2] - self.eef[:2]))

    def yaw_error(self, yaw: float) -> float:
        """Turn (rad) that brings the line between the fingers to `yaw`."""
        return float((yaw - self.yaw + np.pi) % (2 * np.pi) - np.pi)

    @property
    def goal(self) -> np.ndarray:
        """World position (3,) where the object shall be: the container's middle or the plate."""
        data = self._data
        return np.array(data.site_xpos[self._goal_site] if self._goal_is_container else data.xpos[self._goal_body])

    def goal_offset(self) -> np.ndarray:
        """Horizontal way (2,) in m that the object has still to go."""
        return np.asarray(self.goal[:2] - self.object_position[:2])

    def release_height(self) -> float:
        """Height (m) of the object's lowest point at which the gripper opens.

        Above a container the fingers stay just above its rim; on a plate the object touches it.
        """
        if self._goal_is_container:
            rim = float(self._geometry.vertices(self._goal_geoms)[:, 2].max())
            return max(rim + 0.012 - (self.eef[2] - self.object_bottom), self.goal[2] - 0.05)
        return float(self.goal[2]) + 0.004

    def highest_between(self, end: np.ndarray) -> float:
        """Height (m) of the highest thing, the object itself left out, in the strip from the gripper to `end`."""
        low = np.minimum(self.eef[:2], end[:2]) - CORRIDOR
        high = np.maximum(self.eef[:2], end[:2]) + CORRIDOR
        highest = -np.inf
        for geoms in self._others:
            points = self._geometry.vertices(geoms)
            if (points[:, :2].max(0) > low).all() and (points[:, :2].min(0) < high).all():
                highest = max(highest, float(points[:, 2].max()))
        return highest

    def within_reach(self, position: np.ndarray) -> np.ndarray:
        """`position` drawn towards the robot until the arm is not stretched there."""
        rise = position[2] + WRIST_HEIGHT - self._shoulder[2]
        allowed = np.sqrt(max(MAX_REACH**2 - rise**2, 0.0)) + WRIST_OFFSET
        way = position[:2] - self._shoulder[:2]
        shrink = min(1.0, allowed / float(np.linalg.norm(way)))
        return np.array([*(self._shoulder[:2] + shrink * way), position[2]])

    def action_towards(self, position: np.ndarray, yaw: float, gripper: float) -> np.ndarray:
        """Action (7,) float32 towards a gripper position (m) and finger line `yaw` (rad), pointing down."""
        ahead = self.yaw + np.clip(self.yaw_error(yaw), -1.0, 1.0)  # half a turn would have no direction
        fingers = np.array([np.cos(ahead), np.sin(ahead), 0.0])
        down = np.array([0.0, 0.0, -1.0])
        target = np.stack([fingers, np.cross(down, fingers), down], axis=1)
        error = np.zeros(9)
        rotation = np.zeros(3)
        quaternion = np.zeros(4)
        error[:] = (target @ self._rotation.T).reshape(9)
        mujoco.mju_mat2Quat(quaternion, error)
        mujoco.mju_quat2Vel(rotation, quaternion, 1.0)
        move = POSITION_GAIN * (position - self.eef) / POSITION_SCALE
        turn = ROTATION_GAIN * rotation / ROTATION_SCALE
        return np.clip([*move, *turn, gripper], -1.0, 1.0).astype(np.float32)
