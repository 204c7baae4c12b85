"""Scripted demonstrators for LIBERO's pick-and-place suites, on privileged state.

They react to the state and not to a clock: every action is computed from where the gripper and the object are, and a
phase is left when the state says so. An object that slipped is picked up again, with another grasp.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from rlspec_envs.libero.environment import LiberoEnv
from rlspec_envs.libero.grasps import Grasp
from rlspec_envs.libero.scene import CLEARANCE, PickPlaceScene
from rlspec_envs.libero.tasks import EXPERT_SUITES

HOVER = 0.07
"""Height (m) above the grasp point from which the gripper descends."""
OPEN, CLOSE = -1.0, 1.0


def make_libero_expert(env: gymnasium.Env[Any, Any]) -> LiberoExpert:
    """Return the demonstrator of `env`'s task; `ValueError` where LIBERO's suite has none."""
    base = env.unwrapped
    if not isinstance(base, LiberoEnv):
        raise ValueError(f"no LIBERO expert for {type(base).__name__}: it is not a LiberoEnv")
    if base.suite not in EXPERT_SUITES:
        raise ValueError(f"{base.suite} task {base.task} has no expert: there are some for {', '.join(EXPERT_SUITES)}")
    return LiberoExpert(base)


class LiberoExpert:
    """Picks the task's object and places it in the basket or on the plate."""

    phase = "approach"

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env
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

    def reset(self) -> None:
        """Look at the scene anew; call it after the environment's reset."""
        self._scene = PickPlaceScene(self._env)
        self._failures = 0
        self.phase = self._start_over()

    def act(self) -> np.ndarray:
        """Return the next action (7,) float32 in [-1, 1]."""
        self._scene.refresh()
        leave, _ = self._phases[self.phase]
        self.phase = leave()
        _, target = self._phases[self.phase]
        position, gripper = target()
        return self._scene.action_towards(position, self._grasp.yaw, gripper)

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
        return "carry" if self._scene.object_bottom > self._planned_bottom + 0.02 else "lift"

    def _leave_carry(self) -> str:
        if self._dropped():
            return self._retry()
        distance = np.linalg.norm(self._scene.goal_offset())
        stuck = self._scene.speed < 0.005 and distance < 0.025
        return "lower" if distance < 0.012 or stuck else "carry"

    def _leave_lower(self) -> str:
        scene = self._scene
        if self._dropped() and not scene.success:
            return self._retry()
        low = scene.object_bottom < scene.release_height() + 0.004
        self._closed_opening = scene.opening
        return "release" if low or (scene.at_goal and scene.success) else "lower"

    def _leave_release(self) -> str:
        return "retreat" if self._scene.opening > min(0.075, self._closed_opening + 0.02) else "release"

    def _leave_retreat(self) -> str:
        scene = self._scene
        clear = scene.eef[2] > scene.object_top + HOVER - 0.03
        return self._retry() if clear and not scene.success and scene.object_still else "retreat"

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
        drop = min(scene.release_height() - scene.object_bottom, 0.0) - 0.003
        return scene.eef + np.array([*scene.goal_offset(), drop]), CLOSE

    def _release(self) -> tuple[np.ndarray, float]:
        return self._scene.eef, OPEN

    def _retreat(self) -> tuple[np.ndarray, float]:
        scene = self._scene
        return np.array([*scene.eef[:2], max(scene.eef[2], scene.object_top + HOVER)]), OPEN
