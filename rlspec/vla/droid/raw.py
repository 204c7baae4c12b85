"""Raw DROID episodes: folders with trajectory.h5, metadata_<uuid>.json and recordings/MP4/<serial>.mp4.

The layout is that of droid-dataset/droid; instructions come from a file of its own, as in DROID's release.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rlspec.contract.actions import DROID_HZ, JOINT_POSITION
from rlspec.contract.droid import FLANGE
from rlspec.contract.features import INTERVENTION
from rlspec.errors import DataError
from rlspec.vla.data.files import first_line, read_json
from rlspec.vla.data.pixels import read_film, read_film_head
from rlspec.vla.data.recording import Pixels
from rlspec.vla.droid.annotations import Annotations, instructions_in
from rlspec.vla.droid.episodes import (
    ACTION_SIZES,
    STATE_SIZES,
    Frame,
    Item,
    Numbers,
    Recording,
    Refused,
    frames_of_film,
)
from rlspec.vla.droid.schema import GRIPPER_POSITION, OURS, RAW_CAMERAS
from rlspec.vla.droid.settings import ConvertSettings

TRAJECTORY = "trajectory.h5"
_STATE_KEYS = {JOINT_POSITION: "joint_positions", GRIPPER_POSITION: GRIPPER_POSITION}  # others keep their names
_CLOCKS = ("control/step_start", "robot_state/read_start")  # of observation/timestamp, in milliseconds
_ROBOTS = ("panda", "fr3")
_ATTRIBUTES = {"success": "success", "current_task": "current_task", "robot_serial": "robot_serial_number"}
_SLACK = 1  # frames that a film may have more or less than the trajectory: it was started or stopped around a step
_WRIST_TYPE = 0  # of observation/camera_type


class RawSource:
    """All raw episodes below a folder."""

    def __init__(self, settings: ConvertSettings) -> None:
        self._root = settings.path
        self._rate = settings.source_fps or DROID_HZ
        self._cameras, self._stereo = settings.cameras, settings.stereo
        self._annotations = Annotations(settings)

    def items(self) -> list[Item]:
        """Folders that hold a trajectory.

        Raises:
            DataError: There are none.
        """
        folders = sorted(path.parent for path in self._root.rglob(TRAJECTORY))
        if not folders:
            raise DataError(f"path={self._root}: no {TRAJECTORY} in it or below; correct path=")
        return [Item(folder.relative_to(self._root).as_posix()) for folder in folders]

    def read(self, item: Item) -> Recording:
        """One episode.

        Raises:
            Refused: It cannot be used.
        """
        folder = self._root / item.identity
        content, attributes = _read_trajectory(folder / TRAJECTORY)
        metadata, notes = _read_metadata(folder, attributes)
        state = _numbers(content, "observation/robot_state", STATE_SIZES, _STATE_KEYS)
        if JOINT_POSITION not in state:
            raise Refused("missing_key", f"{TRAJECTORY} has no observation/robot_state/joint_positions")
        serials = _serials(metadata, content)
        films = {camera: _film(folder, camera, serials[camera], self._stereo) for camera in self._cameras}
        length = _common_length(films.values(), len(state[JOINT_POSITION]), notes)
        cut = partial(_cut, length=length, whole=len(state[JOINT_POSITION]))
        own: dict[str, Any] = metadata.get(OURS) or {}  # of recordings that rlspec has generated
        info = "observation/controller_info"
        enabled, taken = (content.get(f"{info}/{name}") for name in ("movement_enabled", INTERVENTION))
        return Recording(
            identity=item.identity,
            state=cut(state),
            actions=cut(_numbers(content, "action", ACTION_SIZES, {})),
            instructions=self._instructions(metadata),
            success=_success(metadata, folder),
            rate=self._rate,
            frames=lambda camera: _frames(films[camera], length),
            times=cut({"": _times(content)})[""],
            enabled=cut({"": None if enabled is None else enabled.astype(bool).reshape(-1)})[""],
            interventions=cut({"": None if taken is None else taken.astype(bool).reshape(-1)})[""],
            robot=_robot(metadata),
            law=own.get("execution_law"),
            pose_frame=str(own.get("pose_frame", FLANGE)),
            place=str(folder),
            notes=tuple(notes),
        )

    def _instructions(self, metadata: Mapping[str, Any]) -> tuple[str, ...]:
        if found := self._annotations.of_uuid(str(metadata.get("uuid"))) or instructions_in(metadata):
            return found
        return (str(metadata.get("current_task") or ""),)


def _read_metadata(folder: Path, attributes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The metadata, and what there is to note of them."""
    path = next(iter(sorted(folder.glob("metadata_*.json"))), None)
    if path is None:  # DROID's scripts/postprocess.py writes it, some time after the recording
        found = {ours: attributes[name] for ours, name in _ATTRIBUTES.items() if name in attributes}
        if not found:
            raise Refused("missing_file", f"no metadata_*.json, and {TRAJECTORY} says nothing of itself either")
        return found, [f"no metadata_*.json: by the attributes of {TRAJECTORY}"]
    try:
        metadata = read_json(path)
    except DataError:
        raise Refused("corrupt_file", f"{path.name} cannot be read") from None
    if not isinstance(metadata, dict):
        raise Refused("corrupt_file", f"{path.name} holds no names and values")
    metadata.setdefault("uuid", path.stem.removeprefix("metadata_"))
    return metadata, []


