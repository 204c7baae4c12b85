"""Pictures of a data set, decoded from its files without LeRobot."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rlspec.errors import DataError
from rlspec.vla.data.files import INFO, first_line, read_json
from rlspec.vla.data.recording import Pixels, count_values

FILM_RATE_TOLERANCE = 0.05
"""Frames per second by which a film's rate may differ from its data set's."""


def count_pixels(root: Path, key: str, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """(3, 256) how often each channel of a camera has each value in the chosen frames (positions in the data set)."""
    total = np.zeros((3, 256), dtype=np.int64)
    is_video = read_json(root / INFO)["features"][key]["dtype"] == "video"
    for image in (_video_frames if is_video else _stored_images)(root, key, chosen):
        total += count_values(image)
    return total


def _stored_images(root: Path, key: str, chosen: NDArray[np.int64]) -> Iterator[Pixels]:
    start = 0
    for path in sorted((root / "data").glob("*/*.parquet")):
        column = pq.read_table(path, columns=[key]).column(key)
        for row in chosen[(chosen >= start) & (chosen < start + len(column))] - start:
            yield decode_image(column[int(row)].as_py()["bytes"])
        start += len(column)


def decode_image(content: bytes) -> Pixels:
    """A PNG or JPEG file as (H, W, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def _video_frames(root: Path, key: str, chosen: NDArray[np.int64]) -> Iterator[Pixels]:
    """Frames of each file are counted in its order, which is that of the data set."""
    start = 0
    for path in sorted((root / "videos" / key).glob("*/*.mp4")):
        rate, frames = read_film_head(path)
        wanted = chosen[(chosen >= start) & (chosen < start + frames)] - start
        if len(wanted) == frames:
            yield from (convert() for convert in read_film(path))
        else:
            yield from _seek_frames(path, wanted / rate)
        start += frames


def _seek_frames(path: Path, seconds: NDArray[np.float64]) -> Iterator[Pixels]:
    """The key frame at or before each time: near enough for a sample, and the only one that need be decoded."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        for time in seconds:
            container.seek(int(time / stream.time_base), stream=stream)
            yield next(container.decode(stream)).to_ndarray(format="rgb24")


def read_film(path: Path, *, strict: bool = False) -> Iterator[Callable[[], Any]]:
    """The frames of a video as functions that convert them to (H, W, 3).

    Args:
        path: of the file.
        strict: a damaged picture is an error; else the decoder may hide it.

    Raises:
        DataError: The file cannot be decoded.
    """
    with _opened(path, strict=strict) as container:
        for frame in container.decode(container.streams.video[0]):
            yield partial(frame.to_ndarray, format="rgb24")


def read_film_part(path: Path, start: float, length: int) -> Iterator[Callable[[], Any]]:
    """At most `length` frames from `start` seconds on, as a strict `read_film` gives them.

    Raises:
        DataError: The file cannot be decoded.
    """
    with _opened(path, strict=True) as container:
        stream = container.streams.video[0]
        half = 0.5 / float(stream.average_rate or 1e3)
        if start > half:
            container.seek(int((start + half) / stream.time_base), stream=stream)
        left = length
        for frame in container.decode(stream):
            if frame.time is not None and frame.time < start - half:
                continue
            if left == 0:
                return
            left -= 1
            yield partial(frame.to_ndarray, format="rgb24")


def read_film_rate(path: Path) -> float:
    """Frames per second of a video.

    Raises:
        DataError: The file cannot be read.
    """
    with _opened(path) as container:
        return float(container.streams.video[0].average_rate or 0)


def read_film_head(path: Path) -> tuple[float, int]:
    """Frames per second of a video, and how many whole frames are in it, without decoding them.

    Raises:
        DataError: The file cannot be read.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        frames = sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(stream))
        return float(stream.average_rate or 0), frames


@contextmanager
def _opened(path: Path, *, strict: bool = False) -> Iterator[Any]:
    import av

    try:
        with av.open(str(path)) as container:
            if strict:
                container.streams.video[0].codec_context.options = {"err_detect": "explode"}
            yield container
    except (av.error.FFmpegError, IndexError, OSError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)  # without the path, which is there already
        raise DataError(f"{path}: cannot be decoded ({reason}); restore the file") from None
