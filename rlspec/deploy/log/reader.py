"""Reads a tick log back: whole, or what a killed process left of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.errors import DataError

Array = NDArray[np.float64]

LOG_NAME = "ticks.jsonl"
_MOST_PROBLEMS = 10


@dataclass(frozen=True)
class RunLog:
    """One deployment.

    Attributes:
        path: Of the log.
        header: Robot, mode, action space, law, rate, limits, the policy's metadata, versions.
        ticks: One mapping per tick of the loop, in order.
        footer: The outcome; empty where the process did not come to write it.
        problems: Lines that could not be used, each with its number.
    """

    path: Path
    header: dict[str, Any]
    ticks: list[dict[str, Any]]
    footer: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Of the run; pictures lie in its `frames`."""
        return self.path.parent

    @property
    def control_hz(self) -> float:
        """Ticks per second."""
        rate = self.header.get("control_hz")
        if not isinstance(rate, int | float) or not rate > 0:
            raise DataError(f"{self.path}: its header has no control_hz; the log cannot be used")
        return float(rate)

    @property
    def robot(self) -> str:
        """The robot's name."""
        robot = self.header.get("robot")
        return str(robot.get("name", "?") if isinstance(robot, dict) else robot or "?")

    @property
    def action_names(self) -> list[str]:
        """Of the numbers in `requested`."""
        from rlspec.contract.actions import ACTION_SPACES

        space = ACTION_SPACES.get(str(self.header.get("action_space")))
        size = next((len(tick["requested"]) for tick in self.ticks if tick.get("requested")), 8)
        return list(space.names) if space and space.size == size else [f"action{i}" for i in range(size)]

    def column(self, *keys: str, size: int = 0) -> Array:
        """Numbers of all ticks, (T,) or (T, size); NaN where a tick has none.

        Args:
            keys: Path to the value in a tick.
            size: Of a list; 0: the value is a number.
        """
        empty = [np.nan] * size if size else np.nan
        values = [_dig(tick, keys) for tick in self.ticks]
        rows = [empty if value is None or (size and len(value) != size) else value for value in values]
        return np.array(rows, dtype=np.float64).reshape((len(rows), size) if size else (len(rows),))

    @property
    def time(self) -> Array:
        """Seconds since the first tick, (T,)."""
        time = self.column("time")
        return time - time[0] if len(time) else time


def _dig(tick: dict[str, Any], keys: Sequence[str]) -> Any:
    value: Any = tick
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def find_log(path: Path) -> Path:
    """The log in a run's folder, or the file itself.

    Raises:
        DataError: There is none.
    """
    log = path / LOG_NAME if path.is_dir() else path
    if not log.is_file():
        raise DataError(f"{path}: no {LOG_NAME}; give the folder of a deployment (out=DIR)")
    return log


def read_log(path: Path) -> RunLog:
    """Read a log; a broken line is left out and reported, as is a missing footer.

    Args:
        path: Folder of the run, or its ticks.jsonl.

    Raises:
        DataError: There is no log, or it has no header or no tick.
    """
    log = find_log(path)
    header: dict[str, Any] = {}
    footer: dict[str, Any] = {}
    ticks: list[dict[str, Any]] = []
    problems: list[str] = []
    with log.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = _parse(raw)
            if line is None:
                cut = "was cut off while it was written" if not raw.endswith(b"\n") else "is no JSON object"
                problems.append(f"line {number} {cut}; left out")
            elif "header" in line:
                header = dict(line["header"])
            elif "footer" in line:
                footer = dict(line["footer"])
            elif "tick" in line:
                ticks.append(line)
            else:
                problems.append(f"line {number} is neither header, tick nor footer; left out")
    if not header:
        raise DataError(f"{log}: no header; it is no log of a deployment")
    if not ticks:
        raise DataError(f"{log}: no ticks; the deployment ended before its first one")
    if not footer:
        problems.append("no last line with the outcome: the process was killed, or is still running")
    return RunLog(log, header, ticks, footer, _few(problems))


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return line if isinstance(line, dict) else None


def _few(problems: list[str]) -> tuple[str, ...]:
    more = len(problems) - _MOST_PROBLEMS
    return tuple(problems) if more <= 0 else (*problems[:_MOST_PROBLEMS], f"and {more} more")
