"""The simulator as an evaluation sees it: a module with the functions of `rlspec_envs`, a suite, its options."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlspec.errors import ConfigError

Observation = dict[str, Any]  # "pixels" {camera: uint8 (H, W, 3)}, "agent_pos" float32 (n,)
Action = NDArray[np.float32]


class SimulatorExpert(Protocol):
    """Solves a task with knowledge of the state."""

    def reset(self) -> None:
        """Begin an episode."""

    def act(self) -> Action:
        """The next action."""


@dataclass(frozen=True)
class Simulator:
    """How to make environments.

    Attributes:
        suite: A suite of the module.
        options: Keyword arguments of the environment.
        module: Import name of a module with `list_tasks(suite)`, `make_env(suite, task, **options)` and
            `make_expert(env)`, whose environments keep to the interface of rlspec_envs.
    """

    suite: str
    options: dict[str, Any] = field(default_factory=dict)
    module: str = "rlspec_envs"

    def tasks(self) -> list[str]:
        """All tasks of the suite."""
        return list(importlib.import_module(self.module).list_tasks(self.suite))

    def make(self, task: str, max_steps: int | None = None) -> gymnasium.Env[Any, Any]:
        """An environment, with another limit of steps than its own where one is given.

        Raises:
            ConfigError: An option is wrong, or something that the environment needs is missing.
        """
        from rlspec_envs.errors import EnvironmentUnavailable

        options = self.options if max_steps is None else {**self.options, "max_episode_steps": max_steps}
        try:
            return importlib.import_module(self.module).make_env(self.suite, task, **options)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"env: {self.suite}, task {task}: {_one_line(error)}") from error
        except EnvironmentUnavailable as error:
            raise ConfigError(_one_line(error)) from error

    def make_expert(self, env: gymnasium.Env[Any, Any]) -> SimulatorExpert:
        """The scripted expert of an environment.

        Raises:
            ConfigError: The task has none.
        """
        try:
            return importlib.import_module(self.module).make_expert(env)
        except ValueError as error:
            raise ConfigError(f"policy=expert: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
