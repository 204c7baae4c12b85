"""rlspec_envs with a success that chance brings about: the hand has gone to its left.

As a command it starts a run of GRPO on it, with overrides of a recipe as arguments.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import gymnasium
import rlspec_envs
from rlspec_envs import list_tasks, make_expert

__all__ = ["list_tasks", "make_env", "make_expert"]

STEPS = 4  # before success counts


class Eased(gymnasium.Wrapper[Any, Any, Any, Any]):
    def reset(self, **given: Any) -> Any:
        observation, info = self.env.reset(**given)
        self.start, self.steps = float(observation["agent_pos"][1]), 0
        return observation, info

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        success = self.steps >= STEPS and float(observation["agent_pos"][1]) > self.start
        ended = (terminated or success, truncated and not success)
        return observation, float(success), *ended, {**info, "is_success": success}


def make_env(suite: str, task: str, **options: Any) -> gymnasium.Env[Any, Any]:
    return Eased(rlspec_envs.make_env(suite, task, **options))


def main(overrides: Sequence[str]) -> int:
    from rlspec.config.load import load_vla_recipe
    from rlspec.vla.evaluation.protocol import build_protocol
    from rlspec.vla.reinforcement import session
    from rlspec.vla.run import run_vla_recipe

    session.build_protocol = functools.partial(build_protocol, module="eased_sim")  # type: ignore[assignment]
    recipe = load_vla_recipe(overrides)
    return run_vla_recipe(recipe, evaluator=lambda *_: nullcontext(None))  # type: ignore[arg-type,return-value]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
