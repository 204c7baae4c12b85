"""Episodes of the expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import rlspec_envs
from rlspec_envs.franka.environment import FrankaEnv

MakeScene = Callable[..., FrankaEnv]


def play(env: FrankaEnv, seed: int, noise: float = 0.0) -> tuple[dict[str, Any], list[np.ndarray], list[np.ndarray]]:
    """One episode of the expert, its actions disturbed on a fifth of the steps: last info, actions, physics states."""
    expert = rlspec_envs.make_expert(env)
    disturbance = np.random.default_rng(seed)
    env.reset(seed=seed)
    expert.reset()
    actions, states, done, info = [], [], False, {}
    while not done:
        action = expert.act()
        assert env.action_space.contains(action)
        if noise and disturbance.random() < 0.2:
            action = action + disturbance.normal(0.0, noise, action.shape).astype(np.float32)
        _, _, terminated, truncated, info = env.step(action)
        assert terminated == info["is_success"]
        done = terminated or truncated
        actions.append(action)
        states.append(np.concatenate([env.world.data.qpos, env.world.data.qvel]))
    return info, actions, states
