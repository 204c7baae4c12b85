"""Actions of a range of frames in a typed action space, at the recording's rate or at another one.

Between rates, a target keeps its meaning. Positions: an output frame holds the command that is in force at the end of
its interval. Velocities in DROID's convention are no speeds but offsets of a target from where the robot is measured,
so they go through the target: the one in force at the end of the interval, seen from where the robot is when the
interval begins. Neither averaging them nor summing them up does that. Measured states are interpolated, images are the
latest ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import (
    ACTION_SPACES,
    CARTESIAN_POSITION,
    CARTESIAN_VELOCITY,
    DELTA_EEF,
    DELTA_EEF_STEP,
    JOINT_POSITION,
    JOINT_VELOCITY,
    MAX_CARTESIAN_STEP,
    MAX_JOINT_STEP,
    RELATIVE_SPACES,
)
from rlspec.contract.droid import euler_angles, euler_matrix, tip_of
from rlspec.vla.droid.episodes import Numbers, Recording
from rlspec.vla.droid.filters import Range
from rlspec.vla.droid.rotations import from_vector, to_vector
from rlspec.vla.droid.schema import GRIPPER_POSITION

_EPSILON = 1e-6  # of a frame: times that are equal but for rounding are equal


@dataclass(frozen=True)
class Segment:
    """A part of a recording that becomes an episode of n frames.

    Attributes:
        range: Its frames in the recording.
        images: (n,) frame of the recording whose images each frame shows.
        state: (n, 8) joint angles in radians and closure.
        action: (n, a).
        interventions: (n,) whether a human moved the arm while the frame's action was in force; None: unknown.
        rescaled: Frames whose action was beyond the largest step and was shortened, keeping its direction.
    """

    range: Range
    images: NDArray[np.int64]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    rescaled: int
    interventions: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.images)


def cut_segment(recording: Recording, chosen: Range, action_space: str, rate: float) -> Segment:
    """A range of frames as an episode.

    Args:
        recording: Checked for what the action space needs.
        chosen: First frame, and the one after the last.
        action_space: Name of `rlspec.contract.actions.ACTION_SPACES`.
        rate: Frames per second of the result.
    """
    clock = _Clock(chosen, recording.rate, rate, len(recording))
    arm, rescaled = _arm(recording, clock, action_space)
    closure = recording.actions[GRIPPER_POSITION][clock.in_force]
    gripper = ACTION_SPACES[action_space].gripper_number(closure)
    state = [clock.at(recording.state[name]) for name in (JOINT_POSITION, GRIPPER_POSITION)]
    return Segment(
        range=chosen,
        images=clock.images,
        state=np.concatenate(state, axis=1).astype(np.float32),
        action=np.concatenate([arm, gripper], axis=1).astype(np.float32),
        rescaled=rescaled,
        interventions=None if recording.interventions is None else recording.interventions[clock.in_force],
    )


@dataclass(frozen=True)
class _Clock:
    """Output frames on the recording's clock, which counts its frames."""

    chosen: Range
    recorded_rate: float
    rate: float
    length: int  # of the whole recording

    @cached_property
    def step(self) -> float:
        """Recorded frames per output frame."""
        return self.recorded_rate / self.rate

    @cached_property
    def is_same(self) -> bool:
        return abs(self.step - 1) < _EPSILON

    @cached_property
    def starts(self) -> Numbers:
        """(n,) when the output frames begin."""
        first, end = self.chosen
        count = int(np.floor((end - 1 - first) / self.step + _EPSILON)) + 1
        return np.asarray(first + np.arange(count) * self.step, dtype=np.float64)

    @cached_property
    def images(self) -> NDArray[np.int64]:
        """(n,) the latest recorded frame."""
        return np.floor(self.starts + _EPSILON).astype(np.int64)

    @cached_property
    def in_force(self) -> NDArray[np.int64]:
        """(n,) the last recorded frame that begins before the output frame ends."""
        last = np.ceil(self.starts + self.step - _EPSILON).astype(np.int64) - 1
        return np.minimum(last, self.chosen[1] - 1)

    def at(self, values: Numbers, times: Numbers | None = None) -> Numbers:
        """(T, d) recorded numbers at (n,) times, between frames by interpolation."""
        low, share = self.neighbours(self.starts if times is None else times)
        high = np.minimum(low + 1, self.length - 1)
        return values[low] + share[:, None] * (values[high] - values[low])

    def neighbours(self, times: Numbers) -> tuple[NDArray[np.int64], Numbers]:
        """The recorded frame before each time, and how far it is to the next, in [0, 1)."""
        bounded = np.asarray(np.minimum(times, self.length - 1), dtype=np.float64)
        low = np.floor(bounded + _EPSILON).astype(np.int64)
        share = np.asarray(bounded - low, dtype=np.float64)
        return low, np.where(share < _EPSILON, 0.0, share)

    def pose_at(self, poses: Numbers, times: Numbers) -> tuple[Numbers, Numbers]:
        """(n, 3) positions and (n, 3, 3) rotations of (T, 6) recorded poses at (n,) times."""
        low, share = self.neighbours(times)
        high = np.minimum(low + 1, self.length - 1)
        before, after = euler_matrix(poses[low, 3:]), euler_matrix(poses[high, 3:])
        turn = to_vector(after @ _inverse(before))
        return self.at(poses[:, :3], times), from_vector(share[:, None] * turn) @ before


