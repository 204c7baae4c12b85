"""frames=true: the pictures that the policy could see, beside the tick log, written by a thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from queue import Full, Queue
from typing import Protocol

from rlspec.deploy.arm.interfaces import Frame

_ROOM = 64  # ticks that may wait for the disk
_QUALITY = 90


class FrameSink(Protocol):
    """Where pictures go; `put` never waits."""

    def put(self, tick: int, frames: Mapping[str, Frame]) -> None:
        """Take the pictures of a tick."""
        ...


class FrameKeeper:
    """Writes <folder>/<camera>/<tick>.jpg; `put` never waits, and drops pictures where the disk cannot follow.

    Attributes:
        dropped: Ticks without pictures.
        error: Why nothing is written any more; empty while all is well.
    """

    def __init__(self, folder: Path) -> None:
        from PIL import Image

        self._encode = Image.fromarray
        self._folder = folder
        self._queue: Queue[tuple[int, Mapping[str, Frame]] | None] = Queue(_ROOM)
        self._written: dict[str, float] = {}
        self.dropped = 0
        self.error = ""
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
        self._thread.start()

    def put(self, tick: int, frames: Mapping[str, Frame]) -> None:
        """Keep the pictures of a tick; one that did not change since the last tick is not written again."""
        try:
            self._queue.put_nowait((tick, dict(frames)))
        except Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits."""
        self._queue.put(None)
        self._thread.join(timeout=30.0)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.error:
                self.dropped += 1
                continue
            try:
                self._write(*item)
            except OSError as error:
                self.error = f"{self._folder}: {error.strerror}: no more pictures"

    def _write(self, tick: int, frames: Mapping[str, Frame]) -> None:
        for camera, frame in frames.items():
            if self._written.get(camera) == frame.time:
                continue
            self._written[camera] = frame.time
            folder = self._folder / camera
            folder.mkdir(parents=True, exist_ok=True)
            self._encode(frame.image).save(folder / f"{tick}.jpg", quality=_QUALITY)
