"""What a scripted expert sees of a LIBERO scene where an object is to be placed: object, goal and obstacles."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from rlspec_envs.libero.grasps import Grasp, Situation, plan_grasps, wrist_turn
from rlspec_envs.libero.robot_scene import RobotScene
from rlspec_envs.libero.simulation import LiberoSimulation

CLEARANCE = 0.025
"""Air (m) between a moving gripper or object and what it passes over."""
CLOSE_ENOUGH, INSET = 0.025, 0.03
"""Where an arm that reaches no further lets go: distance (m) from the goal's middle, or from the edge of a surface."""

DRAWER_INSET = 0.015
NARROW = 0.04
"""Half the width (m) of a compartment below which an object is turned to fit."""


class PickPlaceScene(RobotScene):
    """Measurements for one condition of the goal: ("on", object, place) or ("in", object, place)."""

    def __init__(self, simulation: LiberoSimulation, condition: tuple[str, ...]) -> None:
        super().__init__(simulation)
        self._condition = condition
        bodies: dict[str, int] = simulation.env.obj_body_id
        _, moved, goal = condition
        self._body = bodies[moved]
        self._dof = int(self._model.body_dofadr[self._body])
        self._goal_is_region = goal not in bodies
        self._goal_site = self._model.site(goal).id if self._goal_is_region else -1
        self._goal_body = int(self._model.site_bodyid[self._goal_site]) if self._goal_is_region else bodies[goal]
        self._geoms = self._geometry.geoms_below(self._body)
        self._goal_geoms = self._geometry.geoms_below(self._goal_body)
        self._obstacles = [self._geometry.geoms_below(body) for body in bodies.values() if body != self._body]
        self.refresh()

    def refresh(self) -> None:
        """Measure what most decisions need."""
        super().refresh()
        data = self._data
        self.object_position = np.array(data.xpos[self._body])
        heights = self._geometry.vertices(self._geoms)[:, 2]
        self.object_bottom, self.object_top = float(heights.min()), float(heights.max())
        self.object_still = bool(np.abs(data.qvel[self._dof : self._dof + 6]).max() < 0.02)
        touched = self._fingers_at(self._geoms)
        self.holding, self.touching = all(touched), any(touched)
        self.at_goal = self._in_contact(self._goal_geoms, self._geoms)

    @property
    def success(self) -> bool:
        """LIBERO's predicate of the condition."""
        return self._simulation.holds(self._condition)

    def plan(self) -> list[Grasp]:
        """Grasps of the object, best first."""
        situation = Situation(self._robot_geoms, self.yaw, self.wrist, self._shoulder, self._release_from)
        return plan_grasps(self._geometry, self._body, situation)

    def _release_from(self, grasp: np.ndarray) -> np.ndarray:
        """Where (3,) the gripper will let go of an object that it took at `grasp` (3,)."""
        grip = grasp[2] - self.object_bottom
        bottom = self._rim() if self._is_surface else self.release_height(grip)
        return np.array([*(grasp[:2] + self.goal_offset()), bottom + grip])

    @property
    def goal(self) -> np.ndarray:
        """World position (3,) where the object shall be: the region's middle or the object below.

        In a drawer it is a little before the middle, where the hand is clear of what is above the drawer.
        """
        data = self._data
        if not self._goal_is_region:
            return np.array(data.xpos[self._goal_body])
        return np.array(data.site_xpos[self._goal_site]) + DRAWER_INSET * drawer_way(self._model, data, self._goal_body)

    @property
    def _is_surface(self) -> bool:
        return self._condition[0] == "on" and self._goal_is_region

    def _rim(self) -> float:
        return float(self._geometry.vertices(self._goal_geoms)[:, 2].max())

    def goal_yaw(self, yaw: float) -> float:
        """Angle (rad) of the fingers at the goal: `yaw`, as the object was taken, or across a narrow compartment."""
        if not self._goal_is_region or self._is_surface:
            return yaw
        half = self._region_half()
        if half.min() > NARROW:
            return yaw
        return self.yaw + wrist_turn(0.0 if half[0] < half[1] else np.pi / 2, self.yaw, self.wrist)

    def _region_half(self) -> np.ndarray:
        """Half the extent (2,) in m of the region along x and y."""
        axes = np.abs(self._data.site_xmat[self._goal_site].reshape(3, 3))
        return np.asarray((axes @ self._model.site_size[self._goal_site])[:2])

    def goal_offset(self) -> np.ndarray:
        """Horizontal way (2,) in m that the object has still to go."""
        return np.asarray(self.goal[:2] - self.object_position[:2])

    def near_enough(self) -> bool:
        """Whether an object may be released here if the arm reaches no further."""
        offset = self.goal_offset()
        if self._is_surface and (np.abs(offset) < self._region_half() - INSET).all():
            return True
        return float(np.linalg.norm(offset)) < CLOSE_ENOUGH

    def release_height(self, grip: float) -> float:
        """Height (m) of the object's lowest point at which a gripper `grip` m above that opens.

        Above a region the fingers stay just above its rim; on another object it touches that.
        """
        if self._goal_is_region:
            return max(self._rim() + 0.012 - grip, self.goal[2] - 0.05)
        return float(self.goal[2]) + 0.004


def drawer_way(model: Any, data: Any, body: int) -> np.ndarray:
    """Direction (3,) in which a drawer opens, the longer way of its joint; zeros for a body that does not slide."""
    joint = int(model.body_jntadr[body])
    if joint < 0 or model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_SLIDE:
        return np.zeros(3)
    low, high = model.jnt_range[joint]
    return np.array(data.xaxis[joint]) * (1.0 if high > -low else -1.0)
