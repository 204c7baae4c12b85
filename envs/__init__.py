"""Gymnasium environments of rlspec, installed as `rlspec_envs`. Never imports rlspec.

Importing it registers `rlspec/FrankaPickPlace-v0`, `rlspec/LiberoSpatial-v0` and their like with gymnasium, and imports
no simulator.
"""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.envs.registration import WrapperSpec
from numpy.typing import NDArray
from rlspec_envs.errors import check_keywords, nearest

FRANKA_TASKS: dict[str, tuple[str, int]] = {
    "pick_place": ("rlspec/FrankaPickPlace-v0", 200),
    "push": ("rlspec/FrankaPush-v0", 200),
    "stack": ("rlspec/FrankaStack-v0", 200),
    "drawer": ("rlspec/FrankaDrawer-v0", 200),
}
"""gymnasium id and time limit (control steps) of each Franka task."""

LIBERO_IDS: dict[str, str] = {
    "libero_spatial": "rlspec/LiberoSpatial-v0",
    "libero_object": "rlspec/LiberoObject-v0",
    "libero_goal": "rlspec/LiberoGoal-v0",
    "libero_10": "rlspec/Libero10-v0",
    "libero_90": "rlspec/Libero90-v0",
}
SUITES: tuple[str, ...] = ("franka", *LIBERO_IDS)


class Expert(Protocol):
    """A privileged demonstrator: it acts on the simulator's state, not on a clock."""

    def reset(self) -> None:
        """Call after each reset of the environment."""

    def act(self) -> NDArray[np.float32]:
        """Return the next action, clipped to the action space."""


def _register() -> None:
    for task, (name, limit) in FRANKA_TASKS.items():
        gymnasium.register(
            name,
            entry_point="rlspec_envs.franka.environment:FrankaEnv",
            max_episode_steps=limit,
            kwargs={"task": task, "time_limit": limit},
            additional_wrappers=(WrapperSpec("TellTimeLimit", "rlspec_envs.franka.environment:TellTimeLimit", {}),),
        )
    for suite, name in LIBERO_IDS.items():
        # The protocol profile sets the time limit, so the environment truncates by itself.
        gymnasium.register(
            name,
            entry_point="rlspec_envs.libero.environment:LiberoEnv",
            kwargs={"suite": suite},
        )


def _check_suite(suite: str) -> str:
    if suite not in SUITES:
        raise ValueError(f"suite {suite!r} is unknown; {nearest(str(suite), SUITES)}")
    return suite


def list_tasks(suite: str) -> list[str]:
    """Return the tasks of a suite: names for franka, task ids as text for LIBERO.

    Raises:
        ValueError: The suite is unknown.
        EnvironmentUnavailable: LIBERO is not installed.
    """
    if _check_suite(suite) == "franka":
        return list(FRANKA_TASKS)
    from rlspec_envs.libero.tasks import list_libero_tasks

    return list(list_libero_tasks(suite))


def task_called(suite: str, words: str) -> str | None:
    """The task of a LIBERO suite that has this name or instruction; None where there is none, or no LIBERO."""
    if suite not in LIBERO_IDS:
        return None
    from rlspec_envs.errors import EnvironmentUnavailable
    from rlspec_envs.libero.tasks import get_task, list_libero_tasks

    def plain(text: str) -> str:
        return " ".join(text.lower().replace("_", " ").strip(" .").split())

    try:
        tasks = [get_task(suite, int(number)) for number in list_libero_tasks(suite)]
    except EnvironmentUnavailable:
        return None
    called = plain(words)
    return next((str(task.task_id) for task in tasks if called in (plain(task.name), task.instruction)), None)


def make_env(suite: str, task: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """Make an environment through gymnasium, without its (slow) checking wrapper.

    Workers of vector environments that render have to be spawned, not forked, once this process has rendered:
    `AsyncVectorEnv(..., context="spawn")`.

    Args:
        suite: One of `SUITES`.
        task: One of `list_tasks(suite)`.
        options: Keywords of the environment's class; `max_episode_steps` overrides the time limit.

    Raises:
        ValueError: Suite, task or an option is wrong.
        EnvironmentUnavailable: A package, assets or a GL library is missing.
    """
    tasks = list_tasks(suite)
    if str(task) not in tasks:
        shown = ", ".join(tasks) if len(tasks) <= 10 else f"{tasks[0]} to {tasks[-1]}"
        raise ValueError(f"task {task!r} of suite {suite} is unknown: choose one of {shown}")
    if suite == "franka":
        if options.get("render_mode") == "human":  # gymnasium would answer with a demand for pygame
            from rlspec_envs.franka.viewer import require_display

            require_display()
        return gymnasium.make(FRANKA_TASKS[task][0], disable_env_checker=True, **options)
    from rlspec_envs.libero.environment import LiberoEnv

    check_keywords(options, LiberoEnv, where=suite)  # gymnasium would answer with a paragraph
    return gymnasium.make(LIBERO_IDS[suite], disable_env_checker=True, task_id=int(task), **options)


def expert_tasks(suite: str) -> tuple[str, ...]:
    """Tasks of a suite that have a scripted expert; makes no environment.

    Raises:
        ValueError: The suite is unknown.
    """
    if _check_suite(suite) == "franka":
        return tuple(FRANKA_TASKS)
    from rlspec_envs.libero.tasks import EXPERT_TASKS

    return EXPERT_TASKS.get(suite, ())


def make_expert(env: gymnasium.Env[Any, Any]) -> Expert:
    """Return the scripted expert for an environment's task.

    Raises:
        ValueError: The task has none.
    """
    suite = getattr(env.unwrapped, "suite", None)
    if suite == "franka":
        from rlspec_envs.franka.experts import FrankaExpert

        return FrankaExpert(env.unwrapped)
    if suite in LIBERO_IDS:
        from rlspec_envs.libero.experts import make_libero_expert

        expert: Expert = make_libero_expert(env)
        return expert
    raise ValueError(f"{env} is no environment of rlspec: make it with rlspec_envs.make_env")


_register()
