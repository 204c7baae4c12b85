"""Whether a robot did what its data says: actions and the states that follow them, the gripper and the fingers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import ACTION_SPACES, DELTA_EEF, JOINT_POSITION, JOINT_VELOCITY
from rlspec.contract.features import ACTION, EEF_STATE, JOINT_STATE, STATE
from rlspec.vla.data.comparison import Finding

AGAINST = -0.2  # a correlation below it is a sign that is wrong; noise and lag leave it positive or near 0
LAG = 5  # frames that fingers need to follow
LEAST = 50  # frames in which both move


def motion_findings(columns: Mapping[str, NDArray[Any]], action_space: str) -> Iterator[Finding]:
    """Numbers of the action that run against the state, as notes: a foreign data set may mean something else.

    Args:
        columns: action, observation.state and episode_index of all frames, (N, d) each.
        action_space: that they are taken for.
    """
    space = ACTION_SPACES[action_space]
    action, state = (np.asarray(columns[name], np.float64) for name in (ACTION, STATE))
    episode = columns["episode_index"][:, 0]
    if action.shape[1] != space.size:
        return
    for index, name, wanted in _movements(action_space, action, state):
        moved = _after(state[:, index], episode, 1) - state[:, index]
        if (found := _correlation(wanted, moved)) < AGAINST:
            yield (
                False,
                (
                    f"action[{index}] ({name}): it runs against {STATE}[{index}] (correlation {found:+.2f}); is its "
                    f"sign, or the order of numbers, another one than in {action_space}?"
                ),
            )
    closure = _closure(state)
    if closure is not None:
        opened, closed = space.gripper
        commanded = (action[:, -1] - opened) / (closed - opened)
        if (found := _correlation(commanded, _after(closure, episode, LAG))) < AGAINST:
            yield (
                False,
                (
                    f"action[{space.size - 1}] (gripper): the fingers open where it closes them (correlation "
                    f"{found:+.2f}); in {action_space} {opened:g} is open and {closed:g} closed: reverse it in the data"
                ),
            )


def _movements(
    action_space: str, action: NDArray[np.float64], state: NDArray[np.float64]
) -> Iterator[tuple[int, str, NDArray[np.float64]]]:
    """(number of action and state, its name, where the action wants to move it)."""
    names = ACTION_SPACES[action_space].names
    size = state.shape[1]
    if action_space == DELTA_EEF and size == len(EEF_STATE):
        yield from ((index, names[index], action[:, index]) for index in range(3))
    elif action_space in (JOINT_VELOCITY, JOINT_POSITION) and size == len(JOINT_STATE):
        for index in range(7):
            relative = action[:, index] - (state[:, index] if action_space == JOINT_POSITION else 0.0)
            yield index, names[index], relative


def _closure(state: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """How far the fingers are closed, in any unit; both kinds of state have eight numbers, the last two differ."""
    if state.shape[1] != len(JOINT_STATE):
        return None
    left, right = state[:, -2], state[:, -1]
    fingers = bool((np.abs(left + right) < 0.01).mean() > 0.9 and np.abs(left).max() < 0.2)  # metres, opposite signs
    return right - left if fingers else right


def _after(values: NDArray[np.float64], episode: NDArray[Any], frames: int) -> NDArray[np.float64]:
    """The value so many frames later, NaN where the episode has ended."""
    later = np.full_like(values, np.nan)
    same = episode[frames:] == episode[:-frames]
    later[:-frames][same] = values[frames:][same]
    return later


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's; 0 where too few frames tell."""
    there = np.isfinite(first) & np.isfinite(second)
    first, second = first[there], second[there]
    if len(first) < LEAST or first.std() < 1e-9 or second.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
