"""frames=true: the pictures that the policy could see, beside the tick log, written by a thread."""

from __future__ import annotations

import os
import tempfile
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

    error: str

    def put(self, tick: int, frames: Mapping[str, Frame]) -> None:
        """Take the pictures of a tick."""
        ...


class FrameKeeper:
    """Writes <folder>/<camera>/<tick>.jpg; `put` never waits, and drops pictures where the disk cannot follow.

    Attributes:
        dropped: Ticks without pictures.
        error: Why nothing is written there any more; empty while all is well.
        rescued: Where the pictures lie that did not fit on its disk; empty: there are none.
    """

    def __init__(self, folder: Path) -> None:
        from PIL import Image

        self._encode = Image.fromarray
        self._folder = folder
        self._queue: Queue[tuple[int, Mapping[str, Frame]] | None] = Queue(_ROOM)
        self._written: dict[str, float] = {}
        self.dropped = 0
        self.error = self.rescued = ""
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
            if self.error and not self.rescued:
                self.dropped += 1
                continue
            try:
                self._write(*item)
            except OSError as error:
                self._rescue(*item, error)

    def _rescue(self, tick: int, frames: Mapping[str, Frame], error: OSError) -> None:
        """Go on elsewhere with what the disk did not take."""
        if self.rescued:
            self.rescued, self.dropped = "", self.dropped + 1
            return
        self.error = f"{self._folder}: {error.strerror}: no more pictures"
        self._written.clear()
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="frames-"))
            self.rescued = str(self._folder)
            self._write(tick, frames)
        except OSError:
            self.rescued, self.dropped = "", self.dropped + 1

    def _write(self, tick: int, frames: Mapping[str, Frame]) -> None:
        for camera, frame in frames.items():
            if self._written.get(camera) == frame.time:
                continue
            self._written[camera] = frame.time
            folder = self._folder / camera
            folder.mkdir(parents=True, exist_ok=True)
            half = folder / f"{tick}.part"  # a process that is killed leaves no half picture that looks like one
            self._encode(frame.image).save(half, "JPEG", quality=_QUALITY)
            os.replace(half, folder / f"{tick}.jpg")
