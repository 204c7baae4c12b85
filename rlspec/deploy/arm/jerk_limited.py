"""A reference that moves to a target in nearly the least time within limits of velocity, acceleration and jerk.

What Ruckig does in the driver, in a few lines of numpy: for predictions and for simulated robots. Each joint on its own
(Ruckig's joints wait for the slowest); exact to one step of its period.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
_GRID = np.linspace(0.0, 1.0, 9)[:, None]  # candidate jerks of a step between the least and the largest


@dataclass(frozen=True)
class Profile:
    """Limits of a motion, each (7,): rad/s, rad/s^2, rad/s^3."""

    velocity: Array
    acceleration: Array
    jerk: Array

    def scaled(self, velocity: float, acceleration: float, jerk: float) -> Profile:
        """Shares of the limits."""
        return Profile(self.velocity * velocity, self.acceleration * acceleration, self.jerk * jerk)


class Reference:
    """Joint angles, velocities and accelerations, (7,) each, that a target pulls along."""

    def __init__(self, limits: Profile, joints: ArrayLike, velocities: ArrayLike) -> None:
        """Start at a measured state, without acceleration."""
        self.limits = limits
        self.joints: Array = np.array(joints, dtype=np.float64)
        self.velocities: Array = np.array(velocities, dtype=np.float64)
        self.accelerations: Array = np.zeros(7)

    def follow_position(self, target: ArrayLike, period: float) -> None:
        """Advance by `period` seconds towards rest at `target`, (7,) rad."""
        jerks = self._candidates(period)
        joints, speeds, accelerations = self._after(jerks, period)
        ahead = np.asarray(target, dtype=np.float64) - joints - stopping_distance(speeds, accelerations, self.limits)
        jerk = _root(jerks, ahead)
        settled = speeds + accelerations * np.abs(accelerations) / (2 * self.limits.jerk)
        bound = self.limits.velocity
        least = _root(jerks, -bound - settled)
        largest = _root(jerks, bound - settled)
        self._take(np.clip(jerk, np.minimum(least, largest), largest), period)

    def follow_velocity(self, target: ArrayLike, period: float) -> None:
        """Advance by `period` seconds towards the velocity `target`, (7,) rad/s."""
        jerks = self._candidates(period)
        _, speeds, accelerations = self._after(jerks, period)
        settled = speeds + accelerations * np.abs(accelerations) / (2 * self.limits.jerk)
        wanted = np.clip(np.asarray(target, dtype=np.float64), -self.limits.velocity, self.limits.velocity)
        self._take(_root(jerks, wanted - settled), period)

    def _candidates(self, period: float) -> Array:
        limits = self.limits
        least = np.clip((-limits.acceleration - self.accelerations) / period, -limits.jerk, limits.jerk)
        largest = np.clip((limits.acceleration - self.accelerations) / period, -limits.jerk, limits.jerk)
        return least + _GRID * (largest - least)

    def _after(self, jerk: Array, period: float) -> tuple[Array, Array, Array]:
        acceleration = self.accelerations + jerk * period
        speed = self.velocities + (self.accelerations + jerk * period / 2) * period
        joints = self.joints + (self.velocities + (self.accelerations / 2 + jerk * period / 6) * period) * period
        return joints, speed, acceleration

    def _take(self, jerk: Array, period: float) -> None:
        self.joints, self.velocities, self.accelerations = self._after(jerk, period)


def _root(jerks: Array, remaining: Array) -> Array:
    """Jerk, (7,), at which `remaining`, (candidates, 7) and falling, is zero; an end of the range where it never is."""
    after = np.sum(remaining > 0, axis=0)
    low, high = np.clip(after - 1, 0, None), np.clip(after, None, len(jerks) - 1)
    columns = np.arange(jerks.shape[1])
    left, right = remaining[low, columns], remaining[high, columns]
    span = np.where(left > right, left - right, 1.0)
    share = np.where(low == high, 0.0, np.clip(left / span, 0.0, 1.0))
    return jerks[low, columns] + share * (jerks[high, columns] - jerks[low, columns])


def stopping_distance(velocity: Array, acceleration: Array, limits: Profile) -> Array:
    """Radians that a joint still moves when it comes to rest as fast as the limits of acceleration and jerk allow.

    Args:
        velocity: (..., 7) rad/s.
        acceleration: (..., 7) rad/s^2.
        limits: Of the motion.
    """
    jerk, most = limits.jerk, limits.acceleration
    sign = np.where(velocity + acceleration * np.abs(acceleration) / (2 * jerk) >= 0, 1.0, -1.0)
    v, a = velocity * sign, acceleration * sign
    # Down to an acceleration of -peak, along it, and back to zero.
    peak = np.minimum(np.sqrt(np.maximum(jerk * v + a * a / 2, 0.0)), most)
    first, last = np.maximum(a + peak, 0.0) / jerk, peak / jerk
    coast = np.maximum(v + a * a / (2 * jerk) - peak * peak / jerk, 0.0) / np.maximum(peak, 1e-12)
    speed1 = v + a * first - jerk * first**2 / 2
    distance = v * first + a * first**2 / 2 - jerk * first**3 / 6
    speed2 = speed1 - peak * coast
    distance = distance + speed1 * coast - peak * coast**2 / 2
    distance = distance + speed2 * last - peak * last**2 / 2 + jerk * last**3 / 6
    return sign * distance