def _inverse(rotations: Numbers) -> Numbers:
    return np.swapaxes(rotations, 1, 2)


def _arm(recording: Recording, clock: _Clock, action_space: str) -> tuple[Numbers, int]:
    """(n, d) what the arm is told, and how many rows were shortened."""
    if action_space == DELTA_EEF:
        return _shorten(_measured_motion(recording.state[CARTESIAN_POSITION], clock), (3, 3))
    recorded = recording.actions[action_space]
    if clock.is_same or action_space not in RELATIVE_SPACES:
        return recorded[clock.in_force], 0
    if action_space == JOINT_VELOCITY:
        return _shorten(_joint_offsets(recording, recorded, clock), (7,))
    assert action_space == CARTESIAN_VELOCITY, action_space
    return _shorten(_pose_offsets(recording, recorded, clock), (3, 3))


def _joint_offsets(recording: Recording, recorded: Numbers, clock: _Clock) -> Numbers:
    joints = recording.state[JOINT_POSITION]
    target = joints + MAX_JOINT_STEP * recorded
    return (target[clock.in_force] - clock.at(joints)) / MAX_JOINT_STEP


def _pose_offsets(recording: Recording, recorded: Numbers, clock: _Clock) -> Numbers:
    poses, (metres, radians) = recording.state[CARTESIAN_POSITION], MAX_CARTESIAN_STEP
    last = clock.in_force
    position = poses[last, :3] + metres * recorded[last, :3]
    rotation = euler_matrix(radians * recorded[last, 3:]) @ euler_matrix(poses[last, 3:])
    from_position, from_rotation = clock.pose_at(poses, clock.starts)
    turn = euler_angles(rotation @ _inverse(from_rotation))
    return np.concatenate([(position - from_position) / metres, turn / radians], axis=1)


def _measured_motion(poses: Numbers, clock: _Clock) -> Numbers:
    """How the tool centre point moves from each output frame to the next; the recording's last frame stands still.

    The poses are the flange's.
    """
    metres, radians = DELTA_EEF_STEP
    position, rotation = tip_of(*clock.pose_at(poses, clock.starts))
    next_position, next_rotation = tip_of(*clock.pose_at(poses, clock.starts + clock.step))
    turn = to_vector(next_rotation @ _inverse(rotation))
    return np.concatenate([(next_position - position) / metres, turn / radians], axis=1)


def _shorten(values: Numbers, groups: tuple[int, ...]) -> tuple[Numbers, int]:
    """Bring groups of columns into [-1, 1] as DROID's controller does: the whole vector is scaled."""
    shortened, start = np.zeros(len(values), dtype=bool), 0
    result = values.copy()
    for size in groups:
        group = slice(start, start + size)
        largest = np.abs(values[:, group]).max(axis=1)
        result[:, group] /= np.maximum(largest, 1.0)[:, None]
        shortened |= largest > 1.0
        start += size
    return result, int(shortened.sum())
