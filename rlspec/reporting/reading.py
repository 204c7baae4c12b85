"""What the folder of a run says, as far as it can be read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlspec.comparison.history import HISTORY
from rlspec.comparison.running import unfinished_status
from rlspec.errors import DataError
from rlspec.run_directory import RECIPE, SUMMARY, RunDirectory

SYMMETRY = "symmetry.json"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it.

    Attributes:
        folder: Of the run.
        recipe: The resolved recipe; empty where there is none.
        summary: summary.json; empty as long as the run goes on.
        rows: Of metrics.jsonl, those with a step, in the order of their steps.
        symmetry: symmetry.json; empty where there is none.
        running: It has not ended, or it goes on after an earlier end; a run of a comparison, as its log's lock says.
        problems: A line for each file that could not be read.
    """

    folder: Path
    recipe: dict[str, Any]
    summary: dict[str, Any]
    rows: list[Row]
    symmetry: dict[str, Any]
    running: bool
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def evaluations(self) -> Path:
        """Folder of the evaluations."""
        return RunDirectory(self.folder).evaluations

    @property
    def status(self) -> str:
        """finished, collapsed, interrupted, or what is known of a run without a summary."""
        if self.running:
            return "running or stopped"
        if not self.summary:
            return unfinished_status(self.folder) if _is_compared(self.folder) else "failed"
        return str(self.summary.get("status", "ended"))

    @property
    def last_step(self) -> int:
        """The last logged step; 0 before the first."""
        return max((row["step"] for row in self.rows), default=0)


def find_run(path: Path) -> Path | None:
    """The folder of the run that a path names: itself, or the one that a checkpoint lies in; None: there is no run."""
    for folder in (path.parent.parent, path) if path.parent.name == "checkpoints" else (path,):
        if any((folder / name).is_file() for name in (RECIPE, SUMMARY, "metrics.jsonl")):
            return folder
    return None


def read_run(folder: Path) -> RunRecord:
    """Read a run; files that cannot be read are named in its `problems` and count as absent.

    Raises:
        DataError: The folder holds no run.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of a run or of a sweep")
    found = find_run(folder)
    if found is None:
        raise DataError(f"{folder}: no run (it has neither {RECIPE} nor metrics.jsonl); give the folder of a run")
    problems: list[str] = []
    summary = read_mapping(found / SUMMARY, problems)
    rows, passed_over = read_lines(RunDirectory(found).metrics)
    if passed_over:
        problems.append(f"metrics.jsonl: {passed_over} lines that cannot be read are passed over")
    stepped = [row for row in rows if isinstance(row.get("step"), int)]
    return RunRecord(
        folder=found,
        recipe=read_mapping(found / RECIPE, problems),
        summary=summary,
        rows=sorted(stepped, key=lambda row: int(row["step"])),
        symmetry=read_mapping(found / SYMMETRY, problems),
        running=not _ended(found)
        and (not summary or any(row["step"] > (number(summary.get("steps")) or math.inf) for row in stepped)),
        problems=problems,
    )


def _ended(folder: Path) -> bool:
    """Whether a comparison's run is known to have no process any more: its log is not locked."""
    return _is_compared(folder) and unfinished_status(folder) not in ("missing", "running")


def _is_compared(folder: Path) -> bool:
    return (folder.parent.parent / HISTORY).is_file()


def read_mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON or YAML file as a mapping; empty where it is absent, or cannot be read, which `problems` then says."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        problems.append(f"{path.name}: cannot be read ({reason}) and is left out")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name}: holds no mapping and is left out")
        return {}
    return content


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSONL file, and how many lines are none; a kill may cut the last one short."""
    rows: list[dict[str, Any]] = []
    wrong = 0
    if not path.is_file():
        return rows, wrong
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                wrong += bool(line.strip())
                continue
            if isinstance(row, dict):
                rows.append(row)
            else:
                wrong += 1
    return rows, wrong


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        known = float(value)
    except OverflowError:  # an integer of 400 digits
        return None
    return known if math.isfinite(known) else None


def mapping(value: Any) -> dict[str, Any]:
    """A mapping, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """A list, or an empty one for anything else."""
    return value if isinstance(value, list) else []
