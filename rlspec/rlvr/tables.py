"""Rows of a table from a local file, a local folder or the hub. Every failure is one line with its place."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from rlspec.errors import DataError

Row = tuple[str, dict[str, Any]]  # where the row stands ("file:12"), and its columns
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_rows(path: str, *, subset: str | None, split: str | None, name: str) -> list[Row]:
    """All rows of one part of a data set.

    Args:
        path: local file with one of `SUFFIXES`, local folder with a file per split or a hub snapshot, or a hub id.
        subset: configuration of a hub data set.
        split: part of a folder or hub data set; ignored for a file, which has no parts.
        name: the data set's name in messages.
    """
    from rlspec.hub import fetch_snapshot, is_local

    if path.lower().endswith(SUFFIXES):
        return read_file(Path(path).expanduser())
    if is_local(path):
        return _read_folder(Path(path).expanduser(), subset, split or "train")
    try:
        folder = fetch_snapshot(path, kind="dataset")
    except ConnectionError as error:
        remedy = "use a local copy: data.path=FILE.jsonl data.test_path=FILE.jsonl, or HF_HOME=CACHE that has it"
        raise DataError(f"data={name}: {error}; {remedy}") from error
    return _read_snapshot(folder, subset, split or "train", path)


def read_file(path: Path) -> list[Row]:
    """Rows of a .jsonl, .json (list of objects), .csv or .parquet file, each with its line or row number."""
    if not path.is_file():
        raise DataError(f"no data file {path}; set data.path")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: {suffix or 'a file without ending'} is none of {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            rows = _parquet(path)
        else:
            text = path.read_bytes().decode("utf-8-sig")
            rows = list({".jsonl": _jsonl, ".json": _json, ".csv": _csv}[suffix](text, path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or _one_line(error)}") from error
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def cell_text(value: Any, column: str, place: str, *, numbers: bool = False, remedy: str = "set data.columns.*") -> str:
    """A cell as text.

    Args:
        value: what the table holds.
        column: its name, for messages.
        place: its row, for messages.
        numbers: the column holds answers: a number becomes its digits, without an exponent, which the grader would
            read as a product with `e`; a missing value (null, NaN, infinity) becomes empty text, which the preflight
            reports and drops.
        remedy: what names another column, for messages.

    Raises:
        DataError: neither text nor, with `numbers`, a number.
    """
    if numbers and value is None:
        return ""
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if numbers and isinstance(value, float | Decimal):
        return format(Decimal(str(value)), "f") if math.isfinite(value) else ""
    if not isinstance(value, str):
        kind = "nothing" if value is None else type(value).__name__
        raise DataError(f"{place}: column {column!r} holds {kind}, not text ({remedy})")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: column {column!r} holds a lone surrogate, which is not Unicode text") from error
    return value


def _one_line(error: BaseException) -> str:
    from rlspec.hub import one_line  # the hub's client takes a while to import

    return one_line(error)


def _jsonl(text: str, path: Path) -> Iterator[Row]:
    # Not str.splitlines: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")


def _json(text: str, path: Path) -> Iterator[Row]:
    rows = _parse(text, str(path)) if text.strip() else []
    if not isinstance(rows, list):
        raise DataError(f"{path}: not a list of objects but {type(rows).__name__}; one object per line is .jsonl")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, element {number}", _object(row, f"{path}, element {number}")


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # ValueError also covers integers of too many digits
        raise DataError(f"{place}: not valid JSON: {_one_line(error)}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, of which json would keep the last of two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"key {_twice([name for name, _ in pairs])!r} stands twice in one object")
    return found


def _twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: not an object with columns but {type(value).__name__}")
    return value


def _csv(text: str, path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if (name := _twice(reader.fieldnames or [])) is not None:
            raise DataError(f"{path}:1: column {name!r} stands twice in the header; rename one")
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{place}: not {len(reader.fieldnames or [])} columns as in the header")
            yield place, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV: {_one_line(error)}") from error


def _parquet(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{path}: not a readable Parquet file: {_one_line(error)}") from error
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _read_folder(folder: Path, subset: str | None, split: str) -> list[Row]:
    """A folder with one file per split (``train.jsonl``), or a snapshot of a hub data set."""
    if not folder.is_dir():
        kinds = f"no folder and none of {', '.join(SUFFIXES)}" if folder.exists() else "no such file or folder"
        raise DataError(f"data.path={folder}: {kinds}")
    for suffix in SUFFIXES:
        if (folder / f"{split}{suffix}").is_file():
            return read_file(folder / f"{split}{suffix}")
    return _read_snapshot(folder, subset, split, str(folder))


def _read_snapshot(folder: Path, subset: str | None, split: str, source: str) -> list[Row]:
    from datasets import DatasetDict, disable_progress_bars
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    try:
        parts = _parts(folder, subset)
    except (DatasetsError, ValueError, OSError) as error:
        raise DataError(f"cannot read data set {source}: {_one_line(error)} (set data.path, data.subset)") from error
    if not isinstance(parts, DatasetDict) or split not in parts:
        raise DataError(f"data set {source} has no split {split!r}; it has {', '.join(parts)} (set data.split)")
    return [(f"{source} {split}, row {number}", row) for number, row in enumerate(parts[split], start=1)]


def _parts(folder: Path, subset: str | None) -> Any:
    """What `load_dataset` reads, or `save_to_disk` has written: a single set without splits counts as `train`."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    if (folder / "dataset_dict.json").is_file():
        return load_from_disk(str(folder))
    if (folder / "state.json").is_file():
        return DatasetDict(train=load_from_disk(str(folder)))
    return load_dataset(str(folder), subset)
