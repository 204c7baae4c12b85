"""No robot: carries commands out ideally, stops as a Franka would, and shows test pictures."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from rlspec.contract.actions import DROID_HZ, EXECUTION_LAWS
from rlspec.deploy.arm.interfaces import Array, Command, Frame, Mode, RobotState
from rlspec.deploy.arm.kinematics import HOME
from rlspec.deploy.arm.robot_limits import RobotLimits
from rlspec.deploy.clocks import Clock, MonotonicClock
from rlspec.errors import RobotError


class DryRunRobot:
    """Moves to each target at even speed within one period of control; honours `expires`.

    Without a further command, and after a stop or a reflex, it slows down by the arm's own acceleration.
    """

    simulated = True
    laws = tuple(EXECUTION_LAWS)

    def __init__(
        self,
        limits: RobotLimits,
        cameras: Mapping[str, tuple[int, int, float]],
        clock: Clock | None = None,
        *,
        name: str = "dry_run",
    ) -> None:
        """Make a robot at rest.

        Args:
            limits: Of the model that it stands for.
            cameras: Name -> height, width, pictures per second.
            clock: Real time by default.
            name: Of the robot that it stands for.
        """
        self.name = name
        self.clock: Clock = clock or MonotonicClock()
        self.limits = limits
        self._cameras = dict(cameras)
        self._lock = threading.Lock()
        self._joints: Array = HOME.copy()
        self._velocities: Array = np.zeros(7)
        self._closure = 0.0
        self._until = self._expires = 0.0  # until when it moves at even speed; when the command is void
        self._period = 1 / DROID_HZ
        self._mode: Mode = "disconnected"
        self._read_only = False
        self._time = self.clock.now()
        self._noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)

    @property
    def camera_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(height, width, 3) of each camera."""
        return {camera: (height, width, 3) for camera, (height, width, _) in self._cameras.items()}

    def connect(self, law: str, control_hz: float, *, read_only: bool = False) -> RobotLimits:
        """See `Robot`."""
        if law not in self.laws:
            raise RobotError(f"law={law}: robot={self.name} knows {', '.join(self.laws)}")
        self._period, self._mode, self._read_only, self._time = 1 / control_hz, "idle", read_only, self.clock.now()
        return self.limits

    def read(self) -> RobotState:
        """See `Robot`."""
        with self._lock:
            self._advance()
            error = "a reflex, made by a test" if self._mode == "reflex" else ""
            return RobotState(
                self._time, self._joints.copy(), self._velocities.copy(), self._closure, self._mode, error
            )

    def frames(self) -> dict[str, Frame]:
        """Pictures of noise that turns with the first joint."""
        now = self.clock.now()
        return {
            camera: Frame(np.floor(now * fps) / fps, self._picture(height, width))
            for camera, (height, width, fps) in self._cameras.items()
        }

    def _picture(self, height: int, width: int) -> np.ndarray:
        shift = int(100 * self._joints[0]) % 128
        return np.resize(self._noise[shift:, shift:], (height, width, 3))

    def command(self, command: Command) -> None:
        """See `Robot`."""
        if self._read_only or self._mode == "disconnected":
            raise RobotError(f"robot={self.name}: connected to read only, or not at all")
        with self._lock:
            self._advance()
            if self._mode == "reflex":
                raise RobotError(f"robot={self.name}: in reflex; recover first")
            self._mode, self._velocities = "moving", (command.joints - self._joints) / self._period
            self._expires = self._time + command.expires
            self._until = self._time + min(self._period, command.expires)

    def grip(self, closure: float) -> None:
        """See `Robot`."""
        self._closure = closure

    def stop(self) -> None:
        """See `Robot`."""
        with self._lock:
            self._advance()
            self._until = self._time
            if self._mode == "moving":
                self._mode = "stopped"

    def reflex(self) -> None:
        """Do what a Franka does after a collision (for tests)."""
        self.stop()
        self._mode = "reflex"

    def recover(self) -> bool:
        """See `Robot`."""
        self._mode = "idle"
        return True

    def close(self) -> None:
        """See `Robot`."""
        self.stop()
        self._mode = "disconnected"

    def _advance(self) -> None:
        """Move up to now: at even speed for a period, then slowing down."""
        now = self.clock.now()
        driven = min(now, self._until) - self._time
        if driven > 0:
            self._joints = self._joints + self._velocities * driven
            self._time += driven
        if now > self._time:
            self._brake(now - self._time)
        if self._mode == "moving" and now >= self._expires:
            self._mode = "stopped"
        self._time = now

    def _brake(self, duration: float) -> None:
        """Even deceleration, joint by joint."""
        time = np.minimum(duration, np.abs(self._velocities) / self.limits.acceleration)
        slowing = np.sign(self._velocities) * self.limits.acceleration
        self._joints = self._joints + self._velocities * time - 0.5 * slowing * time**2
        rest = time < duration - 1e-12
        self._velocities = np.where(rest, 0.0, self._velocities - slowing * time)
