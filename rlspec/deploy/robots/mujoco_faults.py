"""What may go wrong with the simulated arm: set by tests, read at every step of the physics."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_SMOOTHING = 0.02  # seconds over which external torques are averaged: a touch is no collision

Interval = tuple[float, float]
Array = NDArray[np.float64]


@dataclass
class Faults:
    """Faults by the simulated clock; may be changed at any time.

    Attributes:
        camera_stalls: Camera -> (from, until), seconds: it delivers no new picture.
        gripper_blocked: (from, until), seconds: the fingers stay where they are.
        reflex_at: The arm stops by itself at this time, once; None: never.
        velocity_reflex: Share of the model's velocity limits above which it does so; None: never.
        torque_reflex: External torque in Nm above which it does so (40: droid's collision thresholds); None: never.
        recoveries: How many times `recover` succeeds.
    """

    camera_stalls: dict[str, Interval] = field(default_factory=dict)
    gripper_blocked: Interval | None = None
    reflex_at: float | None = None
    velocity_reflex: float | None = 1.0
    torque_reflex: float | None = 40.0
    recoveries: int = 1_000_000

    def stalls(self, camera: str, time: float) -> bool:
        """Whether a camera delivers nothing now."""
        return _within(self.camera_stalls.get(camera), time)

    def blocks_gripper(self, time: float) -> bool:
        """Whether the fingers are stuck now."""
        return _within(self.gripper_blocked, time)


def _within(interval: Interval | None, time: float) -> bool:
    return interval is not None and interval[0] <= time < interval[1]


class Reflexes:
    """Watches an arm as its own controller would.

    Args:
        faults: Thresholds, read at every step.
        velocity: Limits, (7,) rad/s.
    """

    def __init__(self, faults: Faults, velocity: Array) -> None:
        self.faults = faults
        self._velocity = velocity
        self.clear()

    def clear(self) -> None:
        """Forget external torques."""
        self._torque: Array = np.zeros(7)

    def check(self, time: float, period: float, velocities: Array, external: Array) -> str:
        """Why the arm stops now, in its own words; empty where it goes on.

        Args:
            time: Seconds.
            period: Since the last check, seconds.
            velocities: (7,) rad/s.
            external: Torques that the surroundings exert, (7,) Nm.
        """
        faults = self.faults
        if faults.reflex_at is not None and time >= faults.reflex_at:
            faults.reflex_at = None
            return "reflex: injected"
        if faults.velocity_reflex is not None:
            excess = np.abs(velocities) / (faults.velocity_reflex * self._velocity)
            if excess.max() > 1.0:
                joint = int(excess.argmax())
                return f"reflex: joint{joint + 1} at {velocities[joint]:.2f} rad/s exceeds its velocity limit"
        self._torque += min(1.0, period / _SMOOTHING) * (external - self._torque)
        if faults.torque_reflex is not None and (worst := float(np.abs(self._torque).max())) > faults.torque_reflex:
            joint = int(np.abs(self._torque).argmax())
            return f"reflex: {worst:.0f} Nm on joint{joint + 1} from outside exceed {faults.torque_reflex:g} Nm"
        return ""
