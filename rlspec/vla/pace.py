"""How fast things are done, and how long the rest takes."""

from __future__ import annotations

from collections.abc import Callable

ENOUGH = 5  # done before a time left is more than a guess


class Pace:
    """Counts from the first that is done: until then workers start and import what they need."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.done = 0
        self._first = self._newest = 0.0

    def count(self) -> None:
        """One more is done."""
        self.done += 1
        self._newest = self._clock()
        if self.done == 1:
            self._first = self._newest

    @property
    def speed(self) -> float | None:
        """Per second; None: nobody can say yet."""
        passed = self._newest - self._first
        return (self.done - 1) / passed if self.done > ENOUGH and passed > 0 else None

    def left(self, total: int) -> float | None:
        """Seconds until `total` are done; None: nobody can say yet."""
        return None if self.speed is None else (total - self.done) / self.speed
