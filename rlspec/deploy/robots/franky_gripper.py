"""The Franka hand."""

from __future__ import annotations

import ctypes
import time
from typing import Any

from rlspec.deploy.robots.gripper_thread import PERIOD, GripperThread

SPEED = 0.1  # m/s
FORCE = 20.0  # N of a grasp
_LAST = 1.0  # seconds that the last order is given to end
_GRASP = 0.9  # closure above which the hand closes with force instead of moving to a width


class FrankyGripperLane(GripperThread):
    """Sends the newest closure to the hand and knows the measured one.

    Args:
        gripper: franky.Gripper.
    """

    def __init__(self, gripper: Any) -> None:
        self._gripper = gripper
        self._width = float(gripper.max_width) or 0.08
        self.closure = self._measured()
        self._sent: tuple[float] | None = None
        self._pending: Any = None
        super().__init__()

    def _measured(self) -> float:
        return min(max(1.0 - float(self._gripper.width) / self._width, 0.0), 1.0)

    def work(self, order: tuple[float] | None) -> None:
        """As the parent; an order under way is broken off for a newer one."""
        try:
            self.closure = self._measured()
            if order is not None and order is not self._sent and not self._done:
                if self._pending is not None and not self._pending.wait(0.0):
                    self._gripper.stop()
                self._pending, self._sent = self._start(*order), order
                if self._done:  # while it was given: `close` did not see it
                    _keep(self._pending)
            self.error = ""
        except Exception as error:  # franky's exceptions have no common base; the arm goes on without its hand
            self.error = f"gripper: {error}"
            self._pending, self._sent = None, None
            time.sleep(PERIOD)

    def close(self, patience: float = 0.5) -> None:
        """As the parent; an order under way is given a second to end, and goes on by itself after that."""
        super().close(patience)
        if self._thread.is_alive() or (self._pending is not None and not self._pending.wait(_LAST)):
            _keep(self._gripper)
            _keep(self._pending)

    def _start(self, closure: float) -> Any:
        if closure < _GRASP:
            return self._gripper.move_async(self._width * (1.0 - closure), SPEED)
        # Any width counts as a grasp: what the hand meets on its way is what it shall hold.
        return self._gripper.grasp_async(0.0, SPEED, FORCE, self._width, self._width)


def _keep(thing: Any) -> None:
    """Never free it: the driver's own thread uses the hand until its order ends, and the process dies if it is gone."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
