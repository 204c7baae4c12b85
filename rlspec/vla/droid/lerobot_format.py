"""LeRobot data sets (v2.1 and v3) in DROID naming: openpi's, LeRobot's port of DROID, and our own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlspec.contract.actions import ACTION_SPACES, DELTA_EEF, DROID_SPACES, JOINT_POSITION, JOINT_VELOCITY
from rlspec.contract.droid import FLANGE
from rlspec.contract.features import ACTION, INTERVENTION, JOINT_STATE, STATE, image_key
from rlspec.contract.records import DATA_RECORD
from rlspec.errors import DataError
from rlspec.vla.data.files import INFO, column_array, first_line, read_json
from rlspec.vla.droid.episodes import ACTION_SIZES, STATE_SIZES, Item, Numbers, Recording, Refused, needed_numbers
from rlspec.vla.droid.lerobot_images import read_frames
from rlspec.vla.droid.schema import GRIPPER_POSITION, RLDS_CAMERAS
from rlspec.vla.droid.settings import ConvertSettings

_IMAGE_PREFIXES = (image_key(""), "observation.", "")
_STATE_PREFIXES = (f"{STATE}.", "observation.", "")
_ACTION_PREFIXES = ("action.", "action_dict.")
_INSTRUCTIONS = ("language_instruction", "language_instruction_2", "language_instruction_3")
_SUCCESS = ("is_episode_successful", "success")
_MARKS = ("timestamp", "task_index", INTERVENTION)
_AGAIN = "restore the file, or download the data set again"


class LeRobotSource:
    """A data set in a folder."""

    def __init__(self, settings: ConvertSettings) -> None:
        self._root = settings.path
        if not (self._root / INFO).is_file():
            raise DataError(f"path={self._root}: no LeRobot data set there (no {INFO}); correct path=")
        self.info = read_json(self._root / INFO)
        version = str(self.info.get("codebase_version"))
        if version not in ("v2.0", "v2.1", "v3.0"):
            raise DataError(f"path={self._root}: format {version}; v2.1 and v3.0 are read")
        self._record = read_json(self._root / DATA_RECORD) if (self._root / DATA_RECORD).is_file() else {}
        self.features: dict[str, Any] = self.info["features"]
        self._columns = _find_columns(self.features, settings, self._record)
        self._cameras = _find_cameras(self.features, settings)
        self._rate = float(settings.source_fps or self.info["fps"])
        self._places = (_places_v3 if version == "v3.0" else _places_v2)(self._root, self.info)
        self._tasks = _read_tasks(self._root)

    def items(self) -> list[Item]:
        """Episodes by their numbers."""
        if not self._places:
            raise DataError(f"path={self._root}: the data set has no episodes")
        return [Item(f"episode {number}", (number,)) for number in sorted(self._places)]

    def read(self, item: Item) -> Recording:
        """One episode.

        Raises:
            Refused: It cannot be used.
        """
        number = int(item.place[0])
        place = self._places[number]
        rows = self._rows(place, number)
        if rows.num_rows == 0:
            raise Refused("empty", "no frames")
        if rows.num_rows != place["length"]:
            raise Refused("length_mismatch", f"{rows.num_rows} frames in the table, {place['length']} in the metadata")
        state, actions = self._numbers(rows, "state"), self._numbers(rows, "action")
        times = _array(rows, "timestamp").reshape(-1) if "timestamp" in rows.column_names else None
        if times is not None and len(times) > 1:
            fps, interval = float(self.info["fps"]), float(np.median(np.diff(times)))
            if math.isclose(interval * fps, 1, abs_tol=0.1):  # the clock is that rate, which source_fps= says is wrong
                times *= fps / self._rate
        taken = _array(rows, INTERVENTION).reshape(-1) > 0 if INTERVENTION in rows.column_names else None
        return Recording(
            identity=item.identity,
            state=state,
            actions=actions,
            instructions=self._instructions(rows),
            success=_success(rows),
            rate=self._rate,
            frames=partial(read_frames, self._root, self.info, place, self._cameras),
            times=times,
            interventions=taken,
            robot=str(self._record.get("robot") or self.info.get("robot_type") or "franka").lower(),
            law=self._record.get("execution_law"),
            pose_frame=str(self._record.get("pose_frame", FLANGE)),
            place=f"{self._root}#{number}",
        )

    def _rows(self, place: Mapping[str, Any], number: int) -> pa.Table:
        """Everything of an episode but its images."""
        names = [name for name, _, _ in self._columns["state"].values()]
        names += [name for name, _, _ in self._columns["action"].values()]
        names += [name for name in (*_INSTRUCTIONS, *_SUCCESS, *_MARKS) if name in self.features]
        path = self._root / place["data"]
        try:
            return pq.read_table(path, columns=list(dict.fromkeys(names)), filters=[("episode_index", "=", number)])
        except FileNotFoundError:
            raise Refused("missing_file", f"no {place['data']}") from None
        except (pa.ArrowException, OSError) as error:
            raise Refused("corrupt_file", f"{place['data']} cannot be read ({first_line(error)})") from None

    def _numbers(self, rows: pa.Table, kind: str) -> dict[str, Numbers]:
        return {name: _array(rows, column)[:, start:end] for name, (column, start, end) in self._columns[kind].items()}

    def _instructions(self, rows: pa.Table) -> tuple[str, ...]:
        texts = [_first_text(rows, name) for name in _INSTRUCTIONS if name in rows.column_names]
        if "task_index" in rows.column_names:
            task = self._tasks.get(int(_array(rows, "task_index")[0, 0]), "")
            texts = texts if task in texts else [task, *texts]
        return tuple(texts)


Columns = dict[str, tuple[str, int, int]]  # our name -> column, first number, and the one after the last


def _find_columns(
    features: Mapping[str, Any], settings: ConvertSettings, record: Mapping[str, Any]
) -> dict[str, Columns]:
    """Where the numbers are.

    Raises:
        DataError: What the action space needs is not there, or it is not known what a column means.
    """
    state = _named(features, STATE_SIZES, _STATE_PREFIXES)
    if _size(features, STATE) == (size := len(JOINT_STATE)):
        state.setdefault(JOINT_POSITION, (STATE, 0, size - 1))
        state.setdefault(GRIPPER_POSITION, (STATE, size - 1, size))
    actions = _named(features, ACTION_SIZES, _ACTION_PREFIXES)
    states_needed, actions_needed = needed_numbers(settings.action_space)
    if any(name not in actions for name in actions_needed):
        _add_untyped(actions, features, settings, record)
    missing = [f"state {name}" for name in states_needed if name not in state]
    missing += [f"action {name}" for name in actions_needed if name not in actions]
    if missing:
        there = ", ".join(sorted(name for name in actions if name in ACTION_SPACES)) or "none"
        raise DataError(
            f"path={settings.path}: no {', no '.join(missing)}, which action_space={settings.action_space} needs; "
            f"action spaces that are there: {there}"
        )
    return {"state": state, "action": actions}


def _named(features: Mapping[str, Any], sizes: Mapping[str, int], prefixes: tuple[str, ...]) -> Columns:
    found: Columns = {}
    for name, size in sizes.items():
        column = next((f"{p}{name}" for p in prefixes if _size(features, f"{p}{name}") == size), None)
        if column is not None:
            found[name] = (column, 0, size)
    return found


def _size(features: Mapping[str, Any], name: str) -> int | None:
    return int(np.prod(features[name]["shape"])) if name in features else None


def _add_untyped(
    actions: Columns, features: Mapping[str, Any], settings: ConvertSettings, record: Mapping[str, Any]
) -> None:
    """`actions` (openpi) or `action`, whose name does not say what it holds."""
    column = next((name for name in ("actions", ACTION) if name in features), None)
    if column is None:
        return
    space = settings.source_action or record.get("action_space")
    if space is None and column == "actions":
        space = JOINT_VELOCITY  # what openpi's converter writes
    if space is None and "action.original" in features:
        space = JOINT_POSITION  # what LeRobot's port of DROID writes
    if space is None:
        raise DataError(
            f"path={settings.path}: it does not say what {column} holds; add source_action={'|'.join(DROID_SPACES)}"
        )
    size = ACTION_SPACES[space].size
    if _size(features, column) != size:
        raise DataError(
            f"path={settings.path}: {column} has {_size(features, column)} numbers, {space} has {size}; "
            "correct source_action="
        )
    if space != DELTA_EEF:  # its gripper is another, and its poses are not in it
        actions.setdefault(space, (column, 0, size - 1))
        actions.setdefault(GRIPPER_POSITION, (column, size - 1, size))


def _find_cameras(features: Mapping[str, Any], settings: ConvertSettings) -> dict[str, str]:
    """Camera -> feature."""
    found: dict[str, str] = {}
    for camera in settings.cameras:
        names = [f"{prefix}{name}" for prefix in _IMAGE_PREFIXES for name in (camera, RLDS_CAMERAS[camera])]
        feature = next((name for name in names if name in features), None)
        if feature is None:
            there = sorted(name for name, each in features.items() if each["dtype"] in ("image", "video"))
            raise DataError(
                f"path={settings.path}: no camera {camera} ({', '.join(names[:2])}, ...), there are "
                f"{', '.join(there) or 'none'}; choose with cameras="
            )
        found[camera] = feature
    return found


def _places_v2(root: Path, info: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Episode -> its files, in a data set with one file per episode."""
    places: dict[int, dict[str, Any]] = {}
    for line in _lines(root / "meta" / "episodes.jsonl"):
        number = int(line["episode_index"])
        names = {"episode_index": number, "episode_chunk": number // int(info.get("chunks_size") or 1000)}
        films = {
            key: (info["video_path"].format(video_key=key, **names), 0.0)
            for key, feature in info["features"].items()
            if feature["dtype"] == "video"
        }
        places[number] = {
            "number": number,
            "length": int(line["length"]),
            "data": info["data_path"].format(**names),
            "films": films,
        }
    return places


def _places_v3(root: Path, info: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Episode -> its files and where in its videos it begins."""
    keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    names += [f"videos/{key}/{each}" for key in keys for each in ("chunk_index", "file_index", "from_timestamp")]
    places: dict[int, dict[str, Any]] = {}
    for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        for row in _read_table(path, names).to_pylist():
            films = {key: (_film(info, row, key), float(row[f"videos/{key}/from_timestamp"])) for key in keys}
            data = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
            places[row["episode_index"]] = {
                "number": row["episode_index"],
                "length": row["length"],
                "data": data,
                "films": films,
            }
    return places


def _film(info: Mapping[str, Any], row: Mapping[str, Any], key: str) -> str:
    chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
    name: str = info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
    return name


def _read_table(path: Path, names: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); {_AGAIN}") from None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); {_AGAIN}") from None


def _read_tasks(root: Path) -> dict[int, str]:
    path = root / "meta" / "tasks.parquet"
    if path.is_file():
        table = _read_table(path)
        texts = next(name for name in table.column_names if name != "task_index")
        return dict(zip(table.column("task_index").to_pylist(), map(str, table.column(texts).to_pylist()), strict=True))
    return {int(line["task_index"]): str(line["task"]) for line in _lines(root / "meta" / "tasks.jsonl")}


def _array(rows: pa.Table, name: str) -> Numbers:
    try:
        return column_array(rows.column(name), name).astype(np.float64)
    except DataError as error:
        raise Refused("corrupt_file", str(error)) from None


def _first_text(rows: pa.Table, name: str) -> str:
    value = rows.column(name)[0].as_py()
    return str(value[0] if isinstance(value, list) and value else value or "")


def _success(rows: pa.Table) -> bool | None:
    for name in _SUCCESS:
        if name in rows.column_names:
            value = rows.column(name)[0].as_py()
            return bool(value[0] if isinstance(value, list) else value)
    return None