def _read_trajectory(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All arrays of the file, which holds no images, by their path; and its attributes."""
    import h5py

    content: dict[str, Any] = {}

    def keep(name: str, each: Any) -> None:
        if isinstance(each, h5py.Dataset) and not name.startswith("observation/videos"):
            content[name] = each[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(keep)
            attributes = {name: _plain(value) for name, value in file.attrs.items()}
    except (OSError, RuntimeError, KeyError) as error:
        raise Refused("corrupt_file", f"{path.name} cannot be read ({first_line(error)})") from None
    return content, attributes


def _plain(value: Any) -> Any:
    """An attribute as JSON would hold it."""
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _cut(values: dict[str, Any], *, length: int, whole: int) -> dict[str, Any]:
    """Without the frames that no film shows; what has another length than the rest stays, and is refused for it."""
    return {name: each[:length] if each is not None and len(each) == whole else each for name, each in values.items()}


def _numbers(
    content: Mapping[str, Any], group: str, sizes: Mapping[str, int], keys: Mapping[str, str]
) -> dict[str, Numbers]:
    """(T, d) of each name that is there; a (T,) array is a column."""
    found: dict[str, Numbers] = {}
    for name, size in sizes.items():
        values = content.get(f"{group}/{keys.get(name, name)}")
        if values is not None:
            if np.ndim(values) == 0 or not np.issubdtype(values.dtype, np.number):
                raise Refused("missing_key", f"{group}/{keys.get(name, name)} holds no numbers per frame")
            column = size == 1 and values.ndim == 1
            found[name] = (values[:, None] if column else values).astype(np.float64)
    return found


def _times(content: Mapping[str, Any]) -> Numbers | None:
    """Seconds."""
    for clock in _CLOCKS:
        values = content.get(f"observation/timestamp/{clock}")
        if values is not None:
            times: Numbers = values.astype(np.float64).reshape(-1) / 1000
            return times
    return None


def _success(metadata: Mapping[str, Any], folder: Path) -> bool | None:
    if isinstance(metadata.get("success"), bool):
        return bool(metadata["success"])
    named = {"success": True, "failure": False}
    return next((named[part] for part in reversed(folder.parts) if part in named), None)


def _robot(metadata: Mapping[str, Any]) -> str:
    """`panda-295341-1325480` is a Panda."""
    serial = str(metadata.get("robot_serial") or "").lower()
    return next((name for name in _ROBOTS if name in serial), "franka")


def _serials(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, list[str]]:
    """Camera -> names that its video may have; by the metadata, else by the cameras' types."""
    serials: dict[str, list[str]] = {}
    for camera, raw in RAW_CAMERAS.items():
        path = metadata.get(f"{raw}_mp4_path")
        names = [metadata.get(f"{raw}_cam_serial"), Path(str(path)).stem if path else None]
        serials[camera] = list(dict.fromkeys(str(name) for name in names if name))
    if not any(serials.values()):
        group = "observation/camera_type/"
        types = {name.removeprefix(group): int(np.ravel(v)[0]) for name, v in content.items() if name.startswith(group)}
        wrist = sorted(name for name, kind in types.items() if kind == _WRIST_TYPE)
        exterior = sorted(name for name, kind in types.items() if kind != _WRIST_TYPE)
        serials = {
            camera: names[:1] for camera, names in zip(RAW_CAMERAS, (exterior[:1], exterior[1:], wrist), strict=True)
        }
    return serials


@dataclass(frozen=True)
class _Film:
    """A camera's film: `frames` of it are whole, and `half` says whether its left half is the camera's picture."""

    path: Path
    frames: int
    half: bool

    @property
    def name(self) -> str:
        return f"recordings/MP4/{self.path.name}"


def _film(folder: Path, camera: str, names: Sequence[str], stereo: str) -> _Film:
    raw = RAW_CAMERAS[camera]
    if not names:
        raise Refused("missing_camera", f"the metadata names no {raw} camera")
    films, svos = folder / "recordings" / "MP4", folder / "recordings" / "SVO"
    path, half = _first_file(films / f"{name}.mp4" for name in names), False
    both = _first_file(films / f"{name}-stereo.mp4" for name in names)
    if path is None and both is not None:
        if stereo != "left":
            raise Refused(
                "missing_camera", f"{raw}: only recordings/MP4/{both.name}, of both lenses; stereo=left takes the left"
            )
        path, half = both, True
    if path is None:
        svo = _first_file(svos / f"{name}.svo" for name in names)
        remedy = "" if svo is None else f", but recordings/SVO/{svo.name}; DROID's svo_to_mp4.py makes a film of it"
        raise Refused("missing_camera", f"{raw}: no recordings/MP4/{names[0]}.mp4{remedy}")
    try:
        return _Film(path, read_film_head(path)[1], half)
    except DataError as error:
        raise Refused("corrupt_video", f"recordings/MP4/{path.name}: {str(error).removeprefix(f'{path}: ')}") from None


def _first_file(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _common_length(films: Iterable[_Film], length: int, notes: list[str]) -> int:
    """Frames that the trajectory and all films have; those that differ by more than one do not belong together."""
    common = length
    for film in films if length else ():  # without a frame it is refused for that
        if abs(film.frames - length) > _SLACK:
            raise Refused("length_mismatch", f"{film.name} has {film.frames} frames, {TRAJECTORY} has {length}")
        if film.frames != length:
            notes.append(f"{film.name} has {film.frames} frames, {TRAJECTORY} has {length}: cut to the shorter")
            common = min(common, film.frames)
    return common


def _frames(film: _Film, length: int) -> Iterator[Frame]:
    frames = islice(frames_of_film(read_film(film.path, strict=True), film.path, film.name), length)
    for frame in frames:
        yield partial(_left_half, frame) if film.half else frame


def _left_half(frame: Frame) -> Pixels:
    pixels = frame()
    return pixels[:, : pixels.shape[1] // 2]
