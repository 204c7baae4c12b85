"""Every picture of a data set, decoded once before it is trained on: a damaged one is named instead of met at night."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rlspec.errors import DataError
from rlspec.vla.data.files import first_line
from rlspec.vla.data.pixels import decode_image, read_film_part

THREADS = 2  # decoders let go of Python's lock
INTERVAL = 5.0  # seconds between words


@dataclass(frozen=True)
class EpisodePictures:
    """The pictures of one camera in one episode."""

    path: Path
    camera: str
    episode: int
    length: int
    start: float | int  # seconds in a film, row in a table

    def place(self, frame: int) -> str:
        """Where a picture is, in words."""
        return f"{self.path}: frame {frame} of episode {self.episode}, {self.camera}"


def decode_all(
    root: Path,
    info: Mapping[str, Any],
    table: Mapping[str, NDArray[Any]],
    used: NDArray[np.bool_],
    say: Callable[[str], None],
) -> None:
    """Decode the pictures of the episodes that are used, unless the same files have passed before.

    Args:
        root: of the data set.
        info: its meta/info.json.
        table: its meta/episodes, by column.
        used: (episodes,).
        say: told how far it is.

    Raises:
        DataError: The first damaged picture, by file, episode and frame.
    """
    parts = list(_parts(root, info, table, used))
    stamp = _stamp(parts)
    if not parts or stamp.is_file():
        return
    total, done, last = sum(part.length for part in parts), 0, time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        for part, _ in zip(parts, pool.map(_decode, parts), strict=True):
            done += part.length
            if time.monotonic() - last > INTERVAL:
                last = time.monotonic()
                say(f"decoding all pictures once: {done} of {total}")
    _keep(stamp)


def _parts(
    root: Path, info: Mapping[str, Any], table: Mapping[str, NDArray[Any]], used: NDArray[np.bool_]
) -> Iterator[EpisodePictures]:
    for camera, feature in info["features"].items():
        for index in np.flatnonzero(used):
            episode, length = int(table["episode_index"][index]), int(table["length"][index])
            if feature["dtype"] == "video":
                chunk, file = (int(table[f"videos/{camera}/{name}"][index]) for name in ("chunk_index", "file_index"))
                path = root / info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=file)
                yield EpisodePictures(
                    path, camera, episode, length, float(table[f"videos/{camera}/from_timestamp"][index])
                )
            elif feature["dtype"] == "image":
                chunk, file = (int(table[f"data/{name}"][index]) for name in ("chunk_index", "file_index"))
                same = (table["data/chunk_index"] == chunk) & (table["data/file_index"] == file)
                first = int(table["dataset_from_index"][same].min())
                path = root / info["data_path"].format(chunk_index=chunk, file_index=file)
                yield EpisodePictures(path, camera, episode, length, int(table["dataset_from_index"][index]) - first)


def _decode(part: EpisodePictures) -> None:
    (_decode_film if isinstance(part.start, float) else _decode_table)(part)


def _decode_film(part: EpisodePictures) -> None:
    frame = 0
    try:
        for _ in read_film_part(part.path, part.start, part.length):
            frame += 1
    except DataError as error:
        raise DataError(f"{part.place(frame)}: {str(error).removeprefix(f'{part.path}: ')}{_OTHERS}") from None
    if frame < part.length:
        raise DataError(f"{part.place(frame)}: cannot be decoded (its film ends); restore the file{_OTHERS}")


def _decode_table(part: EpisodePictures) -> None:
    rows = pq.read_table(part.path, columns=[part.camera]).column(part.camera).slice(int(part.start), part.length)
    for frame, picture in enumerate(rows):
        try:
            decode_image(picture.as_py()["bytes"])
        except (OSError, TypeError, SyntaxError, ValueError) as error:
            reason = first_line(error)
            raise DataError(f"{part.place(frame)}: cannot be decoded ({reason}); restore the file{_OTHERS}") from None


_OTHERS = ", or leave the episode out with dataset.episodes"


def _stamp(parts: list[EpisodePictures]) -> Path:
    """Of the files as they are now, among those that have passed."""
    files = {part.path: part.path.stat() for part in parts}
    facts = [
        *((str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in sorted(files.items())),
        sorted({part.episode for part in parts}),
    ]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "rlspec" / "decoded" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _keep(stamp: Path) -> None:
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    except OSError:
        pass  # a home that cannot be written: they are decoded again next time
