"""Writes one raw DROID episode folder: trajectory.h5, metadata_<uuid>.json and an MP4 per camera.

Names, shapes and units are those of the DROID release (droid-dataset/droid): pose = position and extrinsic xyz Euler
angles, milliseconds since 1970 in `timestamp`, paths in the metadata relative to the laboratory's folder. The only
additions are the metadata's key `rlspec` (seed, simulator, execution law), `controller_info/intervention` of a robot's
recordings, and that simulated poses are those of the tool centre point between the fingers, where DROID has the flange.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import DROID_HZ, STIFF_POSITION
from rlspec.contract.droid import TCP, DroidEpisode
from rlspec.contract.features import CAMERAS, EXTERIOR_1, EXTERIOR_2, WRIST
from rlspec.vla.droid.schema import OURS, RAW_CAMERAS
from rlspec.vla.droid.simulated import SimulatedRecording

SERIALS = {EXTERIOR_1: "31000001", EXTERIOR_2: "31000002", WRIST: "31000003"}
_VERSION = "1.3"  # of the recording software whose files these are like
_EPOCH = datetime(2025, 1, 6, 9, 0, 0)
_BETWEEN = timedelta(minutes=2)


@dataclass(frozen=True)
class EpisodeName:
    """Where and when an episode was recorded.

    Attributes:
        lab: of the laboratory.
        time: when it began, by the clock of the place.
        success: whether its operator was content.
    """

    lab: str
    time: datetime
    success: bool

    @property
    def timestamp(self) -> str:
        """As in a uuid."""
        return self.time.strftime("%Y-%m-%d-%Hh-%Mm-%Ss")

    @property
    def uuid(self) -> str:
        """`<lab>+<collector>+<timestamp>`."""
        return f"{self.lab}+{self.user_id}+{self.timestamp}"

    @property
    def user_id(self) -> str:
        """Eight characters."""
        return hashlib.sha256(self.lab.encode()).hexdigest()[:8]

    @property
    def folder(self) -> str:
        """Relative to the laboratory's folder."""
        day = self.time.strftime("%Y-%m-%d")
        return f"{'success' if self.success else 'failure'}/{day}/{self.time.ctime().replace(' ', '_')}"


def simulated_time(number: int) -> datetime:
    """When the episode of that number began, in a calendar of the generator's own."""
    return _EPOCH + number * _BETWEEN


def write_episode(folder: Path, name: EpisodeName, recording: SimulatedRecording, about: dict[str, Any]) -> None:
    """Write all files of a simulated episode; the metadata last.

    Args:
        folder: exists and is empty.
        name: decides the paths in the metadata.
        recording: what was recorded.
        about: goes into the metadata's key `rlspec`.
    """
    arrays = recording.arrays | _times(name, recording) | _controller(name, recording) | _cameras(recording)
    episode = DroidEpisode(
        arrays=arrays,
        films={camera: iter(pictures) for camera, pictures in recording.pictures.items()},
        extrinsics={camera: recording.extrinsics[camera][0].tolist() for camera in CAMERAS},
        instruction=recording.plan.instruction,
        robot=f"{recording.environment['robot']}-simulated",  # for a serial number, which begins with the arm's model
        serials=SERIALS,
        law=STIFF_POSITION,
        pose_frame=TCP,
        building="simulation",
        user="scripted expert",
        rate=DROID_HZ,
    )
    write_raw(folder, name, episode, about)


def write_raw(folder: Path, name: EpisodeName, episode: DroidEpisode, about: dict[str, Any]) -> None:
    """Write all files of an episode; the metadata last.

    Args:
        folder: exists and is empty.
        name: decides the paths in the metadata.
        episode: what was recorded.
        about: goes into the metadata's key `rlspec`.
    """
    from rlspec.vla.data.recording import FilmEncoder

    films = folder / "recordings" / "MP4"
    films.mkdir(parents=True)
    for camera, pictures in episode.films.items():
        film = FilmEncoder(round(episode.rate))
        for picture in pictures:
            film.add(picture)
        (films / f"{episode.serials[camera]}.mp4").write_bytes(film.finish())
    _write_trajectory(folder / "trajectory.h5", name, episode)
    ours = {**about, "execution_law": episode.law, "pose_frame": episode.pose_frame}
    text = json.dumps(_metadata(name, episode) | {OURS: ours}, indent=2, ensure_ascii=False)
    (folder / f"metadata_{name.uuid}.json").write_text(text + "\n", encoding="utf-8")


