"""The files of a LeRobotDataset v3, read by pyarrow without LeRobot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rlspec.errors import DataError

INFO = "meta/info.json"
STATS = "meta/stats.json"


def is_numeric(feature: Mapping[str, Any]) -> bool:
    """Whether a feature is a number or a vector, not a picture or text."""
    return str(feature["dtype"]).startswith(("float", "int", "uint", "bool"))


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
                f"{path}: cannot be read ({first_line(error)}); restore it or generate the data again"
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the data set.

    Raises:
        DataError: It is missing or cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; download or generate the data set again") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); restore it") from None
    return content


def first_line(error: Exception) -> str:
    """What other libraries' errors say, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
