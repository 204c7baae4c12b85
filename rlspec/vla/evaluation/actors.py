"""Who decides on actions: the scripted expert, a record, or a policy (in `policy_actor`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np

from rlspec.contract.features import AGENT_POS
from rlspec.vla.evaluation.simulator import Action, Observation, Simulator, SimulatorExpert


class Actor(ABC):
    """Decides on actions in one environment at a time."""

    @abstractmethod
    def reset(self, env: gymnasium.Env[Any, Any], seed: int) -> None:
        """Begin an episode of an environment that was just reset; all that is random follows the seed."""

    @abstractmethod
    def act(self, observation: Observation) -> Action:
        """The action for the present observation."""

    def needs_images(self) -> bool:
        """Whether the next call of `act` looks at pixels."""
        return False

    def note(self) -> str:
        """A remark on the episode so far."""
        return ""

    def describe(self) -> dict[str, Any] | None:
        """What a report has to say about the policy; None where it is none."""
        return None


class ExpertActor(Actor):
    """The scripted expert of the environment's task."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._env: gymnasium.Env[Any, Any] | None = None
        self._expert: SimulatorExpert | None = None

    def reset(self, env: gymnasium.Env[Any, Any], seed: int) -> None:
        """Bind an expert to a new environment."""
        if env is not self._env or self._expert is None:
            self._env, self._expert = env, self._simulator.make_expert(env)
        self._expert.reset()

    def act(self, observation: Observation) -> Action:
        """What the expert does in the simulator's present state."""
        assert self._expert is not None, "reset comes first"
        return self._expert.act()


class ReplayActor(Actor):
    """Repeats recorded actions and compares the states on the way with the recorded ones.

    Args:
        actions: (T, action size).
        states: (T, state size): what was observed before each action; None: nothing is compared.
        tolerance: Largest deviation of a state's number that counts as equal.
    """

    def __init__(self, actions: np.ndarray, states: np.ndarray | None = None, *, tolerance: float = 1e-4) -> None:
        self._actions = np.asarray(actions, dtype=np.float32)
        self._states = states
        self._tolerance = tolerance
        self._step = 0
        self._note = ""

    def reset(self, env: gymnasium.Env[Any, Any], seed: int) -> None:
        """Begin at the first action."""
        self._step, self._note = 0, ""

    def act(self, observation: Observation) -> Action:
        """The next recorded action."""
        step, self._step = self._step, self._step + 1
        assert step < len(self._actions), "the caller ends the episode with its record"
        if self._states is not None and not self._note:
            self._compare(step, np.asarray(observation[AGENT_POS]))
        return self._actions[step]

    def _compare(self, step: int, state: np.ndarray) -> None:
        assert self._states is not None
        if state.shape != self._states[step].shape:
            self._note = f"the state has {state.size} numbers, the record {self._states[step].size}"
        elif (gap := float(np.abs(state - self._states[step]).max())) > self._tolerance:
            self._note = f"the state left the record at step {step} (by {gap:.2g})"

    def note(self) -> str:
        """Where the episode left its record, if it did."""
        return self._note
