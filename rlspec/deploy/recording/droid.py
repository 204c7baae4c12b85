"""A run in DROID's terms: what a DROID workstation would have recorded of it, array by array."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import (
    CARTESIAN_POSITION,
    CARTESIAN_VELOCITY,
    JOINT_POSITION,
    JOINT_VELOCITY,
    MAX_CARTESIAN_STEP,
    MAX_JOINT_STEP,
)
from rlspec.contract.features import INTERVENTION, WRIST
from rlspec.deploy.arm.kinematics import euler_angles, euler_matrix, flange
from rlspec.deploy.log.reader import RunLog
from rlspec.deploy.log.steps import RecordedStep, pictures_of, read_picture, recorded_steps
from rlspec.errors import DataError

Array = NDArray[np.float64]

_MAX_GRIPPER_STEP = 0.25  # share of the gripper's way for one unit of its velocity (droid, RobotIKSolver)
_SERIAL = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class RobotEpisode:
    """One run; `rlspec.vla.droid.raw_writer.RawEpisode`.

    Attributes:
        began: When its first step was.
        arrays: Path in trajectory.h5 -> (T, ...) numbers.
        films: Camera -> its T pictures, read when they are wanted, (H, W, 3) uint8.
        serials: Camera -> serial number, or what stands for it.
        extrinsics: Camera -> pose (6,) at the first step, of those that were calibrated.
        instruction, robot, law: In words.
        pose_frame: Whose pose `cartesian_position` is.
        building, user: Of DROID's metadata.
        rate: Steps per second.
    """

    began: datetime
    arrays: dict[str, NDArray[Any]]
    films: dict[str, Iterator[NDArray[np.uint8]]]
    serials: dict[str, str]
    extrinsics: dict[str, list[float]]
    instruction: str
    robot: str
    law: str
    rate: float
    pose_frame: str = "flange"
    building: str = "robot"
    user: str = "operator"


def droid_episode(log: RunLog, *, success: bool) -> RobotEpisode:
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
    poses = np.array([_pose(*flange(step.joints)) for step in steps])
    known: Mapping[str, list[float]] = settings.get("extrinsics") or {}
    extrinsics = {camera: _camera_poses(camera, known[camera], poses) for camera in cameras if camera in known}
    arrays: dict[str, NDArray[Any]] = _stacked([_measured(step) | _commanded(step) for step in steps])
    arrays |= _times(steps) | _controller(steps, success=success)
    for camera, serial in serials.items():
        arrays[f"observation/camera_type/{serial}"] = np.full(len(steps), int(camera != WRIST), np.int64)
        if camera in extrinsics:
            arrays[f"observation/camera_extrinsics/{serial}_left"] = extrinsics[camera]
    return RobotEpisode(
        began=datetime.fromisoformat(steps[0].tick["wall"]),
        arrays=arrays,
        films={camera: map(partial(_picture, camera), steps) for camera in cameras},
        serials=serials,
        extrinsics={camera: values[0].tolist() for camera, values in extrinsics.items()},
        instruction=str(log.header.get("prompt") or ""),
        robot=f"{'panda' if settings.get('model') == 'fer' else 'fr3'}-{log.robot}",
        law=str(log.header.get("law")),
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


def _pose(position: Array, rotation: Array) -> Array:
    return np.concatenate([position, euler_angles(rotation)])


def _camera_poses(camera: str, known: list[float], poses: Array) -> Array:
    """(T, 6) in the base frame; a camera at the hand is known by its pose in the flange's frame."""
    if camera != WRIST:
        return np.tile(np.array(known, np.float64), (len(poses), 1))
    place, turn = np.array(known[:3]), euler_matrix(np.array(known[3:]))
    hands = [(pose[:3], euler_matrix(pose[3:])) for pose in poses]
    return np.array([_pose(position + rotation @ place, rotation @ turn) for position, rotation in hands])


def _measured(step: RecordedStep) -> dict[str, Any]:
    group = "observation/robot_state/"
    return {
        f"{group}{CARTESIAN_POSITION}": _pose(*flange(step.joints)),
        f"{group}gripper_position": np.float64(step.closure),
        f"{group}joint_positions": step.joints,
        f"{group}joint_velocities": step.velocities,
    }


def _commanded(step: RecordedStep) -> dict[str, Any]:
    """The target that was sent, in all of DROID's spaces; velocities are cut to one unit as DROID cuts them."""
    here, there = flange(step.joints), flange(step.sent)
    pose = _pose(*there)
    way = (there[0] - here[0]) / MAX_CARTESIAN_STEP[0]
    turn = euler_angles(there[1] @ here[1].T) / MAX_CARTESIAN_STEP[1]
    joints = (step.sent - step.joints) / MAX_JOINT_STEP
    grip = (step.sent_closure - step.closure) / _MAX_GRIPPER_STEP
    return {
        f"action/{JOINT_POSITION}": step.sent,
        f"action/{JOINT_VELOCITY}": joints / max(1.0, float(np.abs(joints).max())),
        f"action/{CARTESIAN_POSITION}": pose,
        f"action/{CARTESIAN_VELOCITY}": np.concatenate(
            [part / max(1.0, float(np.linalg.norm(part))) for part in (way, turn)]
        ),
        "action/gripper_position": np.float64(step.sent_closure),
        "action/gripper_velocity": np.float64(np.clip(grip, -1.0, 1.0)),
        "action/target_cartesian_position": pose,
        "action/target_gripper_position": np.float64(step.sent_closure),
    }


def _times(steps: list[RecordedStep]) -> dict[str, NDArray[Any]]:
    """Milliseconds since 1970, by the wall clock at the first step and the loop's own from there on."""
    began = datetime.fromisoformat(steps[0].tick["wall"]).timestamp()
    passed = np.array([float(step.tick["time"]) for step in steps])
    times = np.rint(1000 * (began + passed - passed[0])).astype(np.int64)
    group = "observation/timestamp/"
    return {f"{group}control/step_start": times, f"{group}robot_state/read_start": times}


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


def _stacked(rows: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
