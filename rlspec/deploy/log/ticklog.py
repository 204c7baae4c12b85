"""The tick log: one JSON object per line, written by a thread as it comes, whole lines only, also on a full disk."""

from __future__ import annotations

import json
import math
import os
import tempfile
import threading
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from rlspec.errors import ConfigError

_DIGITS = 9  # of numbers: 1e-9 rad


class TickLog:
    """Writes lines; `put` never waits. What a killed process had written is readable up to its last line.

    Attributes:
        error: One line that says why nothing is written any more; empty while all is well.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Create the file and write its first line.

        Raises:
            ConfigError: It exists, or its folder cannot be written.
        """
        self.path = path
        self.error = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError:
            raise ConfigError(f"{path} exists: choose another folder with out=DIR") from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; choose another folder with out=DIR") from None
        self._good = 0  # bytes of whole lines in the file
        self._unwritten: list[bytes] = []
        self._queue: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tick log", daemon=True)
        self.put({"header": header})
        self._thread.start()

    def put(self, line: dict[str, Any]) -> None:
        """Queue a line; arrays and numbers of numpy are fine, and must not be changed afterwards."""
        self._queue.put(line)

    def close(self, footer: dict[str, Any]) -> str:
        """Write what is left and the last line, and have it on the disk; returns "" or where the rest of it lies."""
        self.put({"footer": footer})
        self._queue.put(None)
        self._thread.join(timeout=30.0)
        rescued = ""
        if self._unwritten and not self._write([]):
            rescued = self._rescue()
        os.close(self._file)
        return rescued

    def _run(self) -> None:
        ended = False
        while not ended:
            lines = [self._queue.get()]
            try:
                while True:
                    lines.append(self._queue.get_nowait())
            except Empty:
                pass
            ended = lines[-1] is None
            try:
                self._write([_encode(line) for line in lines if line is not None])
            except Exception as error:  # without its log the robot stops, whatever the reason
                self.error = self.error or f"{self.path}: {error}: the log cannot be written, so the robot stops"
        if not self._unwritten:
            os.fsync(self._file)

    def _write(self, lines: list[bytes]) -> bool:
        """Append lines after those that could not be written before."""
        self._unwritten += lines
        text = b"".join(self._unwritten)
        try:
            written = 0
            while written < len(text):
                written += os.write(self._file, text[written:])
        except OSError as error:
            self.error = self.error or f"{self.path}: {error.strerror}: the log cannot be written, so the robot stops"
            os.ftruncate(self._file, self._good)  # no half line
            return False
        self._good += len(text)
        self._unwritten.clear()
        return True

    def _rescue(self) -> str:
        """Put the lines that the disk did not take elsewhere."""
        with tempfile.NamedTemporaryFile("wb", prefix="ticks-", suffix=".jsonl", delete=False) as file:
            file.write(b"".join(self._unwritten))
        return file.name


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(plain(line), allow_nan=False, separators=(",", ":"), default=repr).encode() + b"\n"


def plain(value: Any) -> Any:
    """The same for JSON: lists for arrays, null for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return value
