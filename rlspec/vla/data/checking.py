"""Whether a data set is whole: every fault that would surface hours into a training is one line here.

Reads all numbers and the heads of pictures and videos, by pyarrow alone, without importing LeRobot.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rlspec.contract.features import ACTION, STATE, picture_shape
from rlspec.errors import DataError
from rlspec.vla.data.decoding import decode_all
from rlspec.vla.data.exact_statistics import BOOKKEEPING, check_finite
from rlspec.vla.data.files import INFO, STATS, first_line, is_numeric, read_columns, read_json
from rlspec.vla.data.pixels import FILM_RATE_TOLERANCE, decode_image, read_film, read_film_head

_AGAIN = "restore the file, or download or generate the data set again"
_TASKS = "meta/tasks.parquet"
_TIME_TOLERANCE = 1e-3  # seconds


@dataclass(frozen=True)
class DatasetReport:
    """What a whole data set holds."""

    episodes: int
    frames: int
    tasks: int
    fps: int
    megabytes: float
    cameras: tuple[str, ...]

    def describe(self) -> str:
        """One line."""
        cameras = ", ".join(self.cameras) or "none"
        return (
            f"{self.episodes} episodes, {self.frames} frames, {self.tasks} instructions at {self.fps} Hz, "
            f"{self.megabytes:.1f} MB, cameras: {cameras}"
        )


def check_dataset(
    root: Path | str,
    *,
    episodes: Sequence[int] | None = None,
    renamed: Mapping[str, str] | None = None,
    say: Callable[[str], None] | None = None,
) -> DatasetReport:
    """Check a LeRobotDataset v3 in a folder.

    Args:
        root: of the data set.
        episodes: those that are used: what is wrong in others does not matter; None: all.
        renamed: feature in the files -> name outside.
        say: told how far the decoding of all pictures is; None: only the first of each file are decoded.

    Raises:
        DataError: The first fault, with the file and the remedy.
    """
    root = Path(root)
    names = {new: old for old, new in (renamed or {}).items()}
    needed = [names.get(name, name) for name in (ACTION, STATE)]
    info = _check_metadata(root, needed)
    features = info["features"]
    table = _read_episodes(root, info)
    used = np.isin(table["episode_index"], table["episode_index"] if episodes is None else list(episodes))
    columns = read_columns(root, [name for name, feature in features.items() if is_numeric(feature)])
    _check_shapes(root, features, columns)
    _check_episodes(root, table, columns, info["total_frames"])
    check_finite(root, columns, np.repeat(used, table["length"]))
    _check_times(root, columns, info["fps"])
    _check_pictures(root, features)
    _check_videos(root, info, table, used)
    if say is not None:
        decode_all(root, info, table, used, say)
    _check_statistics(root, needed)
    return DatasetReport(
        episodes=len(table["episode_index"]),
        frames=len(columns["index"]),
        tasks=info["total_tasks"],
        fps=info["fps"],
        megabytes=sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e6,
        cameras=tuple(name for name, feature in features.items() if feature["dtype"] in ("image", "video")),
    )


def _check_metadata(root: Path, needed: Sequence[str]) -> dict[str, Any]:
    info = read_json(root / INFO)
    for key in ("codebase_version", "fps", "features", "total_episodes", "total_frames", "total_tasks", "data_path"):
        if key not in info:
            raise DataError(f"{root / INFO}: no {key}; {_AGAIN}")
    if info["codebase_version"] != "v3.0":
        raise DataError(
            f"{root / INFO}: format {info['codebase_version']}, v3.0 is read; convert it with "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30"
        )
    for name in needed:
        if name not in info["features"]:
            known = ", ".join(each for each in info["features"] if each not in BOOKKEEPING)
            remedy = f"name what it is by dataset.rename={{FEATURE: {name}}}; there are {known}"
            raise DataError(f"{root / INFO}: no feature {name}, without which nothing can be imitated; {remedy}")
    if not info["total_episodes"] or not info["total_frames"]:
        raise DataError(f"{root / INFO}: no episodes yet; record or collect some first")
    tasks = _read_table(root / _TASKS)
    if tasks.num_rows != info["total_tasks"] or tasks.num_rows == 0:
        raise DataError(f"{root / _TASKS}: {tasks.num_rows} instructions, {INFO} says {info['total_tasks']}; {_AGAIN}")
    return info


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {_AGAIN}") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); {_AGAIN}") from None


def _read_episodes(root: Path, info: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    folder = root / "meta/episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise DataError(f"{folder}: no parquet files; {_AGAIN}")
    names = ["episode_index", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index"]
    for name, feature in info["features"].items():
        if feature["dtype"] == "video":
            names += [
                f"videos/{name}/{each}" for each in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            ]
    tables = [_read_table(path) for path in paths]
    for name in names:
        if name not in tables[0].column_names:
            raise DataError(f"{paths[0]}: no column {name}; {_AGAIN}")
    return {name: np.concatenate([table.column(name).to_numpy() for table in tables]) for name in names}


def _check_shapes(root: Path, features: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]) -> None:
    for name, values in columns.items():
        size = int(np.prod(features[name]["shape"]))
        if values.shape[1] != size:
            raise DataError(
                f"{root}/data: {name} holds {values.shape[1]} numbers, {INFO} says {size}; correct {INFO}, or {_AGAIN}"
            )


def _check_episodes(
    root: Path, episodes: Mapping[str, NDArray[Any]], columns: Mapping[str, NDArray[Any]], total: int
) -> None:
    indices, lengths = episodes["episode_index"], episodes["length"]
    gaps = np.flatnonzero(indices != np.arange(len(indices)))
    if len(gaps):
        raise DataError(
            f"{root}/meta/episodes: episode {int(gaps[0])} is missing, {int(indices[gaps[0]])} is in its place; "
            "renumber with lerobot-edit-dataset, or generate the data again"
        )
    if empty := [int(index) for index in indices[lengths <= 0]]:
        raise DataError(f"{root}/meta/episodes: episode {empty[0]} is empty; remove it with lerobot-edit-dataset")
    frames = columns["episode_index"][:, 0]
    if len(frames) != total or int(lengths.sum()) != total:
        raise DataError(
            f"{root}/data: {len(frames)} frames, the episodes have {int(lengths.sum())}, {INFO} says {total}; {_AGAIN}"
        )
    counted = np.bincount(frames, minlength=len(indices))
    wrong = np.flatnonzero(counted[: len(indices)] != lengths)
    if len(wrong) or len(counted) > len(indices):
        episode = int(wrong[0]) if len(wrong) else len(indices)
        raise DataError(f"{root}/data: episode {episode} has not the frames that meta/episodes says; {_AGAIN}")
    if (columns["index"][:, 0] != np.arange(total)).any() or (np.diff(frames) < 0).any():
        raise DataError(f"{root}/data: frames are not in order (column index); {_AGAIN}")


def _check_times(root: Path, columns: Mapping[str, NDArray[Any]], fps: float) -> None:
    expected = columns["frame_index"][:, 0] / fps
    times = columns["timestamp"][:, 0]
    off = np.flatnonzero(np.abs(times - expected) > _TIME_TOLERANCE)
    if len(off):
        row = int(off[0])
        raise DataError(
            f"{root}/data: frame {int(columns['frame_index'][row, 0])} of episode "
            f"{int(columns['episode_index'][row, 0])} is at {times[row]:.3f} s, not at {expected[row]:.3f} s as "
            f"fps={fps:g} says; correct fps in {INFO}, or record at a constant rate"
        )


def _check_pictures(root: Path, features: Mapping[str, Any]) -> None:
    """The first picture of every file, and that none is missing."""
    names = [name for name, feature in features.items() if feature["dtype"] == "image"]
    for path in sorted((root / "data").glob("*/*.parquet")) if names else ():
        table = _read_table(path, names)
        for name in names:
            column = table.column(name)
            if column.null_count:
                raise DataError(f"{path}: {column.null_count} pictures of {name} are missing; {_AGAIN}")
            try:
                shape = decode_image(column[0].as_py()["bytes"]).shape
            except (OSError, TypeError) as error:
                raise DataError(f"{path}: {name} holds no picture ({first_line(error)}); {_AGAIN}") from None
            _compare_shape(str(path), name, shape, features[name])


def _compare_shape(place: str, name: str, shape: tuple[int, ...], feature: Mapping[str, Any]) -> None:
    if tuple(shape) != picture_shape(feature):
        raise DataError(
            f"{place}: {name} has pictures of {'x'.join(map(str, shape))}, {INFO} says "
            f"{'x'.join(map(str, feature['shape']))}; correct {INFO}, or {_AGAIN}"
        )


def _check_videos(
    root: Path, info: Mapping[str, Any], table: Mapping[str, NDArray[Any]], used: NDArray[np.bool_]
) -> None:
    for name, feature in info["features"].items():
        if feature["dtype"] != "video":
            continue
        chunks, files = table[f"videos/{name}/chunk_index"], table[f"videos/{name}/file_index"]
        for chunk, file in sorted(set(zip(chunks[used].tolist(), files[used].tolist(), strict=True))):
            path = root / info["video_path"].format(video_key=name, chunk_index=int(chunk), file_index=int(file))
            users = (chunks == chunk) & (files == file)
            if not path.is_file():
                raise DataError(f"{path}: missing, episode {int(np.flatnonzero(users & used)[0])} is in it; {_AGAIN}")
            _check_film(path, name, feature, info["fps"], int(table["length"][users].sum()))


def _check_film(path: Path, name: str, feature: Mapping[str, Any], fps: float, frames: int) -> None:
    """The first frame is decoded, the others are counted."""
    _compare_shape(str(path), name, next(read_film(path))().shape, feature)
    rate, there = read_film_head(path)
    if there != frames:
        raise DataError(f"{path}: {there} frames, its episodes have {frames}; {_AGAIN}")
    if abs(rate - fps) > FILM_RATE_TOLERANCE:
        raise DataError(f"{path}: {rate:g} frames per second, {INFO} says fps={fps:g}; correct {INFO}")


def _check_statistics(root: Path, needed: Sequence[str]) -> None:
    remedy = f"repair them: python -m rlspec.stats path={shlex.quote(str(root))} --fix"
    if not (root / STATS).is_file():
        raise DataError(f"{root / STATS}: missing; {remedy}")
    stored = read_json(root / STATS)
    for name in needed:
        if not {"mean", "std", "min", "max"} <= set(stored.get(name, ())):
            raise DataError(f"{root / STATS}: no statistics of {name}; {remedy}")
