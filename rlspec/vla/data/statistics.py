"""Statistics over all frames of a data set.

LeRobot 0.6.1 merges the quantiles of episodes by a weighted mean, which is no quantile of the whole: policies that
normalise by quantiles are misled. Here every number of a numeric feature is looked at, and so are all pixels, by a
histogram of their 256 values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rlspec.checkpoint import write_json_atomically
from rlspec.errors import DataError

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}  # LeRobot's
STATS = "meta/stats.json"
INFO = "meta/info.json"
TOLERANCE = 1e-4  # relative to the range of a number

Statistics = dict[str, NDArray[Any]]


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


def numeric_statistics(root: Path) -> dict[str, Statistics]:
    """Exact statistics of all numeric features of a LeRobotDataset v3, read from its parquet files."""
    features = _read_json(root / INFO)["features"]
    names = [name for name, feature in features.items() if is_numeric(feature)]
    return {name: vector_statistics(values) for name, values in read_columns(root, names).items()}


def is_numeric(feature: Mapping[str, Any]) -> bool:
    """Whether a feature is a number or a vector, not a picture or text."""
    return str(feature["dtype"]).startswith(("float", "int", "bool"))


def read_columns(root: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Columns of all frames as (N, d) arrays, in the order of the files.

    Raises:
        DataError: A file cannot be read, or a column holds vectors of different lengths.
    """
    paths = sorted((root / "data").glob("*/*.parquet"))
    if not paths:
        raise DataError(f"{root}: no parquet files in data/; download or generate the data set again")
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for path in paths:
        try:
            table = pq.read_table(path, columns=names)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: cannot be read ({_first_line(error)}); restore it or generate the data again"
            ) from None
        for name in names:
            parts[name].append(column_array(table.column(name), f"{path}: {name}"))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def column_array(column: pa.ChunkedArray, place: str) -> NDArray[Any]:
    """A column of numbers or of lists of numbers as (N, d).

    Raises:
        DataError: A missing value, or vectors of different lengths.
    """
    array = column.combine_chunks()
    if array.null_count:
        raise DataError(f"{place}: {array.null_count} values are missing; generate the data again")
    rows = len(array)
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        lengths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False)) if rows else np.array([0])
        if len(lengths) > 1:
            raise DataError(
                f"{place}: vectors of {lengths.min()} and of {lengths.max()} numbers; generate the data again"
            )
        array = array.flatten()
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values.reshape(rows, -1)


def write_statistics(root: Path, statistics: Mapping[str, Statistics]) -> None:
    """Write meta/stats.json as LeRobot reads it."""
    plain = {name: {key: value.tolist() for key, value in each.items()} for name, each in statistics.items()}
    write_json_atomically(root / STATS, plain)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; download or generate the data set again") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)}); restore it") from None
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
