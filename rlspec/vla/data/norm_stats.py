"""openpi's norm_stats.json: mean, std, q01 and q99 of `state` and `actions`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.checkpoint import write_json_atomically
from rlspec.contract.features import ACTION, STATE
from rlspec.errors import DataError
from rlspec.vla.data.facts import Stats

KINDS = ("mean", "std", "q01", "q99")
_NAMES = {STATE: "state", ACTION: "actions"}


def write_norm_stats(path: Path, stats: Stats) -> None:
    """Write the statistics of state and action as openpi reads them.

    Raises:
        DataError: One is missing.
    """
    content = {}
    for ours, theirs in _NAMES.items():
        if missing := [kind for kind in KINDS if kind not in stats.get(ours, {})]:
            raise DataError(f"{ours}: no {missing[0]} in the statistics; repair them with python -m rlspec.stats --fix")
        content[theirs] = {kind: np.asarray(stats[ours][kind], np.float64).reshape(-1).tolist() for kind in KINDS}
    write_json_atomically(path, {"norm_stats": content})


def read_norm_stats(path: Path, sizes: dict[str, int] | None = None) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Statistics of state and action from openpi's file.

    Args:
        path: the file.
        sizes: feature -> numbers that are wanted; what openpi pads vectors with, to the model's size, is cut off.

    Raises:
        DataError: The file cannot be read, has fewer numbers, or more that are no padding.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        given = content.get("norm_stats", content)
        found: dict[str, dict[str, NDArray[np.float64]]] = {
            ours: {kind: np.asarray(given[theirs][kind], np.float64).reshape(-1) for kind in KINDS}
            for ours, theirs in _NAMES.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no norm_stats.json of openpi ({type(error).__name__}: {error}); correct it") from None
    for name, each in found.items():
        lengths = {kind: len(values) for kind, values in each.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{kind} {length}" for kind, length in lengths.items())
            raise DataError(f"{path}: {name} has {said} numbers: statistics of different robots; correct it")
    for name, size in (sizes or {}).items():
        own = len(found[name]["mean"])
        if own != size and (own < size or not _is_padding(found[name], size)):
            raise DataError(f"{path}: {own} numbers of {name}, the data has {size}; take the file of that robot")
        found[name] = {kind: values[:size] for kind, values in found[name].items()}
    return found


def _is_padding(stats: Mapping[str, NDArray[np.float64]], size: int) -> bool:
    """Whether all numbers from `size` on were always 0."""
    return not any(stats[kind][size:].any() for kind in ("mean", "q01", "q99"))


def vector_sizes(features: Mapping[str, Any]) -> dict[str, int]:
    """How many numbers state and action of a data set have, as far as they are there."""
    return {name: math.prod(features[name]["shape"]) for name in _NAMES if name in features}
