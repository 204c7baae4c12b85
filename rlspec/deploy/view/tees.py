"""What the loop gives to its log and its pictures' keeper goes to the page as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rlspec.deploy.arm.interfaces import Frame
from rlspec.deploy.log.frames import FrameKeeper
from rlspec.deploy.log.ticklog import TickLog


class Watched(Protocol):
    """Takes what is newest; never waits."""

    def put(self, line: Mapping[str, Any]) -> None:
        """Of a tick."""
        ...

    def put_frames(self, frames: Mapping[str, Frame]) -> None:
        """Of a tick."""
        ...


class WatchedLog:
    """A log, and who watches."""

    def __init__(self, log: TickLog, view: Watched) -> None:
        self._log, self._view = log, view
        self.error = ""

    def put(self, line: dict[str, Any]) -> None:
        """Take a line."""
        self._log.put(line)
        self.error = self._log.error
        self._view.put(line)


class WatchedFrames:
    """A keeper of pictures, if there is one, and who watches."""

    def __init__(self, keeper: FrameKeeper | None, view: Watched) -> None:
        self._keeper, self._view = keeper, view
        self.error = ""

    def put(self, tick: int, frames: Mapping[str, Frame]) -> None:
        """Take the pictures of a tick."""
        if self._keeper is not None:
            self._keeper.put(tick, frames)
            self.error = self._keeper.error
        self._view.put_frames(frames)