def _metadata(name: EpisodeName, episode: DroidEpisode) -> dict[str, Any]:
    raw = {RAW_CAMERAS[camera]: camera for camera in CAMERAS if camera in episode.films}
    paths = {short: f"{name.folder}/recordings/MP4/{episode.serials[camera]}.mp4" for short, camera in raw.items()}
    extrinsics = {short: episode.extrinsics[camera] for short, camera in raw.items() if camera in episode.extrinsics}
    sides: dict[str, str] = {}
    if {"ext1", "ext2"} <= extrinsics.keys():
        ordered = sorted(("ext1", "ext2"), key=lambda short: -extrinsics[short][1])
        sides = {f"{side}_mp4_path": paths[short] for side, short in zip(("left", "right"), ordered, strict=True)}
    return {
        "uuid": name.uuid,
        "lab": name.lab,
        "user": episode.user,
        "user_id": name.user_id,
        "date": name.time.strftime("%Y-%m-%d"),
        "timestamp": name.timestamp,
        "hdf5_path": f"{name.folder}/trajectory.h5",
        "building": episode.building,
        "scene_id": 0,
        "success": name.success,
        "robot_serial": episode.robot,
        "r2d2_version": _VERSION,
        "current_task": episode.instruction,
        "trajectory_length": len(next(iter(episode.arrays.values()))),
        **{f"{short}_cam_serial": episode.serials[camera] for short, camera in raw.items()},
        **{f"{short}_cam_extrinsics": pose for short, pose in extrinsics.items()},
        **{f"{short}_mp4_path": path for short, path in paths.items()},
        **sides,
    }


def _write_trajectory(path: Path, name: EpisodeName, episode: DroidEpisode) -> None:
    import h5py

    attributes = {
        "building": episode.building,
        "scene_id": 0,
        "user": episode.user,
        "current_task": episode.instruction,
        "failure": not name.success,
        "success": name.success,
        "robot_serial_number": episode.robot,
        "time": name.time.ctime().replace(" ", "_"),
        "version_number": float(_VERSION),
    }
    with h5py.File(path, "w", track_order=False) as file:
        for key in sorted(episode.arrays):
            file.create_dataset(key, data=episode.arrays[key])
        file.attrs.update(attributes)


def _times(name: EpisodeName, recording: SimulatedRecording) -> dict[str, NDArray[Any]]:
    """A clock that keeps the rate to the millisecond."""
    steps, start = len(recording.plan.labels), int((name.time - datetime(1970, 1, 1)).total_seconds() * 1000)
    begun = start + np.rint(np.arange(steps) * 1000.0 / DROID_HZ).astype(np.int64)
    group = "observation/timestamp/"
    control = {"step_start": 0, "policy_start": 12, "sleep_start": 20, "control_start": 60, "step_end": 65}
    camera = {"read_start": 2, "frame_received": 5, "estimated_capture": -25, "read_end": 10}
    times: dict[str, NDArray[Any]] = {f"{group}control/{key}": begun + ms for key, ms in control.items()}
    for serial in SERIALS.values():
        times |= {f"{group}cameras/{serial}_{key}": begun + ms for key, ms in camera.items()}
    times |= {f"{group}robot_state/{key}": begun + ms for key, ms in {"read_start": 0, "read_end": 2}.items()}
    times[f"{group}robot_state/robot_timestamp_seconds"] = begun // 1000
    times[f"{group}robot_state/robot_timestamp_nanos"] = begun % 1000 * 1_000_000
    times[f"{group}skip_action"] = np.arange(steps) < recording.plan.idle
    return times


def _controller(name: EpisodeName, recording: SimulatedRecording) -> dict[str, NDArray[Any]]:
    """The operator's buttons: success or failure is pressed with the last step."""
    steps = np.arange(len(recording.plan.labels))
    last = steps == len(steps) - 1
    group = "observation/controller_info/"
    return {
        f"{group}controller_on": np.ones(len(steps), bool),
        f"{group}movement_enabled": steps >= recording.plan.idle,
        f"{group}success": last & name.success,
        f"{group}failure": last & (not name.success),
    }


def _cameras(recording: SimulatedRecording) -> dict[str, NDArray[Any]]:
    steps = len(recording.plan.labels)
    arrays: dict[str, NDArray[Any]] = {}
    for camera, serial in SERIALS.items():
        kind = 0 if camera == WRIST else 1
        arrays[f"observation/camera_type/{serial}"] = np.full(steps, kind, np.int64)
        arrays[f"observation/camera_extrinsics/{serial}_left"] = recording.extrinsics[camera]
    return arrays
