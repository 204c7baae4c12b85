"""A human with a device: when they are in charge, and which joint target they then ask for.

What they ask for goes the same way as a policy's actions: through the safety filter. A device moves the arm relative to
where both were when the human took over (a clutch), so that no takeover is a jump, wherever a leader arm lies; one that
lies as the arm does is followed as it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rlspec.config.schema import Section
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import forward, rotation_matrix, solve
from rlspec.deploy.arm.robot_limits import RobotLimits
from rlspec.deploy.arm.targets import Target
from rlspec.deploy.teleop.readings import DeviceReading
from rlspec.deploy.workers import Job, Worker
from rlspec.errors import RobotError

Array = NDArray[np.float64]

_GRIPS = 0.25  # of a leader's closure: less than that since the takeover is no wish
_ALIGNED = 0.1  # radians within which a leader arm lies as the arm does, and is followed as it lies
_HOMING = 0.01  # share of the way home of the elbow per tick: whoever pushes the hand must not be surprised by it
_REACH = 0.1  # metres from where the hand was sent to where a tracked device may pull it in one tick


class TakeoverSettings(Section):
    """When a human is in charge, and how fast keys and sticks move the hand.

    Attributes:
        speed: Of the hand, m/s, for a key or a stick that is fully pressed.
        turn: Likewise, rad/s.
        moved: Radians that a leader arm must be moved for a takeover.
        hand_back: Seconds after the last motion of a device without a dead man's button; with one, at once.
        timeout: Seconds without an answer after which the device is a fault, where nobody else is in charge.
    """

    speed: float = Field(0.15, gt=0, le=1)
    turn: float = Field(0.8, gt=0, le=3)
    moved: float = Field(0.03, gt=0, le=0.5)
    hand_back: float = Field(0.5, gt=0)
    timeout: float = Field(2.0, gt=0)


class HandDevice(Protocol):
    """A teleoperator that is connected."""

    name: str

    def read(self) -> DeviceReading:
        """Look at it; may block.

        Raises:
            RobotError: It does not answer, or moves no arm like this one.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@dataclass(frozen=True)
class _Clutch:
    """What was where at the takeover: the device, the arm's target, and the hand that belongs to it."""

    reading: DeviceReading
    joints: Array
    position: Array
    rotation: Array


