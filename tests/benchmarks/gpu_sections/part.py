"""What a section is given, and where it leaves what it measures. Imports nothing heavy."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setup:
    """How a section is to run."""

    device: str
    dry_run: bool
    deadline: float

    @classmethod
    def of(cls, dry_run: bool, seconds: float) -> Setup:
        return cls("cpu" if dry_run else "cuda", dry_run, time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until the section is ended, less two to write."""
        return self.deadline - time.monotonic() - 2.0


class Part:
    """The results of one section; every change is in its file at once, so that a kill loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = time.monotonic()
        self.content: dict[str, Any] = {"status": "running", "summary": [], "results": {}}
        self._save()

    def put(self, name: str, value: Any) -> None:
        self.content["results"][name] = value
        self._save()

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Append a row to a table."""
        self.content["results"].setdefault(name, []).append(row)
        self._save()

    def say(self, line: str) -> None:
        """A line of the printed summary."""
        print(line, flush=True)
        self.content["summary"].append(line)
        self._save()

    def end(self, status: str, reason: str | None = None) -> None:
        self.content |= {"status": status} | ({"reason": reason} if reason else {})
        self._save()

    def _save(self) -> None:
        self.content["seconds"] = round(time.monotonic() - self.started, 1)
        write_json(self.path, self.content)


def write_json(path: Path, content: Any) -> None:
    """Put a whole file in place at once; NaN and infinities, which JSON has not, become text."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(_plain(content), indent=1))
    os.replace(new, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def read_part(path: Path) -> dict[str, Any]:
    """A section's part, or what stands for one that never began."""
    return json.loads(path.read_text()) if path.is_file() else {"status": "running", "summary": [], "results": {}}


def one_line(error: BaseException, length: int = 300) -> str:
    """An error in a row of a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:length]
