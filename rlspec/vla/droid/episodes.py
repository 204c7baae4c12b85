"""One recorded episode as every reader gives it, and why it may be refused. Imports neither torch nor LeRobot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import (
    ACTION_SPACES,
    CARTESIAN_POSITION,
    CARTESIAN_VELOCITY,
    DELTA_EEF,
    DROID_SPACES,
    JOINT_POSITION,
)
from rlspec.contract.droid import FLANGE
from rlspec.errors import DataError
from rlspec.vla.data.recording import Pixels
from rlspec.vla.droid.schema import GRIPPER_POSITION

Numbers = NDArray[np.float64]
Frame = Callable[[], Pixels]  # decodes one image, (H, W, 3), when it is wanted

ACTION_SIZES: dict[str, int] = {name: ACTION_SPACES[name].size - 1 for name in DROID_SPACES} | {GRIPPER_POSITION: 1}
STATE_SIZES = {name: ACTION_SIZES[name] for name in (JOINT_POSITION, GRIPPER_POSITION, CARTESIAN_POSITION)}
_RATE_TOLERANCE = 0.2  # of the interval between two frames; DROID's own loop takes a little longer than 1/15 s


_LONGEST_GAP = 0.5  # seconds between two frames; a slow step of the recording loop takes less


class Refused(Exception):
    """An episode cannot be used.

    Attributes:
        kind: One word of `KINDS`.
        reason: In words, with numbers and names.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)  # both, or it could not be sent by a worker
        assert kind in KINDS, kind
        self.kind, self.reason = kind, reason


KINDS = (
    "missing_camera",
    "missing_file",
    "missing_key",
    "corrupt_file",
    "corrupt_video",
    "length_mismatch",
    "wrong_rate",
    "gap",
    "not_finite",
    "empty",
    "idle",
    "no_instruction",
    "not_successful",
    "other_frame",
    "other_law",
    "other_robot",
    "other_marks",
)


@dataclass
class Recording:
    """One episode; images are read camera by camera, frame by frame.

    Attributes:
        identity: Path or number within the source, the same in every run.
        state: Name of `STATE_SIZES` -> (T, d), as far as there are.
        actions: Name of `ACTION_SIZES` -> (T, d), as far as there are.
        instructions: What the robot was told, in the order of the annotators.
        success: None where the recording does not say.
        rate: Frames per second, by convention of the source.
        frames: Camera -> its T frames, in order; raises `Refused`.
        times: (T,) seconds by the recording's own clock, where it has one.
        enabled: (T,) whether the operator's commands reached the robot, where it says so.
        interventions: (T,) whether a human moved the arm in a policy's place, where the recording says so.
        robot: Of what kind.
        law: Execution law, where the recording names it.
        pose_frame: Whose pose `cartesian_position` is, in the robot's base frame: FLANGE, as DROID's, or TCP.
        place: Where it is from, as far as it says.
        notes: What was done so that it can be used.
        ranges: What to keep of it, first frame and the one after the last; None: all.
    """

    identity: str
    state: dict[str, Numbers]
    actions: dict[str, Numbers]
    instructions: tuple[str, ...]
    success: bool | None
    rate: float
    frames: Callable[[str], Iterator[Frame]]
    times: Numbers | None = None
    enabled: NDArray[np.bool_] | None = None
    interventions: NDArray[np.bool_] | None = None
    robot: str = "franka"
    law: str | None = None
    pose_frame: str = FLANGE
    place: str = ""
    notes: tuple[str, ...] = ()
    ranges: tuple[tuple[int, int], ...] | None = None

    def __len__(self) -> int:
        return len(self.state[JOINT_POSITION])


@dataclass(frozen=True)
class Item:
    """Where an episode is; small, and can be sent to a worker.

    Attributes:
        identity: As in `Recording`.
        place: What its reader needs: a path, an offset, a number.
    """

    identity: str
    place: tuple[str | int, ...] = ()


