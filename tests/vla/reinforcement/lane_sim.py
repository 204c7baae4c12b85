"""A lane on which a point has to go to the right, as cheap as can be; it keeps to the interface of rlspec_envs.

Beyond a cliff at the side its step raises: that depends on what an episode does, not on its seed.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE = 32
LIMIT = 8


def list_tasks(suite: str) -> list[str]:
    return ["pick_place"]


class LaneEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    suite = "lane"
    cameras = ("front",)
    instruction = task_description = "go right"

    def __init__(
        self,
        goal: float = 0.04,  # where an untrained policy succeeds in about half of its episodes
        max_episode_steps: int = LIMIT,
        cliff: float = 9.0,
        silent: bool = False,
        action_space: str = "delta_eef",
        **others: Any,
    ) -> None:
        self.goal, self.max_episode_steps, self.cliff = goal, max_episode_steps, cliff
        self.silent, self.action_space_name = silent, action_space
        self.control_hz, self.render_observations = 10.0, True
        picture = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {"pixels": spaces.Dict({"front": picture}), "agent_pos": spaces.Box(-9, 9, (2,), np.float32)}
        )
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.start = self.position = np.array([self.np_random.uniform(-0.05, 0.05), 0.0])
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> dict[str, Any]:
        shade = 40 + 10 * self.steps if self.render_observations else 0
        pixels = {"front": np.full((SIZE, SIZE, 3), shade, np.uint8)}
        return {"pixels": pixels, "agent_pos": self.position.astype(np.float32)}

    def step(self, action: np.ndarray) -> Any:
        self.position = self.position + 0.1 * np.clip(action, -1, 1)
        self.steps += 1
        if self.position[1] > self.cliff:
            raise RuntimeError("fell off the lane")
        success = bool(self.position[0] - self.start[0] > self.goal)
        truncated = not success and self.steps >= self.max_episode_steps
        info = {} if self.silent else {"is_success": success, "failure": "timeout" if truncated else ""}
        return self.observe(), float(success), success, truncated, info

    def describe(self) -> dict[str, Any]:
        limit = self.max_episode_steps
        return {"suite": self.suite, "control_hz": self.control_hz, "max_episode_steps": limit, "gl": "none"}


def make_env(suite: str, task: str, **options: Any) -> LaneEnv:
    return LaneEnv(**options)