class Operator:
    """Reads the device in the background and says each tick what the human wants.

    Args:
        device: Connected; None: somebody else reads it and calls `hear`.
        worker: In which it is read.
        limits: Joint range of inverse kinematics.
        control_hz: Ticks per second.
        settings: See there.
        alone: No policy runs: the human is in charge all the time, and the arm stays where they leave it.

    Attributes:
        verdict: What the human has said of the episode; empty: nothing yet.
        error: Why the device has not answered; empty: it has.
    """

    def __init__(
        self,
        device: HandDevice | None,
        worker: Worker,
        limits: RobotLimits,
        control_hz: float,
        settings: TakeoverSettings,
        *,
        alone: bool,
    ) -> None:
        self.alone, self.verdict, self.error = alone, "", ""
        self._device, self._worker, self._settings = device, worker, settings
        self._low, self._high, self._period = limits.low, limits.high, 1.0 / control_hz
        self._job: Job | None = None
        self._reading: DeviceReading | None = None
        self._heard: float | None = None  # when it last answered
        self._moved = -float("inf")
        self._rest: Array | None = None  # of a leader arm: where it was when it last moved
        self.let_go()

    def let_go(self) -> None:
        """The arm stopped, or another is in charge: the next wish begins where the arm is then."""
        self._clutch: _Clutch | None = None
        self._closure: float | None = None
        self._squeezed = False  # a leader's hand was moved since the takeover

    @property
    def holds(self) -> bool:
        """Whether the arm followed them in the last tick."""
        return self._clutch is not None

    def listen(self, now: float) -> None:
        """Take what the device has said and ask it again; once per tick, whoever is in charge."""
        self._heard = now if self._heard is None else self._heard
        if self._job is not None and self._job.done():
            job, self._job = self._job, None
            try:
                self.hear(job.result(), now)
            except RobotError as error:
                self.error, self._reading = str(error), None
        if self._job is None and self._device is not None:
            self._job = self._worker.submit(self._device.read)

    def problem(self, now: float) -> str:
        """Why nobody is in charge, in words; empty: somebody is."""
        if not self.alone or self._heard is None or now - self._heard <= self._settings.timeout:
            return ""
        return self.error or f"teleop={self._device.name if self._device else ''}: it does not answer"

    def hear(self, reading: DeviceReading, now: float) -> None:
        """Take a look at the device; `listen` does by itself."""
        self._reading, self._heard, self.error = reading, now, ""
        self.verdict = self.verdict or reading.verdict
        if reading.joints is not None:
            if self._rest is None:
                self._rest = reading.joints
            elif float(np.abs(reading.joints - self._rest).max()) > self._settings.moved:
                self._rest, self._moved = reading.joints, now
        elif reading.grip is not None or (reading.twist is not None and np.any(reading.twist)):
            self._moved = now

    def in_charge(self, now: float) -> bool:
        """Whether the human is: by the device's button, or because they move it."""
        reading, heard = self._reading, self._heard
        if reading is None or heard is None or now - heard > self._settings.hand_back:
            return False
        if self.alone or reading.holds:
            return True
        return reading.holds is None and now - self._moved <= self._settings.hand_back

    def target(self, state: RobotState, held: Array, closure: float) -> Target:
        """What the human wants now, who is in charge.

        Args:
            state: Measured.
            held: Where the arm was sent last, (7,) radians.
            closure: That the hand goes for.
        """
        reading = self._reading
        assert reading is not None, "in_charge has looked"
        if self._clutch is None:
            self._clutch = _Clutch(reading, held, *forward(held))
        self._closure = self._wanted_closure(reading, closure if self._closure is None else self._closure)
        return Target(self._joints(reading, self._clutch, held), self._closure)

    def _joints(self, reading: DeviceReading, clutch: _Clutch, held: Array) -> Array:
        if reading.joints is not None and clutch.reading.joints is not None:
            apart = clutch.joints - clutch.reading.joints
            return reading.joints + (apart if float(np.abs(apart).max()) > _ALIGNED else 0.0)
        if reading.twist is not None and np.any(reading.twist):
            return self._pushed(reading.twist, held)
        if reading.place is not None and reading.holds:
            return self._pulled(reading, clutch, held)
        if reading.place is not None:
            self._clutch = None  # the phone is carried back while its button is not held
        return held

    def _pushed(self, twist: Array, held: Array) -> Array:
        """A step from where the arm was sent; the hand keeps its turn while it is asked for none."""
        position, rotation = forward(held)
        assert self._clutch is not None
        if np.any(twist[3:]):
            turned = rotation_matrix(self._settings.turn * self._period * twist[3:]) @ rotation
            self._clutch = _Clutch(self._clutch.reading, held, position, turned)
        way = self._settings.speed * self._period * twist[:3]
        return solve(held, position + way, self._clutch.rotation, low=self._low, high=self._high, homing=_HOMING)

    def _pulled(self, reading: DeviceReading, clutch: _Clutch, held: Array) -> Array:
        """Where the hand was, and as far as the device has come since."""
        if clutch.reading.place is None:  # it had none yet
            clutch = self._clutch = _Clutch(reading, held, *forward(held))
        assert reading.place is not None and clutch.reading.place is not None
        (came, turned), (began, before) = reading.place, clutch.reading.place
        here = forward(held)[0]
        way = clutch.position + came - began - here
        length = float(np.linalg.norm(way))
        position = here + way * min(1.0, _REACH / length) if length else here
        return solve(
            held, position, turned @ before.T @ clutch.rotation, low=self._low, high=self._high, homing=_HOMING
        )

    def _wanted_closure(self, reading: DeviceReading, closure: float) -> float:
        """A leader's hand counts once it was moved: it lies open while the arm's holds something."""
        if reading.grip is not None:
            return reading.grip
        assert self._clutch is not None
        began = self._clutch.reading.closure
        if reading.closure is None or began is None:
            return closure
        self._squeezed = self._squeezed or abs(reading.closure - began) >= _GRIPS
        return reading.closure if self._squeezed else closure
