"""Images of one episode of a LeRobot data set, from tables or from videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlspec.vla.data.files import INFO, first_line
from rlspec.vla.data.pixels import FILM_RATE_TOLERANCE, read_film_part, read_film_rate
from rlspec.vla.data.recording import Pixels
from rlspec.vla.droid.episodes import Frame, Refused, frames_of_film
from rlspec.vla.droid.rlds import decode_frame

_BATCH = 16  # pictures in memory


def read_frames(
    root: Path, info: Mapping[str, Any], place: Mapping[str, Any], features: Mapping[str, str], camera: str
) -> Iterator[Frame]:
    """The frames of a camera.

    Args:
        root: The data set's folder.
        info: meta/info.json.
        place: Of the episode: number, length, data and films.
        features: Camera -> feature.
        camera: Which one.

    Raises:
        Refused: A file is missing or corrupt.
    """
    key = features[camera]
    read = _film_frames if info["features"][key]["dtype"] == "video" else _table_frames
    count = 0
    for frame in read(root, info, place, key):
        count += 1
        yield frame
    if count != place["length"]:
        raise Refused("length_mismatch", f"{key} has {count} frames, the episode {place['length']}")


def _film_frames(root: Path, info: Mapping[str, Any], place: Mapping[str, Any], key: str) -> Iterator[Frame]:
    name, start = place["films"][key]
    path = root / name
    if not path.is_file():
        raise Refused("missing_camera", f"no {name}")
    whole = "chunk_index" not in info["video_path"]  # one file per episode: it must not hold more
    length = place["length"] + 1 if whole else place["length"]
    yield from frames_of_film(_film_part(path, start, length, info["fps"]), path, name)


def _film_part(path: Path, start: float, length: int, fps: float) -> Iterator[Frame]:
    """A film at another rate would show other moments than the table's rows."""
    rate = read_film_rate(path)
    if abs(rate - fps) > FILM_RATE_TOLERANCE:
        raise Refused("wrong_rate", f"{path.name} has {rate:g} frames per second, {INFO} says fps={fps:g}")
    yield from read_film_part(path, start, length)


def _table_frames(root: Path, info: Mapping[str, Any], place: Mapping[str, Any], key: str) -> Iterator[Frame]:
    path = root / place["data"]
    try:
        with pq.ParquetFile(path) as file:
            groups = [group for group in range(file.num_row_groups) if _may_hold(file, group, place["number"])]
            for batch in file.iter_batches(_BATCH, row_groups=groups, columns=["episode_index", key]):
                chosen = batch.filter(pc.equal(batch.column("episode_index"), place["number"]))
                for picture in chosen.column(key).to_pylist():
                    yield partial(_decode, root, picture, f"a picture of {key}")
    except (pa.ArrowException, OSError) as error:
        raise Refused("corrupt_file", f"{place['data']} cannot be read ({first_line(error)})") from None


def _may_hold(file: Any, group: int, number: int) -> bool:
    """By the row group's statistics; without them it may."""
    column = file.metadata.row_group(group).column(file.schema_arrow.names.index("episode_index"))
    if column.path_in_schema != "episode_index" or not column.is_stats_set or not column.statistics.has_min_max:
        return True
    return bool(column.statistics.min <= number <= column.statistics.max)


def _decode(root: Path, picture: Mapping[str, Any] | None, place: str) -> Pixels:
    if picture is None:
        raise Refused("missing_camera", f"{place} is missing")
    if picture.get("bytes"):
        return decode_frame(picture["bytes"], place)
    try:
        return decode_frame((root / str(picture.get("path"))).read_bytes(), place)
    except OSError as error:
        raise Refused("missing_file", f"{place}: {first_line(error)}") from None
