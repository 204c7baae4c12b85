"""Picks an object of a LIBERO scene and places it, on privileged state.

It reacts to the state and not to a clock: every action is computed from where the gripper and the object are, and a
phase is left when the state says so. An object that slipped is picked up again, with another grasp.
"""

from __future__ import annotations

import numpy as np
from rlspec_envs.libero.grasps import Grasp
from rlspec_envs.libero.scene import CLEARANCE, PickPlaceScene
from rlspec_envs.libero.simulation import LiberoSimulation

HOVER = 0.07
"""Height (m) above the grasp point from which the gripper descends."""
OPEN, CLOSE = -1.0, 1.0


class PickPlace:
    """Picks an object and places it where a condition of the goal wants it: in a basket, on a plate, into a drawer."""

    phase = "approach"

    def __init__(self, simulation: LiberoSimulation, condition: tuple[str, ...]) -> None:
        self._scene = PickPlaceScene(simulation, condition)
        self._failures = 0
        self.done = False
        self._phases = {
            "approach": (self._leave_approach, self._approach),
            "descend": (self._leave_descend, self._descend),
            "close": (self._leave_close, self._close),
            "lift": (self._leave_lift, self._lift),
            "carry": (self._leave_carry, self._carry),
            "lower": (self._leave_lower, self._lower),
            "release": (self._leave_release, self._release),
            "retreat": (self._leave_retreat, self._retreat),
        }
        self.phase = self._start_over()

    def act(self) -> np.ndarray:
        """Return the next action (7,) float32 in [-1, 1]."""
        self._scene.refresh()
        leave, _ = self._phases[self.phase]
        self.phase = leave()
        _, target = self._phases[self.phase]
        position, gripper = target()
        yaw = self._goal_yaw if self.phase in ("carry", "lower", "release") else self._grasp.yaw
        return self._scene.action_towards(position, self._scene.pointing_down(yaw), gripper)

    def _start_over(self) -> str:
        grasps = self._scene.plan()
        self._grasp: Grasp = grasps[self._failures % len(grasps)]
        self._planned_at = self._scene.object_position
        self._planned_bottom = self._scene.object_bottom
        return "approach"

    def _retry(self) -> str:
        self._failures += 1
        return self._start_over()

    def _moved(self) -> float:
        return float(np.linalg.norm(self._scene.object_position - self._planned_at))

    # Which phase follows, judged by the present state.

    def _leave_approach(self) -> str:
        scene = self._scene
        if self._moved() > 0.01 and scene.object_still:
            self._start_over()
        ready = abs(scene.yaw_error(self._grasp.yaw)) < 0.08 and scene.opening > 0.07
        return "descend" if ready and scene.distance_xy(self._grasp.position) < 0.008 else "approach"

    def _leave_descend(self) -> str:
        scene = self._scene
        if self._moved() > 0.02:
            return self._retry()
        if scene.distance_xy(self._grasp.position) > 0.025:
            return "approach"
        height = scene.eef[2] - self._grasp.position[2]
        stuck = height < 0.03 and scene.speed < 0.004
        return "close" if height < 0.004 or stuck else "descend"

    def _leave_close(self) -> str:
        scene = self._scene
        at_rest = scene.opening < 0.07 and scene.fingers_still and scene.object_still
        if scene.opening < 0.004 or (at_rest and not scene.holding):
            return self._retry()
        return "lift" if scene.fingers_still and scene.holding else "close"

    def _leave_lift(self) -> str:
        if self._dropped():
            return self._retry()
        self._goal_yaw = self._scene.goal_yaw(self._grasp.yaw)
        return "carry" if self._scene.object_bottom > self._planned_bottom + 0.02 else "lift"

    def _leave_carry(self) -> str:
        if self._dropped():
            return self._retry()
        if abs(self._scene.yaw_error(self._goal_yaw)) > 0.1:
            return "carry"
        distance = np.linalg.norm(self._scene.goal_offset())
        stuck = self._scene.speed < 0.005 and self._scene.near_enough()
        return "lower" if distance < 0.012 or stuck else "carry"

    def _leave_lower(self) -> str:
        scene = self._scene
        if self._dropped() and not scene.success:
            return self._retry()
        low = scene.object_bottom < self._release_height() + 0.004
        self._closed_opening = scene.opening
        return "release" if low or (scene.at_goal and scene.success) else "lower"

    def _leave_release(self) -> str:
        return "retreat" if self._scene.opening > min(0.075, self._closed_opening + 0.02) else "release"

    def _leave_retreat(self) -> str:
        scene = self._scene
        clear = scene.eef[2] > scene.object_top + HOVER - 0.03
        self.done = clear and scene.success
        return self._retry() if clear and not scene.success and scene.object_still else "retreat"

    def _release_height(self) -> float:
        return self._scene.release_height(self._scene.eef[2] - self._scene.object_bottom)

    def _dropped(self) -> bool:
        return not self._scene.touching and self._scene.fingers_still

    # Where the gripper goes in a phase: position (3,) in m and gripper command.

    def _approach(self) -> tuple[np.ndarray, float]:
        scene, grasp = self._scene, self._grasp.position
        height = grasp[2] + HOVER
        if scene.distance_xy(grasp) > 0.04:
            height = max(height, scene.highest_between(grasp) + CLEARANCE)
            if scene.eef[2] < height - 0.02:
                return np.array([*scene.eef[:2], height]), OPEN
        return np.array([*grasp[:2], height]), OPEN

    def _descend(self) -> tuple[np.ndarray, float]:
        return self._grasp.position, OPEN

    def _close(self) -> tuple[np.ndarray, float]:
        return self._grasp.position, CLOSE

    def _lift(self) -> tuple[np.ndarray, float]:
        return np.array([*self._grasp.position[:2], self._scene.eef[2] + 0.015]), CLOSE

    def _carry(self) -> tuple[np.ndarray, float]:
        scene = self._scene
        rise = scene.highest_between(scene.goal) + CLEARANCE - scene.object_bottom
        offset = scene.goal_offset() if rise < 0.02 else np.zeros(2)
        return scene.within_reach(scene.eef + np.array([*offset, rise])), CLOSE

    def _lower(self) -> tuple[np.ndarray, float]:
        scene = self._scene
        drop = min(self._release_height() - scene.object_bottom, 0.0) - 0.003
        return scene.eef + np.array([*scene.goal_offset(), drop]), CLOSE

    def _release(self) -> tuple[np.ndarray, float]:
        return self._scene.eef, OPEN

    def _retreat(self) -> tuple[np.ndarray, float]:
        scene = self._scene
        return np.array([*scene.eef[:2], max(scene.eef[2], scene.object_top + HOVER)]), OPEN
