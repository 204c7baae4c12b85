"""Real time for the loop."""

from __future__ import annotations

import time

SPIN = 0.001  # seconds before the end of a sleep in which the thread asks for the time: wake-ups come late


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
