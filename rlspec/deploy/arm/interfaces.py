"""What the parts of a deployment agree on: clock, robot, command."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rlspec.deploy.arm.robot_limits import RobotLimits
from rlspec.deploy.clocks import Clock

Array = NDArray[np.float64]
Mode = Literal["idle", "moving", "stopped", "user_stopped", "reflex", "disconnected"]


@dataclass(frozen=True)
class RobotState:
    """What the robot measured.

    Attributes:
        time: Of the measurement, seconds on the deployment's clock.
        joints: (7,) radians.
        velocities: (7,) rad/s.
        closure: Of the gripper, 0 open to 1 closed.
        mode: `reflex`: the robot stopped by itself and wants `recover`; `user_stopped`: somebody presses its stop
            button or guides it, and must not be overruled.
        error: The robot's words for what went wrong; empty where nothing did.
    """

    time: float
    joints: Array
    velocities: Array
    closure: float
    mode: Mode = "idle"
    error: str = ""


@dataclass(frozen=True)
class Frame:
    """One picture of a camera: time on the deployment's clock in seconds, uint8 (height, width, 3) RGB."""

    time: float
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Command:
    """What the safety filter lets through.

    Attributes:
        joints: Target, (7,) radians.
        velocities: (7,) rad/s with which the target moves; what the law `joint_velocity` sends.
        expires: Seconds after which the robot stops by itself, whatever happened to the sender.
    """

    joints: Array
    velocities: Array
    expires: float


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        actions: (horizon, numbers of an action), finite.
        server_ms: What inference took by the server's word; None where it says nothing.
        round_trip_ms: From sending the observation to having the actions.
    """

    actions: NDArray[np.float64]
    server_ms: float | None
    round_trip_ms: float


class Robot(Protocol):
    """A Franka arm with gripper and cameras; drivers derive from it.

    No method blocks for longer than a few milliseconds after `connect`.

    Every method but `connect` may be called from any thread. Failures of the connection raise `RobotError`.
    """

    name: str  # as it is shown, and typed to confirm
    simulated: bool
    laws: tuple[str, ...]  # keys of rlspec.contract.actions.EXECUTION_LAWS that it can run
    clock: Clock
    real_time: bool = True  # False: time stands still but while the loop sleeps, so nothing may run beside it

    @property
    def camera_shapes(self) -> Mapping[str, tuple[int, int, int]]:
        """Camera -> (height, width, 3), where they are known before `connect`; else the settings name the cameras."""
        return {}

    @property
    def instruction(self) -> str:
        """What is to be done, in words, where the robot knows; the default of `prompt=`."""
        return ""

    @property
    def success(self) -> bool:
        """Whether the task is done, where the robot knows: then the run ends."""
        return False

    @property
    def grip_problem(self) -> str:
        """What is wrong with the hand, whether it is asked for anything or not; empty: nothing."""
        return ""

    @property
    def treatment(self) -> tuple[str, ...]:
        """What whoever starts it must see of the connected robot's load, tool and thresholds, a line each."""
        return ()

    @abstractmethod
    def connect(self, law: str, control_hz: float, *, read_only: bool = False) -> RobotLimits:
        """Connect and be ready to move by a law; returns the limits that the connected robot obeys.

        Raises:
            RobotError: It is absent, locked, of another model or version; the message names the remedy.
        """
        ...

    @abstractmethod
    def read(self) -> RobotState:
        """Return the newest measured state."""
        ...

    @abstractmethod
    def frames(self) -> dict[str, Frame]:
        """Return the newest picture of each camera; a camera that has not delivered yet is absent."""
        ...

    @abstractmethod
    def command(self, command: Command) -> None:
        """Move towards a target; replaces the previous one."""
        ...

    @abstractmethod
    def grip(self, closure: float) -> None:
        """Open (0) to close (1) the hand, without waiting."""
        ...

    @abstractmethod
    def stop(self) -> None:
        """Stop in a controlled way. Idempotent."""
        ...

    @abstractmethod
    def recover(self) -> bool:
        """Acknowledge a reflex or an error; True when the robot can move again."""
        ...

    @abstractmethod
    def close(self) -> None:
        """Stop, disconnect and free what `connect` took. Idempotent."""
        ...
