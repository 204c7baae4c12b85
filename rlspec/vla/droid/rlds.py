"""Episodes of DROID in RLDS, as TensorFlow Datasets writes them, without TensorFlow.

The record of an episode holds every step's values one after the other, images as JPEG or PNG files. Its `action` is
Cartesian (position, Euler angles and the gripper), though the documentation has called it joint velocities; the
commands in all spaces are in `action_dict`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlspec.contract.actions import CARTESIAN_POSITION, DELTA_EEF, DROID_HZ, JOINT_POSITION
from rlspec.errors import DataError
from rlspec.vla.data.files import first_line, read_json
from rlspec.vla.data.pixels import decode_image
from rlspec.vla.data.recording import Pixels
from rlspec.vla.droid.annotations import Annotations
from rlspec.vla.droid.episodes import ACTION_SIZES, STATE_SIZES, Frame, Item, Numbers, Recording, Refused
from rlspec.vla.droid.filters import Range
from rlspec.vla.droid.schema import GRIPPER_POSITION, RLDS_CAMERAS
from rlspec.vla.droid.settings import ConvertSettings
from rlspec.vla.droid.tfrecord import BadRecord, Feature, Place, list_records, parse_example, read_record

_SHARD = re.compile(r"-(?P<split>\w+)\.tfrecord-(?P<number>\d+)-of-(?P<count>\d+)$")
_INSTRUCTIONS = ("language_instruction", "language_instruction_2", "language_instruction_3")
_STEPS, _DICT = "steps/", "steps/action_dict/"


class RldsSource:
    """A folder with TFRecord files, its sub-folders included."""

    def __init__(self, settings: ConvertSettings) -> None:
        self._settings = settings
        self._root = settings.path
        self._rate = settings.source_fps or DROID_HZ
        self._annotations = Annotations(settings)
        self._ranges = None if settings.ranges is None else _read_ranges(settings.ranges)

    def items(self) -> list[Item]:
        """All episodes; what a damaged file has lost is one item that is refused.

        Raises:
            DataError: There are none, or none in the wanted action space.
        """
        shards = sorted(path for path in self._root.rglob("*.tfrecord-*") if _SHARD.search(path.name))
        if not shards:
            raise DataError(f"path={self._root}: no TFRecord files (NAME-train.tfrecord-00000-of-00001); correct path=")
        items: list[Item] = []
        for shard in shards:
            places, fault = list_records(shard)
            name = shard.relative_to(self._root).as_posix()
            items += [Item(f"{name}:{number}", (name, p.offset, p.length)) for number, p in enumerate(places)]
            expected = _expected_records(shard)
            if fault or (expected is not None and expected != len(places)):
                lost = f"holds {len(places)} of {expected} episodes" if expected is not None else "has lost episodes"
                items.append(Item(f"{name}:lost", (name, f"{lost}{f', {fault}' if fault else ''}; download it again")))
        self._check_actions(items)
        return items

    def _check_actions(self, items: list[Item]) -> None:
        """The trap: `action` alone is Cartesian."""
        readable = next((item for item in items if len(item.place) == 3), None)
        if readable is None or self._settings.action_space in (CARTESIAN_POSITION, DELTA_EEF):
            return
        try:
            names = self._example(readable)
        except Refused:
            return  # it is refused in its turn
        if not any(name.startswith(_DICT) for name in names):
            raise DataError(
                f"path={self._root}: no action_dict, and RLDS `action` is Cartesian: action_space="
                f"{self._settings.action_space} cannot be had; set "
                f"action_space={CARTESIAN_POSITION}, or take another set"
            )

    def read(self, item: Item) -> Recording:
        """One episode, its record in memory.

        Raises:
            Refused: It cannot be used.
        """
        if len(item.place) == 2:
            raise Refused("corrupt_file", str(item.place[1]))
        example = self._example(item)
        length = _length(example)
        state = {
            name: _numbers(example, f"steps/observation/{name}", length, size)
            for name, size in STATE_SIZES.items()
            if f"steps/observation/{name}" in example
        }
        if JOINT_POSITION not in state:
            raise Refused("missing_key", f"no steps/observation/{JOINT_POSITION}")
        place = _text(example, "episode_metadata/file_path")
        return Recording(
            identity=item.identity,
            state=state,
            actions=_actions(example, length),
            instructions=self._annotations.of_place(place)
            or tuple(_first_text(example, f"{_STEPS}{name}") for name in _INSTRUCTIONS),
            success=_success(example, place),
            rate=self._rate,
            frames=partial(_frames, example, length),
            place=place,
            ranges=self._kept(example),
        )

    def _kept(self, example: dict[str, Feature]) -> tuple[Range, ...] | None:
        """By the key of openpi's compute_droid_nonidle_ranges.py; what the file does not name is kept nowhere."""
        if self._ranges is None:
            return None
        names = (_text(example, f"episode_metadata/{name}") for name in ("recording_folderpath", "file_path"))
        return self._ranges.get("--".join(names), ())

    def _example(self, item: Item) -> dict[str, Feature]:
        name, offset, length = item.place
        path = self._root / str(name)
        try:
            return parse_example(read_record(path, Place(int(offset), int(length))))
        except BadRecord as error:
            raise Refused("corrupt_file", str(error)) from None
        except OSError as error:
            raise Refused("corrupt_file", f"{name}: cannot be read ({first_line(error)})") from None


