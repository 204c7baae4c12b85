"""Ctrl-C and SIGTERM: finish the step, save, leave. A second signal, a second later or more, leaves at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from rlspec.errors import ONE_SIGNAL


class Interrupt:
    """Remembers a signal until the step in progress is over."""

    def __init__(self) -> None:
        self.requested = False
        self.training = False
        self._first = 0.0  # when the signal came

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take over SIGINT and SIGTERM in the main thread while the body runs."""
        previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether to save and stop after the step in progress: on all processes after the same one."""
        self.requested = on_any_process(self.requested)
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = monotonic()
        if self.requested and now - self._first < ONE_SIGNAL:
            return
        if self.requested or not self.training:
            raise KeyboardInterrupt  # outside of training there is nothing to save
        self.requested, self._first = True, now
        # Not through the display: the signal may have come while it was writing.
        os.write(2, b"\ninterrupted: finishing this step, then saving (again to leave at once)\n")


def on_any_process(flag: bool) -> bool:
    """Whether it is set on one of the processes, which all have to ask."""
    process = PartialState()
    if process.num_processes == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=process.device), reduction="sum") > 0)
