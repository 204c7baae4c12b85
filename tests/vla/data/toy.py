"""A toy robot with the interface of rlspec_envs: a point that must reach a goal, quick and without a renderer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

GAIN = 5.0
SIZE = (24, 32)  # height and width differ, so that a mix-up shows


class Toy(gymnasium.Env[Any, Any]):
    """Seeds divisible by three fail: the goal is out of reach."""

    suite, control_hz, action_space_name = "toy", 10.0, "delta_eef"
    cameras = ("front", "side")

    def __init__(self, task: str = "reach") -> None:
        self.task = task
        self.render_observations = True
        self.resets = 0
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Dict({name: spaces.Box(0, 255, (*SIZE, 3), np.uint8) for name in self.cameras}),
                "agent_pos": spaces.Box(-10, 10, (4,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1, 1, (3,), np.float32)

    @property
    def instruction(self) -> str:
        return f"{self.task} the {'red' if self.goal[0] > 0 else 'blue'} goal"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.resets += 1
        self.position: NDArray[np.float64] = np.zeros(2)
        self.goal = self.np_random.uniform(-1, 1, 2) + (100.0 if seed is not None and seed % 3 == 0 else 0.0)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = self.position + 0.1 * np.asarray(action, np.float64)[:2]
        self.steps += 1
        success = bool(np.abs(self.position - self.goal).max() < 0.08)
        failure = "" if success else "timeout" if self.steps >= 40 else ""
        return self.observe(), 0.0, success, self.steps >= 40, {"is_success": success, "failure": failure}

    def observe(self) -> dict[str, Any]:
        state = np.concatenate([self.position, np.clip(self.goal, -9, 9)]).astype(np.float32)
        return {"pixels": {name: self._picture(name) for name in self.cameras}, "agent_pos": state}

    def _picture(self, camera: str) -> NDArray[np.uint8]:
        picture = np.zeros((*SIZE, 3), np.uint8)
        if self.render_observations:
            row, column = (int(12 + 10 * np.tanh(value)) for value in self.position)
            picture[..., self.cameras.index(camera)] = np.arange(SIZE[1], dtype=np.uint8) * 3
            picture[row, column] = 255
        return picture

    def describe(self) -> dict[str, Any]:
        return {"name": "toy", "robot": "point"}


class ToyExpert:
    def __init__(self, env: Any) -> None:
        self.env = env.unwrapped

    def reset(self) -> None: ...

    def act(self) -> NDArray[np.float32]:
        return expert_action(self.env.observe()["agent_pos"])


def expert_action(state: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the expert does in a state."""
    move = np.clip(GAIN * (state[2:].astype(np.float64) - state[:2]), -1, 1)
    return np.append(move, 1.0).astype(np.float32)


@contextmanager
def threads(workers: int) -> Iterator[Executor]:
    """In place of processes."""
    with ThreadPoolExecutor(workers) as pool:
        yield pool
