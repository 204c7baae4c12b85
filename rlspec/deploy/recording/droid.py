"""A run in DROID's terms: what a DROID workstation would have recorded of it, array by array."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import CARTESIAN_POSITION, MAX_JOINT_STEP
from rlspec.contract.droid import FLANGE, DroidEpisode, Placement, commanded, euler_matrix, pose_of
from rlspec.contract.features import INTERVENTION, WRIST
from rlspec.deploy.arm.kinematics import flange
from rlspec.deploy.log.reader import RunLog
from rlspec.deploy.log.steps import RecordedStep, pictures_of, read_picture, recorded_steps
from rlspec.errors import DataError

Array = NDArray[np.float64]

STEP_START = "observation/timestamp/control/step_start"
"""Milliseconds since 1970 at which each step began."""

_SERIAL = re.compile(r"[A-Za-z0-9_-]+")


def droid_episode(log: RunLog, *, success: bool) -> DroidEpisode:
    """A run as an episode of DROID.

    Raises:
        DataError: No tick has a command, a state and all pictures.
    """
    cameras = sorted(camera for camera, pictures in pictures_of(log).items() if pictures)
    steps = list(recorded_steps(log, cameras))
    if not steps:
        raise DataError(f"{log.path}: no tick has a command, a state and all pictures; no recording of it")
    settings: Mapping[str, Any] = (log.header.get("settings") or {}).get("robot") or {}
    described: Mapping[str, str] = settings.get("cameras") or {}
    serials = {camera: _serial(described.get(camera, ""), camera) for camera in cameras}
    joints = np.stack([step.joints for step in steps])
    hand = flange(joints)
    known: Mapping[str, list[float]] = settings.get("extrinsics") or {}
    extrinsics = {
        camera: _camera_poses(camera, np.array(known[camera], np.float64), hand)
        for camera in cameras
        if camera in known
    }
    arrays = _numbers(steps, joints, hand) | _times(steps) | _controller(steps, success=success)
    for camera, serial in serials.items():
        arrays[f"observation/camera_type/{serial}"] = np.full(len(steps), int(camera != WRIST), np.int64)
        if camera in extrinsics:
            arrays[f"observation/camera_extrinsics/{serial}_left"] = extrinsics[camera]
    return DroidEpisode(
        arrays=arrays,
        films={camera: map(partial(_picture, camera), steps) for camera in cameras},
        serials=serials,
        extrinsics={camera: values[0].tolist() for camera, values in extrinsics.items()},
        instruction=str(log.header.get("prompt") or ""),
        robot=f"{'panda' if settings.get('model') == 'fer' else 'fr3'}-{log.robot}",
        law=str(log.header.get("law")),
        pose_frame=FLANGE,
        building="robot",
        user="operator",
        rate=log.control_hz,
    )


def _picture(camera: str, step: RecordedStep) -> NDArray[np.uint8]:
    picture = read_picture(step.pictures[camera])
    height, width = picture.shape[:2]
    return picture[: height // 2 * 2, : width // 2 * 2]  # films have even sides


def _serial(description: str, camera: str) -> str:
    """`realsense:0123@640x480x30` is 0123; a simulated camera goes by its name."""
    kind, _, rest = description.partition("@")[0].partition(":")
    found = _SERIAL.findall(rest)
    return found[-1] if kind != "synthetic" and found else camera


def _camera_poses(camera: str, known: Array, hand: Placement) -> Array:
    """(T, 6) in the base frame; a camera at the hand is known by its pose in the flange's frame."""
    position, rotation = hand
    if camera != WRIST:
        return np.tile(known, (len(position), 1))
    return pose_of(position + rotation @ known[:3], rotation @ euler_matrix(known[3:]))


def _numbers(steps: list[RecordedStep], joints: Array, hand: Placement) -> dict[str, NDArray[Any]]:
    """What was measured, and the target that was sent, whose velocity is cut to one unit as DROID cuts it."""
    group, sent = "observation/robot_state/", np.stack([step.sent for step in steps])
    closures = [np.array([getattr(step, name) for step in steps]) for name in ("closure", "sent_closure")]
    velocity = (sent - joints) / MAX_JOINT_STEP
    velocity /= np.maximum(1.0, np.abs(velocity).max(axis=1, keepdims=True))
    return {
        f"{group}{CARTESIAN_POSITION}": pose_of(*hand),
        f"{group}gripper_position": closures[0],
        f"{group}joint_positions": joints,
        f"{group}joint_velocities": np.stack([step.velocities for step in steps]),
        **commanded(hand, flange(sent), sent, velocity, (closures[0], closures[1])),
    }


def _times(steps: list[RecordedStep]) -> dict[str, NDArray[Any]]:
    """Milliseconds since 1970, by the wall clock at the first step and the loop's own from there on."""
    began = datetime.fromisoformat(steps[0].tick["wall"]).timestamp()
    passed = np.array([float(step.tick["time"]) for step in steps])
    times = np.rint(1000 * (began + passed - passed[0])).astype(np.int64)
    return {STEP_START: times, "observation/timestamp/robot_state/read_start": times}


def _controller(steps: list[RecordedStep], *, success: bool) -> dict[str, NDArray[Any]]:
    """The operator's buttons, and what DROID does not have: whether a human acted in the policy's place."""
    group, last = "observation/controller_info/", np.arange(len(steps)) == len(steps) - 1
    return {
        f"{group}controller_on": np.ones(len(steps), bool),
        f"{group}movement_enabled": np.array([step.tick.get("phase") in ("run", "start") for step in steps]),
        f"{group}success": last & success,
        f"{group}failure": last & (not success),
        f"{group}{INTERVENTION}": np.array([step.intervention for step in steps]),
    }
