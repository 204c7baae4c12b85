"""A simulator of its own, as cheap as can be: a point in the plane that is pushed to a goal, seen by two cameras.

It keeps to the interface of rlspec_envs; some of its options make the process that runs it die, hang or raise.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE = 32
REACH = 0.05


def list_tasks(suite: str) -> list[str]:
    return ["near", "far"]


class PointEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    suite = "fake"
    action_space_name = "delta_eef"
    cameras: tuple[str, ...] = ("front", "side")

    def __init__(
        self,
        task: str,
        *,
        control_hz: float = 10.0,
        max_episode_steps: int = 30,
        cameras: tuple[str, ...] = ("front", "side"),
        crash: int | None = None,
        crash_once: int | None = None,
        hang: int | None = None,
        wrong: int | None = None,
        marks: str = "",
        log: str = "",
    ) -> None:
        if control_hz <= 0:
            raise ValueError(f"control_hz={control_hz} must be positive")
        self.task, self.control_hz, self.max_episode_steps = task, control_hz, max_episode_steps
        self.cameras = tuple(cameras)
        self.instruction = self.task_description = f"go to the {task} goal"
        self.render_observations = True
        self.rendered = 0
        self.closed = False
        self._fatal = {"crash": crash, "crash_once": crash_once, "hang": hang, "wrong": wrong}
        self._marks, self._log = Path(marks), Path(log)
        images: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8) for name in self.cameras
        }
        self.observation_space = spaces.Dict(
            {"pixels": spaces.Dict(images), "agent_pos": spaces.Box(-9, 9, (2,), np.float32)}
        )
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        distance = 0.5 if self.task == "near" else 1.0
        angle = self.np_random.uniform(0, 2 * np.pi)
        given = options or {}
        self.start = given.get("initial_state")
        if given.get("perturb") == "layout:3":
            distance += 5.0  # too far to get there in time
        self.goal = distance * np.array([np.cos(angle), np.sin(angle)])
        self.position: np.ndarray = np.zeros(2)
        self.steps = 0
        self._misbehave(seed)
        if self._log.name:
            with self._log.open("a") as file:
                file.write(f"{self.task} {seed} {os.getpid()}\n")
        return self.observe(), {"is_success": False, "failure": "", "task": self.task}

    def _misbehave(self, seed: int | None) -> None:
        if seed is None:
            return
        once = self._marks / str(seed)
        if seed == self._fatal["crash"] or (seed == self._fatal["crash_once"] and not once.exists()):
            once.touch()
            os._exit(7)
        if seed == self._fatal["hang"]:
            time.sleep(1000)
        if seed == self._fatal["wrong"]:
            raise RuntimeError("a mistake in the program")

    def observe(self) -> dict[str, Any]:
        pixels = {name: np.zeros((SIZE, SIZE, 3), np.uint8) for name in self.cameras}
        if self.render_observations:
            self.rendered += 1
            for number, name in enumerate(self.cameras):
                pixels[name][:] = 40 + 20 * number + 5 * (self.steps % 30)
        return {"pixels": pixels, "agent_pos": self.position.astype(np.float32)}

    def step(self, action: np.ndarray) -> Any:
        self.position = self.position + np.clip(action, -1, 1) / self.control_hz
        self.steps += 1
        success = bool(np.linalg.norm(self.position - self.goal) < REACH)
        truncated = not success and self.steps >= self.max_episode_steps
        info = {"is_success": success, "failure": "timeout" if truncated else "", "task": self.task}
        return self.observe(), float(success), success, truncated, info

    def describe(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "task": self.task,
            "control_hz": self.control_hz,
            "action_space": self.action_space_name,
            "max_episode_steps": self.max_episode_steps,
            "gl": "none",
            "initial_states": 3,
        }

    def close(self) -> None:
        self.closed = True


class PointExpert:
    def __init__(self, env: PointEnv) -> None:
        self._env = env

    def reset(self) -> None:
        pass

    def act(self) -> np.ndarray:
        wanted = (self._env.goal - self._env.position) * self._env.control_hz
        return np.clip(wanted, -1, 1).astype(np.float32)


def make_env(suite: str, task: str, **options: Any) -> PointEnv:
    return PointEnv(task, **options)


def make_expert(env: Any) -> PointExpert:
    return PointExpert(env.unwrapped)
