"""A hand in a thread of its own: whatever it does, the arm does not wait for it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from rlspec.native_threads import leave

PERIOD = 0.05  # seconds between two looks at the hand


class GripperThread(ABC):
    """Keeps the newest order for the hand. A subclass sets `closure` and starts the thread, which calls `work`.

    Attributes:
        closure: measured, 0 open to 1 closed.
        error: what is wrong with the hand, in words; empty: nothing.
    """

    closure: float
    error: str = ""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._order: tuple[float] | None = None  # told apart by identity: the same closure again is a new order
        self._done = False
        self._thread = threading.Thread(target=self._run, name="gripper", daemon=True)
        self._thread.start()

    def grip(self, closure: float) -> None:
        """Open (0) to close (1); returns at once, and the newest order counts.

        Each is given to the hand: whether one is worth giving is decided in `rlspec.deploy.arm.gripper`.
        """
        self._order = (min(max(float(closure), 0.0), 1.0),)
        self._wanted.set()

    def drop(self) -> None:
        """Forget an order that was not sent yet."""
        self._order = None

    def close(self, patience: float = 0.5) -> None:
        """End the thread; one that hangs in a blocked hand is left behind, and the hand keeps what it holds."""
        self._done = True
        self._wanted.set()
        leave(self._thread, patience)

    @abstractmethod
    def work(self, order: tuple[float] | None) -> None:
        """Look at the hand once, and give it the newest order if it is another one; raises nothing."""

    def _run(self) -> None:
        while not self._done:
            self._wanted.wait(PERIOD)
            self._wanted.clear()
            try:
                self.work(self._order)
            except Exception as error:  # were the thread to end, the hand would be silent and look well
                self.error = f"gripper: {type(error).__name__}: {error}"
