"""Which frames of an episode are kept, and what it is called."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from rlspec.vla.droid.episodes import Numbers, Recording, Refused

MIN_IDLE_LEN, MIN_NON_IDLE_LEN, FILTER_LAST_N = 7, 16, 10  # openpi, compute_droid_nonidle_ranges
IDLE_CHANGE = 1e-3  # of a command between two frames

Range = tuple[int, int]  # first frame, and the one after the last


def idle_frames(command: Numbers, closure: Numbers, enabled: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Where nothing is commanded anew.

    openpi looks at the arm alone. Here a gripper that moves is not idle, or a scripted grasp, for which the arm stands
    still, would be cut out; and a frame in which the operator's commands did not reach the robot is.

    Args:
        command: (T, d) of the arm.
        closure: (T, n) of the gripper, measured and commanded.
        enabled: (T,) whether commands reached the robot.
    """

    def still(values: Numbers) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = (np.abs(np.diff(values, axis=0)) < IDLE_CHANGE).all(axis=1)
        return result

    idle = np.concatenate([[False], still(command) & still(closure)])
    return idle if enabled is None else idle | ~enabled


def kept_ranges(
    idle: NDArray[np.bool_],
    *,
    min_idle_len: int = MIN_IDLE_LEN,
    min_non_idle_len: int = MIN_NON_IDLE_LEN,
    filter_last_n: int = FILTER_LAST_N,
) -> list[Range]:
    """What remains of an episode without its idle stretches.

    Args:
        idle: (T,).
        min_idle_len: Shorter stretches of idle frames are kept.
        min_non_idle_len: Shorter stretches of other frames are not kept.
        filter_last_n: Frames that are cut from the end of each, where a chunk of actions would run into what was cut.
    """
    keep = np.ones(len(idle), dtype=bool)
    for start, end in _runs(idle):
        if end - start >= min_idle_len:
            keep[start:end] = False
    long_enough = [(start, end - filter_last_n) for start, end in _runs(keep) if end - start >= min_non_idle_len]
    return [(start, end) for start, end in long_enough if end > start]


def _runs(flags: NDArray[np.bool_]) -> list[Range]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def chosen_ranges(recording: Recording, command: Numbers, *, drop_idle: bool) -> list[Range]:
    """The parts of an episode that become episodes.

    Raises:
        Refused: Nothing remains.
    """
    if recording.ranges is not None:
        inside = [(max(start, 0), min(end, len(recording))) for start, end in recording.ranges]
        if not (ranges := [(start, end) for start, end in inside if end > start]):
            raise Refused("idle", f"ranges= keeps none of its {len(recording)} frames")
        return ranges
    if not drop_idle:
        return [(0, len(recording))]
    closure = np.concatenate([recording.state["gripper_position"], recording.actions["gripper_position"]], axis=1)
    ranges = kept_ranges(idle_frames(command, closure, recording.enabled))
    if not ranges:
        raise Refused("idle", f"none of its {len(recording)} frames remains without the idle ones")
    return ranges


def choose_instructions(recording: Recording, choice: str, seed: int) -> list[str]:
    """What the episode is called.

    Args:
        recording: Its instructions.
        choice: first, random, all, or an index.
        seed: Of a random choice, which depends on the episode's identity as well and not on the order of episodes.

    Raises:
        Refused: There is none, or not so many.
    """
    there = list(dict.fromkeys(text for text in (each.strip() for each in recording.instructions) if text))
    if not there:
        raise Refused("no_instruction", "it has no instruction; give annotations=FILE")
    if choice == "all":
        return there
    if choice == "random":
        return [there[np.random.default_rng([seed, zlib.crc32(recording.identity.encode())]).integers(len(there))]]
    index = 0 if choice == "first" else int(choice)
    if index >= len(there):
        raise Refused("no_instruction", f"it has {len(there)} instructions, none with the index {index}")
    return [there[index]]


def check_success(recording: Recording, wanted: str) -> None:
    """Leave failures out where only successes are wanted; what does not say is kept.

    Raises:
        Refused: It is a failure.
    """
    if wanted == "only" and recording.success is False:
        raise Refused("not_successful", "a failure, left out by success=only")
