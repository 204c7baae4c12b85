"""Scripted demonstrators for LIBERO's tasks, on privileged state: one skill for each condition of the goal."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium
import numpy as np
from rlspec_envs.libero.environment import LiberoEnv
from rlspec_envs.libero.fixtures import PullDrawer, PushDrawer, TurnKnob
from rlspec_envs.libero.geometry import CollisionGeometry
from rlspec_envs.libero.pick_place import PickPlace
from rlspec_envs.libero.simulation import LiberoSimulation
from rlspec_envs.libero.tasks import EXPERT_TASKS

Condition = tuple[str, ...]


class Skill(Protocol):
    """Brings one condition about; `done` once it holds and the hand is out of the way."""

    phase: str
    done: bool

    def __init__(self, simulation: LiberoSimulation, condition: Condition) -> None: ...

    def act(self) -> np.ndarray:
        """The next action (7,) float32 in [-1, 1]."""


SKILLS: dict[str, type[Skill]] = {
    "turnon": TurnKnob,
    "open": PullDrawer,
    "in": PickPlace,
    "on": PickPlace,
    "close": PushDrawer,
}
"""LIBERO's predicate -> what brings it about, in the order in which they do not undo each other."""


def make_libero_expert(env: gymnasium.Env[Any, Any]) -> LiberoExpert:
    """Return the demonstrator of `env`'s task; `ValueError` where there is none."""
    base = env.unwrapped
    if not isinstance(base, LiberoEnv):
        raise ValueError(f"no LIBERO expert for {type(base).__name__}: it is not a LiberoEnv")
    scripted = EXPERT_TASKS.get(base.suite, ())
    if base.task not in scripted:
        others = f"its tasks {', '.join(scripted)} have" if scripted else "no task of it has"
        raise ValueError(f"{base.suite} task {base.task} has no expert: {others} one")
    return LiberoExpert(base)


class LiberoExpert:
    """Brings about the conditions of a task's goal, one after the other, and again what a later one undid."""

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env

    @property
    def phase(self) -> str:
        """What it is at."""
        return self._skill.phase

    def reset(self) -> None:
        """Look at the scene anew; call it after the environment's reset."""
        self._conditions = list(plan(self._env.simulation))
        self._skill = self._next_skill()

    def act(self) -> np.ndarray:
        """Return the next action (7,) float32 in [-1, 1]."""
        action = self._skill.act()
        if self._skill.done:
            self._skill = self._next_skill()
        return action

    def _next_skill(self) -> Skill:
        simulation = self._env.simulation
        unmet = (condition for condition in self._conditions if not simulation.holds(condition))
        condition = next(unmet, self._conditions[-1])
        return SKILLS[condition[0]](simulation, condition)


def plan(simulation: LiberoSimulation) -> list[Condition]:
    """The conditions of the goal in an order in which they can be met.

    Of two objects the lower one comes first: a tall one beside it would be in the hand's way.
    """
    kinds = list(SKILLS)
    return sorted(simulation.goal, key=lambda condition: (kinds.index(condition[0]), _height(simulation, condition)))


def _height(simulation: LiberoSimulation, condition: Condition) -> float:
    """Of the object that a condition wants moved (m)."""
    if SKILLS[condition[0]] is not PickPlace:
        return 0.0
    geometry = CollisionGeometry(simulation.model, simulation.data)
    body = simulation.env.obj_body_id[condition[1]]
    return float(np.ptp(geometry.vertices(geometry.geoms_below(body))[:, 2]))
