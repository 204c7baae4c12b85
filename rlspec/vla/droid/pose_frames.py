"""All poses of a recording as the flange's, which DROID's Cartesian actions are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlspec.contract.actions import CARTESIAN_POSITION, CARTESIAN_VELOCITY, MAX_CARTESIAN_STEP
from rlspec.contract.droid import FLANGE, TCP, euler_matrix, flange_of, pose_of
from rlspec.vla.droid.episodes import Numbers, Recording, Refused


def with_poses_of_flange(recording: Recording) -> Recording:
    """The recording, whose numbers were checked, with its poses and Cartesian commands as the flange's.

    Raises:
        Refused: It is not known whose its poses are.
    """
    if recording.pose_frame == FLANGE:
        return recording
    if recording.pose_frame != TCP:
        raise Refused("other_frame", f"its poses are those of {recording.pose_frame!r}, not of {FLANGE} or {TCP}")
    state, actions = dict(recording.state), dict(recording.actions)
    poses, velocity = state.get(CARTESIAN_POSITION), actions.pop(CARTESIAN_VELOCITY, None)
    if poses is not None:
        state[CARTESIAN_POSITION] = _of_flange(poses)
        if velocity is not None:
            actions[CARTESIAN_VELOCITY] = _velocity_of_flange(velocity, poses)
    if CARTESIAN_POSITION in actions:
        actions[CARTESIAN_POSITION] = _of_flange(actions[CARTESIAN_POSITION])
    return replace(recording, state=state, actions=actions, pose_frame=FLANGE)


def _of_flange(poses: Numbers) -> Numbers:
    return pose_of(*flange_of(poses[:, :3], euler_matrix(poses[:, 3:])))


def _velocity_of_flange(velocity: Numbers, poses: Numbers) -> Numbers:
    """The turn is the same; the way is from the flange to where it is when the hand has moved."""
    metres, radians = MAX_CARTESIAN_STEP
    position, rotation = poses[:, :3], euler_matrix(poses[:, 3:])
    here, _ = flange_of(position, rotation)
    there, _ = flange_of(position + metres * velocity[:, :3], euler_matrix(radians * velocity[:, 3:]) @ rotation)
    way = (there - here) / metres
    longest = np.maximum(1.0, np.linalg.norm(way, axis=1, keepdims=True))  # DROID cuts the way as a whole
    return np.concatenate([way / longest, velocity[:, 3:]], axis=1)
