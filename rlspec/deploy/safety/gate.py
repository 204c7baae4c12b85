"""The one door to the robot's motors: closed for good by an e-stop, and never open in shadow mode."""

from __future__ import annotations

import threading

from rlspec.deploy.arm.interfaces import Command, Robot
from rlspec.errors import RobotError

_PATIENCE = 0.05  # seconds that a stop waits for a command on its way


class Gate:
    """Passes commands on until it is tripped. Methods may be called from any thread."""

    def __init__(self, robot: Robot, *, muted: bool = False) -> None:
        """Open the door.

        Args:
            robot: Connected.
            muted: Nothing passes, stops neither (shadow mode: somebody else moves the robot).
        """
        self._robot, self._muted = robot, muted
        self._lock = threading.Lock()
        self.tripped = ""  # why; set once
        self.problem = ""  # of the last stop that the robot did not take

    def latch(self, reason: str) -> None:
        """Let nothing through from now on; does not stop the robot yet. Safe in a signal handler."""
        self.tripped = self.tripped or reason

    def send(self, command: Command) -> bool:
        """Pass a command on; False: the door is closed.

        Raises:
            RobotError: The robot did not take it.
        """
        with self._lock:
            if self.tripped or self._muted:
                return False
            self._robot.command(command)
        if self.tripped:  # closed meanwhile: whatever came first, a stop comes last
            self.halt()
            return False
        return True

    def grip(self, closure: float) -> bool:
        """Pass a closure on; False: the door is closed. May block where the gripper does."""
        if self.tripped or self._muted:
            return False
        self._robot.grip(closure)
        return True

    def halt(self) -> None:
        """Stop the robot; it may move again afterwards, unless the door is closed."""
        if self._muted:
            return
        held = self._lock.acquire(timeout=_PATIENCE)
        try:
            self._robot.stop()
            if self.tripped and (drop := getattr(self._robot, "drop_grip", None)) is not None:
                drop()
            self.problem = ""
        except RobotError as error:
            self.problem = str(error)  # its last command expires; the loop logs this
        finally:
            if held:
                self._lock.release()

    def trip(self, reason: str) -> None:
        """Close for good and stop the robot."""
        self.latch(reason)
        self.halt()
