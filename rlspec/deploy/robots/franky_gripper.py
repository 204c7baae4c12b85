"""The Franka hand in a thread of its own: whatever it does, the arm does not wait for it."""

from __future__ import annotations

import threading
import time
from typing import Any

SPEED = 0.1  # m/s
FORCE = 20.0  # N of a grasp
_GRASP = 0.9  # closure above which the hand closes with force instead of moving to a width
_PERIOD = 0.05  # seconds between two looks at the hand


class FrankyGripperLane:
    """Sends the newest closure to the hand and knows the measured one.

    Args:
        gripper: franky.Gripper.
    """

    def __init__(self, gripper: Any) -> None:
        self._gripper = gripper
        self._width = float(gripper.max_width) or 0.08
        self.closure = self._measured()
        self.error = ""
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
        """End the thread; one that hangs in a blocked hand is left behind."""
        self._done = True
        self._wanted.set()
        self._thread.join(patience)

    def _measured(self) -> float:
        return min(max(1.0 - float(self._gripper.width) / self._width, 0.0), 1.0)

    def _run(self) -> None:
        sent: tuple[float] | None = None
        pending: Any = None
        while not self._done:
            self._wanted.wait(_PERIOD)
            self._wanted.clear()
            try:
                self.closure = self._measured()
                order = self._order
                if order is not None and order is not sent:
                    if pending is not None and not pending.wait(0.0):
                        self._gripper.stop()
                    pending, sent = self._start(*order), order
                self.error = ""
            except Exception as error:  # franky's exceptions have no common base; the arm goes on without its hand
                self.error = f"gripper: {error}"
                pending, sent = None, None
                time.sleep(_PERIOD)

    def _start(self, closure: float) -> Any:
        if closure < _GRASP:
            return self._gripper.move_async(self._width * (1.0 - closure), SPEED)
        # Any width counts as a grasp: what the hand meets on its way is what it shall hold.
        return self._gripper.grasp_async(0.0, SPEED, FORCE, self._width, self._width)
