"""Statistics over all frames of a data set.

LeRobot 0.6.1 merges the quantiles of episodes by a weighted mean, which is no quantile of the whole: policies that
normalise by quantiles are misled. Here every number of a numeric feature is looked at, and so are all pixels, by a
histogram of their 256 values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.checkpoint import write_json_atomically
from rlspec.errors import DataError
from rlspec.vla.data.files import INFO, STATS, is_numeric, read_columns, read_json
from rlspec.vla.data.pixels import count_pixels

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}  # LeRobot's
TOLERANCE = 1e-4  # relative to the range of a number
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # nothing is normalised by these
IMAGE_FRAMES = 2000  # pictures that are looked at where there may be very many

Statistics = dict[str, NDArray[Any]]


class NotFinite(DataError):
    """A number of a data set is not finite, so that there are no statistics of it."""


def check_finite(root: Path, columns: Mapping[str, NDArray[Any]], used: NDArray[np.bool_] | None = None) -> None:
    """Refuse numbers that are not finite.

    Args:
        root: the data set's folder.
        columns: all its numeric features, (N, d) each.
        used: (N,) frames that matter; None: all.

    Raises:
        NotFinite: The first feature that has one, with its first frame.
    """
    for name, values in columns.items():
        if not np.issubdtype(values.dtype, np.floating):
            continue
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1) & (True if used is None else used))
        if len(bad):
            frame, episode = (int(columns[each][bad[0], 0]) for each in ("frame_index", "episode_index"))
            raise NotFinite(
                f"{root}/data: {name} is not finite in {len(bad)} frames, first in frame {frame} of episode {episode}; "
                "leave the episode out with dataset.episodes, or generate the data again"
            )


def vector_statistics(values: NDArray[Any]) -> Statistics:
    """Statistics over the first axis of (N, d), computed in float64; each (d,), and the count (1,)."""
    numbers = values.astype(np.float64)
    levels = np.quantile(numbers, list(QUANTILES.values()), axis=0)
    return {
        "min": numbers.min(axis=0),
        "max": numbers.max(axis=0),
        "mean": numbers.mean(axis=0),
        "std": numbers.std(axis=0),
        "count": np.array([len(numbers)]),
        **dict(zip(QUANTILES, levels, strict=True)),
    }


def image_statistics(histogram: NDArray[np.int64], frames: int) -> Statistics:
    """Statistics of pixels in [0, 1] per channel, each (3, 1, 1) as LeRobot wants them.

    Args:
        histogram: (3, 256) how often each channel has each value.
        frames: number of images, which is what LeRobot counts.
    """
    values = np.arange(256)
    total = histogram.sum(axis=1, keepdims=True)
    mean = (histogram * values).sum(axis=1, keepdims=True) / total
    variance = (histogram * (values - mean) ** 2).sum(axis=1, keepdims=True) / total
    ends = np.cumsum(histogram, axis=1)

    def at_rank(rank: NDArray[np.int64]) -> NDArray[Any]:
        """The value at a position of the sorted pixels, per channel."""
        return np.array([np.searchsorted(end, r, side="right") for end, r in zip(ends, rank, strict=True)])

    def quantile(level: float) -> NDArray[Any]:
        position = (total[:, 0] - 1) * level
        low = np.floor(position).astype(np.int64)
        below, above = at_rank(low), at_rank(np.minimum(low + 1, total[:, 0] - 1))
        return below + (above - below) * (position - low)

    def shaped(numbers: NDArray[Any]) -> NDArray[Any]:
        return numbers.reshape(-1, 1, 1) / 255.0

    return {
        "min": shaped(at_rank(np.zeros(len(histogram), dtype=np.int64))),
        "max": shaped(at_rank(total[:, 0] - 1)),
        "mean": shaped(mean),
        "std": shaped(np.sqrt(variance)),
        "count": np.array([frames]),
        **{name: shaped(quantile(level)) for name, level in QUANTILES.items()},
    }


def numeric_statistics(root: Path, episodes: Sequence[int] | None = None) -> dict[str, Statistics]:
    """Exact statistics of all numeric features of a LeRobotDataset v3, read from its parquet files.

    Args:
        root: the data set's folder.
        episodes: whose frames count; None: all.

    Raises:
        DataError: A file is missing or cannot be read.
        NotFinite: A number is not finite.
    """
    features = read_json(root / INFO)["features"]
    names = [name for name, feature in features.items() if is_numeric(feature)]
    columns = read_columns(root, names)
    if episodes is not None:
        counts = np.isin(columns["episode_index"][:, 0], list(episodes))
        columns = {name: values[counts] for name, values in columns.items()}
    check_finite(root, columns)
    return {name: vector_statistics(values) for name, values in columns.items()}


def exact_statistics(root: Path, *, image_frames: int | None = IMAGE_FRAMES) -> dict[str, Statistics]:
    """Statistics of all features of a LeRobotDataset v3.

    Args:
        root: its folder.
        image_frames: pictures are counted in so many frames, evenly spaced over the whole; None: in all.

    Raises:
        DataError: A file is missing or cannot be read, or a number is not finite.
    """
    statistics = numeric_statistics(root)
    features = read_json(root / INFO)["features"]
    frames = len(read_columns(root, ["index"])["index"])
    chosen = np.unique(np.linspace(0, frames - 1, min(frames, image_frames or frames)).round().astype(np.int64))
    for name, feature in features.items():
        if feature["dtype"] in ("image", "video"):
            statistics[name] = image_statistics(count_pixels(root, name, chosen), len(chosen))
    return statistics


def statistics_fault(root: Path, exact: Mapping[str, Statistics] | None = None) -> str | None:
    """The first number of meta/stats.json that is not that of all frames, in words; None where all are.

    Statistics of pictures are not looked at: LeRobot samples them, and policies use at most their mean.

    Args:
        root: the data set's folder.
        exact: what `numeric_statistics` gives; None: computed.
    """
    if not (root / STATS).is_file():
        return "there are none"
    stored = read_json(root / STATS)
    for name, numbers in (exact or numeric_statistics(root)).items():
        if name in BOOKKEEPING:
            continue
        if name not in stored:
            return f"{name}: no statistics"
        scale = np.maximum(numbers["max"] - numbers["min"], 1e-6)
        for key, values in numbers.items():
            given = np.asarray(stored[name].get(key, np.nan), dtype=np.float64).reshape(-1)
            if given.shape != values.shape:
                return f"{name}: {key} is missing or has another shape"
            off = ~(np.abs(given - values) <= TOLERANCE * (1 if key == "count" else scale))
            if off.any():
                at = int(np.flatnonzero(off)[0])
                return f"{name}[{at}]: {key} is stored as {given[at]:.4g}, over all frames it is {values[at]:.4g}"
    return None


def repair_statistics(root: Path, *, image_frames: int | None = IMAGE_FRAMES) -> str | None:
    """Replace statistics that are not exact; those of pictures are kept where they exist.

    Returns:
        What was wrong; None where nothing was, and nothing was written.
    """
    stored = read_json(root / STATS) if (root / STATS).is_file() else {}
    features = read_json(root / INFO)["features"]
    pictures = [name for name, feature in features.items() if feature["dtype"] in ("image", "video")]
    complete = all(
        set(QUANTILES) | {"mean", "std", "min", "max", "count"} <= set(stored.get(name, ())) for name in pictures
    )
    fault = statistics_fault(root) if stored and complete else "statistics are missing"
    if fault is None:
        return None
    if complete:
        kept = {name: {key: np.asarray(value) for key, value in stored[name].items()} for name in pictures}
        write_statistics(root, numeric_statistics(root) | kept)
    else:
        write_statistics(root, exact_statistics(root, image_frames=image_frames))
    return fault


def write_statistics(root: Path, statistics: Mapping[str, Statistics]) -> None:
    """Write meta/stats.json as LeRobot reads it."""
    plain = {name: {key: value.tolist() for key, value in each.items()} for name, each in statistics.items()}
    write_json_atomically(root / STATS, plain)