class RecordingSource(Protocol):
    """A set of recordings."""

    def items(self) -> list[Item]:
        """All episodes, in a fixed order.

        Raises:
            DataError: There are none.
        """

    def read(self, item: Item) -> Recording:
        """One episode.

        Raises:
            Refused: It cannot be used.
        """


def needed_numbers(action_space: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of states and of actions without which an action space cannot be had."""
    if action_space == DELTA_EEF:
        return (JOINT_POSITION, GRIPPER_POSITION, CARTESIAN_POSITION), (GRIPPER_POSITION,)
    state: tuple[str, ...] = (JOINT_POSITION, GRIPPER_POSITION)
    if action_space == CARTESIAN_VELOCITY:
        state += (CARTESIAN_POSITION,)
    return state, (action_space, GRIPPER_POSITION)


def check_recording(recording: Recording, action_space: str) -> None:
    """Refuse an episode whose numbers cannot be used.

    Raises:
        Refused: A number is missing or not finite, lengths differ, the rate is another, or there is nothing.
    """
    _check_numbers(recording, action_space)
    if recording.times is not None:
        _check_rate(recording.times, recording.rate)


def _check_numbers(recording: Recording, action_space: str) -> None:
    states, actions = needed_numbers(action_space)
    length = None
    for kind, names, values in (("state", states, recording.state), ("action", actions, recording.actions)):
        for name in names:
            if name not in values:
                raise Refused("missing_key", f"no {kind} {name}, which action_space={action_space} needs")
    for kind, values in (("state", recording.state), ("action", recording.actions)):
        for name, numbers in values.items():
            size = (STATE_SIZES if kind == "state" else ACTION_SIZES)[name]
            if numbers.ndim != 2 or numbers.shape[1] != size:
                raise Refused("missing_key", f"{kind} {name} has the shape {numbers.shape}, (frames, {size}) wanted")
            length = len(numbers) if length is None else length
            if len(numbers) != length:
                raise Refused("length_mismatch", f"{kind} {name} has {len(numbers)} frames, others have {length}")
            bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
            if len(bad):
                raise Refused("not_finite", f"{kind} {name} is not finite in {len(bad)} frames, first in {bad[0]}")
    marked = {"timestamps": recording.times, "movement_enabled": recording.enabled}
    for name, marks in (marked | {"marks of interventions": recording.interventions}).items():
        if marks is not None and len(marks) != length:
            raise Refused("length_mismatch", f"there are {len(marks)} {name} of {length} frames")
    if not length:
        raise Refused("empty", "no frames")


def _check_rate(times: Numbers, rate: float) -> None:
    if len(times) < 2:
        return
    intervals = np.diff(times)
    if not np.isfinite(intervals).all() or (intervals <= 0).any():
        frame = int(np.argmax(~(intervals > 0) | ~np.isfinite(intervals))) + 1
        step = intervals[frame - 1]
        raise Refused("wrong_rate", f"timestamps do not increase: frame {frame} is {step:+.3g} s after the one before")
    interval = float(np.median(intervals))
    if not math.isclose(interval * rate, 1.0, abs_tol=_RATE_TOLERANCE):
        raise Refused(
            "wrong_rate",
            f"recorded at {1 / interval:.3g} Hz by its timestamps, {rate:g} expected; source_fps= says what is",
        )
    frame = int(np.argmax(intervals)) + 1
    if (gap := float(intervals[frame - 1])) > _LONGEST_GAP:
        raise Refused("gap", f"{gap:.2f} s are missing before frame {frame}, or its clock was set")


def frames_of_film(film: Iterator[Frame], path: Path, name: str) -> Iterator[Frame]:
    """The frames of a video at a path, with what is wrong with it as a refusal that calls it by its name."""
    try:
        yield from film
    except DataError as error:
        raise Refused("corrupt_video", f"{name}: {str(error).removeprefix(f'{path}: ')}") from None
