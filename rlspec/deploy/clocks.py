"""Time for the loop, and real time."""

from __future__ import annotations

import time
from typing import Protocol

SPIN = 0.001  # seconds before the end of a sleep in which the thread asks for the time: wake-ups come late


class Clock(Protocol):
    """Time as the deployment knows it: real, or that of a simulation which advances while one sleeps."""

    def now(self) -> float:
        """Seconds; never goes backwards, whatever the wall clock does."""
        ...

    def sleep_until(self, when: float) -> None:
        """Return at `when`, or at once where that is past."""
        ...


class MonotonicClock:
    """Seconds since some start, untouched by jumps of the wall clock; the default `Clock`."""

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def sleep_until(self, when: float) -> None:
        """Return at `when`: sleeps, and spins through the last millisecond."""
        while (remaining := when - time.monotonic()) > 0:
            if remaining > SPIN:
                time.sleep(remaining - SPIN)