def _read_ranges(path: Path) -> dict[str, tuple[Range, ...]]:
    content = read_json(path)
    try:
        ranges = {key: tuple((first, end) for first, end in each) for key, each in content.items()}
        ordered = all(
            type(first) is int and type(end) is int and before <= first
            for each in ranges.values()
            for (first, end), before in zip(each, (0, *(end for _, end in each)), strict=False)
        )
    except (AttributeError, TypeError, ValueError):
        ordered = False
    if not ordered:
        raise DataError(
            f"ranges={path}: episode -> [[first frame, end], ...] in their order is wanted; correct the file"
        )
    return ranges


def _expected_records(shard: Path) -> int | None:
    """How many records dataset_info.json says are in a file."""
    found = _SHARD.search(shard.name)
    assert found is not None
    try:
        info = json.loads((shard.parent / "dataset_info.json").read_text(encoding="utf-8"))
        lengths: dict[str, Any] = {split["name"]: split["shardLengths"] for split in info["splits"]}
        return int(lengths[found["split"]][int(found["number"])])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None  # the file's own framing is what counts


def _length(example: dict[str, Feature]) -> int:
    for name in ("steps/is_first", "steps/reward", "steps/discount"):
        if name in example:
            return len(example[name])
    joints = example.get(f"steps/observation/{JOINT_POSITION}", [])
    return len(joints) // 7


def _numbers(example: dict[str, Feature], name: str, length: int, size: int) -> Numbers:
    values = example[name]
    if isinstance(values, list):
        raise Refused("missing_key", f"{name} holds no numbers")
    if len(values) != length * size:
        raise Refused("length_mismatch", f"{name} has {len(values)} numbers, {length} frames of {size} wanted")
    return values.reshape(length, size).astype(np.float64)


def _actions(example: dict[str, Feature], length: int) -> dict[str, Numbers]:
    if any(name.startswith(_DICT) for name in example):
        return {
            name: _numbers(example, f"{_DICT}{name}", length, size)
            for name, size in ACTION_SIZES.items()
            if f"{_DICT}{name}" in example
        }
    if "steps/action" not in example:
        return {}
    both = _numbers(example, "steps/action", length, 7)
    return {CARTESIAN_POSITION: both[:, :6], GRIPPER_POSITION: both[:, 6:]}


def _text(example: dict[str, Feature], name: str) -> str:
    values = example.get(name)
    return bytes(values[0]).decode(errors="replace") if isinstance(values, list) and values else ""


_first_text = _text  # of a step; it is the same in all


def _success(example: dict[str, Feature], place: str) -> bool | None:
    """By the path of the recording, as everyone tells them apart; else by the last reward."""
    if "/success/" in place or "/failure/" in place:
        return "/success/" in place
    rewards = example.get("steps/reward")
    return bool(rewards[-1] > 0) if isinstance(rewards, np.ndarray) and len(rewards) else None


def _frames(example: dict[str, Feature], length: int, camera: str) -> Iterator[Frame]:
    name = f"steps/observation/{RLDS_CAMERAS[camera]}"
    files = example.get(name)
    if not isinstance(files, list):
        raise Refused("missing_camera", f"no {name}")
    if len(files) != length:
        raise Refused("length_mismatch", f"{name} has {len(files)} images, the episode {length} frames")
    for number, file in enumerate(files):
        yield partial(decode_frame, file, f"image {number} of {name}")


def decode_frame(content: memoryview | bytes, place: str) -> Pixels:
    """A JPEG or PNG file as (H, W, 3).

    Raises:
        Refused: It is none.
    """
    from PIL import Image

    try:
        return decode_image(bytes(content))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as Pillow raises them
        raise Refused("corrupt_video", f"{place} cannot be decoded ({first_line(error)})") from None
