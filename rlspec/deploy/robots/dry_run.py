"""No robot: carries commands out ideally, stops as a Franka would, and shows test pictures."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlspec.contract.actions import ACTION_SPACES, DROID_HZ, EXECUTION_LAWS, JOINT_POSITION
from rlspec.contract.features import EXTERIOR_1, WRIST
from rlspec.contract.pictures import DROID_SIZE
from rlspec.deploy.arm.interfaces import Array, Command, Frame, Mode, Robot, RobotState
from rlspec.deploy.arm.kinematics import HOME
from rlspec.deploy.arm.robot_limits import LIMITS, RobotLimits
from rlspec.deploy.clocks import Clock, MonotonicClock
from rlspec.deploy.policy.sources import RobotPolicy, WavePolicy
from rlspec.deploy.robots.options import RobotDescription
from rlspec.errors import RobotError

_SIZE = re.compile(r"synthetic(?:@(\d+)x(\d+)x(\d+))?")


class DryRunRobot(Robot):
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


def make(settings: RobotDescription, clock: Clock | None = None) -> DryRunRobot:
    """A robot without a connection, that stands for the one of the settings."""
    named = settings.cameras or dict.fromkeys((EXTERIOR_1, WRIST), "synthetic")
    cameras = {}
    for camera, source in named.items():
        size = _SIZE.fullmatch(source)
        width, height, rate = map(int, size.groups()) if size and size[1] else (*reversed(DROID_SIZE), 30)
        cameras[camera] = (height, width, float(rate))
    return DryRunRobot(LIMITS[settings.model], cameras, clock, name=settings.name)


def waves(robot: DryRunRobot, *, action_space: str | None, rate: float | None, law: str, **_: Any) -> RobotPolicy:
    """Slow waves of all joints."""
    space = action_space or JOINT_POSITION
    return WavePolicy(robot.clock, space, rate or ACTION_SPACES[space].control_hz, law=law)
