"""Policies without a model, to try a robot's side: hold, zeros and replay. They need neither torch nor a GPU."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import ACTION_SPACES, CARTESIAN_POSITION, JOINT_POSITION, RELATIVE_SPACES
from rlspec.contract.messages import ACTIONS
from rlspec.errors import ConfigError, DataError
from rlspec.serving.policy import Observation, PolicySpec

BUILT_IN = ("hold", "zeros", "replay")
_MAX_BATCH = 1024
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)


class HoldBatchPolicy:
    """Stay where the robot is: the present joints, or no velocity; the gripper as it is."""

    def __init__(self, spec: PolicySpec) -> None:
        """Keep the spec.

        Raises:
            ConfigError: The action space is cartesian_position: there is no pose in an observation.
        """
        if spec.action_space == CARTESIAN_POSITION:
            raise ConfigError(f"policy=hold: cannot act in {spec.action_space}; choose action_space={JOINT_POSITION}")
        self.spec = spec
        self.max_batch = _MAX_BATCH

    def infer(self, observations: Sequence[Observation]) -> list[NDArray[np.float32]]:
        """See `BatchPolicy`."""
        return [np.tile(self._action(each.state), (self.spec.horizon, 1)) for each in observations]

    def _action(self, state: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.array(ACTION_SPACES[self.spec.action_space].hold(state[:7], float(state[-1])), np.float32)

    def forget(self, session: int) -> None:
        """Nothing is remembered."""


class ZerosPolicy:
    """All numbers zero."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec
        self.max_batch = _MAX_BATCH

    def infer(self, observations: Sequence[Observation]) -> list[NDArray[np.float32]]:
        """See `BatchPolicy`."""
        shape = (self.spec.horizon, ACTION_SPACES[self.spec.action_space].size)
        return [np.zeros(shape, np.float32) for _ in observations]

    def forget(self, session: int) -> None:
        """Nothing is remembered."""


class ReplayPolicy:
    """Recorded actions from the first to the last, for each session anew; then the last one for ever."""

    def __init__(self, spec: PolicySpec, actions: NDArray[np.float32]) -> None:
        self.spec = spec
        self.max_batch = _MAX_BATCH
        self._actions = actions
        self._places: dict[int, int] = {}

    def infer(self, observations: Sequence[Observation]) -> list[NDArray[np.float32]]:
        """See `BatchPolicy`."""
        return [self._next(each.session) for each in observations]

    def _next(self, session: int) -> NDArray[np.float32]:
        place = self._places.get(session, 0)
        self._places[session] = place + self.spec.n_action_steps
        indices = np.minimum(np.arange(place, place + self.spec.horizon), len(self._actions) - 1)
        chunk = self._actions[indices]
        if self.spec.action_space in RELATIVE_SPACES:
            chunk[np.arange(place, place + self.spec.horizon) >= len(self._actions), :-1] = 0.0  # stay there
        return chunk

    def forget(self, session: int) -> None:
        """Begin with the first action again."""
        self._places.pop(session, None)


def load_actions(path: Path, action_space: str) -> NDArray[np.float32]:
    """Recorded actions (N, numbers of an action): .npy, .npz with `actions`, or a tick log (.jsonl) with `requested`.

    Raises:
        DataError: The file is missing, broken, or has other numbers.
    """
    width = ACTION_SPACES[action_space].size
    try:
        actions = np.asarray(_read(path), np.float32)
    except OSError as error:
        raise DataError(f"policy=replay:{path}: {error.strerror or 'cannot be read'}") from error
    except _UNREADABLE as error:  # NumPy's words are no help: for any foreign file it proposes to unpickle it
        wanted = ".npy, .npz with `actions`, or the ticks.jsonl of a run"
        raise DataError(f"policy=replay:{path}: holds no recorded actions; give {wanted}") from error
    if actions.ndim != 2 or not len(actions) or actions.shape[1] != width or not np.isfinite(actions).all():
        raise DataError(
            f"policy=replay:{path}: actions of shape {actions.shape}; {action_space} wants finite (N, {width})"
        )
    return actions


def _read(path: Path) -> object:
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [row["requested"] for row in rows if row.get("requested") is not None]
    content = np.load(path, allow_pickle=False)
    return content[ACTIONS] if isinstance(content, np.lib.npyio.NpzFile) else content
