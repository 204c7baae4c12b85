"""How the arm brakes from where it is: the sequences of targets that make a target safe to send.

All quantities are finite differences at the control rate: the targets x of successive ticks have the velocity
(x_k - x_{k-1}) / T, and so on. A target is admissible when it keeps every limit and a braking sequence from it keeps
them as well. Where the jerk limit cannot bind, braking at the largest deceleration goes less far and slower than any
other sequence, so none is admissible where it is not. Where it can, the deceleration rises and falls at the largest
jerk and ends in standstill exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlspec.deploy.arm.kinematics import points
from rlspec.deploy.safety.tick_bounds import Bounds

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

_TINY = 1e-6  # rad/s^2 of rounding, far below what `GUARD` leaves free
_STILL = 1e-9  # rad/s


@dataclass(frozen=True)
class BrakeMotion:
    """Where the targets are and how they move: x, v, a, each (7,)."""

    x: Array
    v: Array
    a: Array

    def to(self, x: Array, period: float) -> BrakeMotion:
        """After one more target."""
        v = (x - self.x) / period
        return BrakeMotion(x, v, (v - self.v) / period)


def stand(joints: Array) -> BrakeMotion:
    """At rest."""
    return BrakeMotion(joints, np.zeros(7), np.zeros(7))


def brake(x: Array, v: Array, a: Array, bounds: Bounds, together: bool = False) -> tuple[Array, Array, Flags]:
    """Brake to a stop.

    Args:
        x: (..., 7) radians.
        v: (..., 7) rad/s.
        a: (..., 7) rad/s^2.
        bounds: Of the targets.
        together: All joints come to rest in the same tick, on a straight line in joint space; otherwise each as soon as
            it can. (Where the jerk limit binds, always the latter.)

    Returns:
        Positions and velocities of the N >= 1 ticks until standstill, (N, ..., 7); whether it comes to rest, (..., 7).
    """
    if bounds.smooth:
        return _brake_smoothly(x, v, a, bounds)
    needed = np.abs(v) / (bounds.acceleration * bounds.period)
    ticks = max(1, int(np.ceil(needed.max())))
    steps = np.arange(1, ticks + 1).reshape(-1, *(1,) * x.ndim)
    if together:
        needed = np.broadcast_to(needed.max(axis=-1, keepdims=True), needed.shape)
    velocities = v * np.maximum(1.0 - steps / np.maximum(needed, 1e-9), 0.0)
    return x + bounds.period * np.cumsum(velocities, axis=0), velocities, np.ones(x.shape, dtype=np.bool_)


def _brake_smoothly(x: Array, v: Array, a: Array, bounds: Bounds) -> tuple[Array, Array, Flags]:
    """Brake with bounded jerk: the largest deceleration from which it can still fall to zero with the velocity."""
    positions, velocities = [], []
    for _ in range(bounds.longest_stop):
        wanted = np.copysign(releasable(np.abs(v) / bounds.period, bounds.change), -v)
        wanted = np.clip(wanted, -bounds.acceleration, bounds.acceleration)
        a = np.clip(wanted, a - bounds.change, a + bounds.change)
        v = v + bounds.period * a
        x = x + bounds.period * v
        positions.append(x)
        velocities.append(v)
        still = (np.abs(v) <= _STILL) & (np.abs(a) <= _TINY)
        if np.all(still):
            break
    return np.stack(positions), np.stack(velocities), still


def releasable(total: Array, change: Array) -> Array:
    """First s of the falling series s, s - change, s - 2 change, ... > 0 whose sum is `total`."""
    further = np.maximum(np.ceil((np.sqrt(1.0 + 8.0 * total / change) - 3.0) / 2.0), 0.0)
    return (total + change * further * (further + 1.0) / 2.0) / (further + 1.0)


def within(x: Array, v: Array, bounds: Bounds) -> Flags:
    """Whether positions and the velocities with which they were reached keep their limits, (..., 7) each.

    Beyond a position limit, where only the arm's start can be, the way back is allowed.
    """
    kept = ((x <= bounds.high) | (v <= 0.0)) & ((x >= bounds.low) | (v >= 0.0)) & (np.abs(v) <= bounds.velocity)
    if bounds.envelope is None:
        return kept
    offset, slope, above, below = bounds.envelope
    room = np.where(v > 0.0, above - x, below + x)  # each tick ends where the envelope is narrowest
    highest = bounds.share * (np.sqrt(np.maximum(slope * room, 0.0)) - offset)
    return kept & (np.abs(v) <= np.maximum(highest, 0.0))


def admissible(motion: BrakeMotion, x: Array, bounds: Bounds, together: bool = False) -> tuple[Flags, Array]:
    """Whether targets keep the joints' limits now and while braking from them.

    Args:
        motion: Before the target.
        x: Candidates, (..., 7).
        bounds: Of the targets.
        together: See `brake`.

    Returns:
        Per joint, (..., 7), and the candidates with the braking that follows them, (1 + N, ..., 7).
    """
    v = (x - motion.x) / bounds.period
    a = (v - motion.v) / bounds.period
    kept = np.abs(a) <= bounds.acceleration + _TINY
    if bounds.smooth:
        kept &= np.abs(a - motion.a) <= bounds.change + _TINY
    # A wild candidate is not worth the many ticks that it would take to stop it.
    slow = np.minimum(np.maximum(v, -bounds.velocity), bounds.velocity)
    mild = np.minimum(np.maximum(a, -bounds.acceleration), bounds.acceleration) if bounds.smooth else a
    positions, velocities, still = brake(x, slow, mild, bounds, together)
    positions, velocities = np.concatenate([x[None], positions]), np.concatenate([v[None], velocities])
    return kept & still & within(positions, velocities, bounds).all(axis=0), positions


def outside(q: Array, bounds: Bounds) -> Array:
    """Metres by which elbow, wrist and hand are out of the box, negative inside: (..., 3, 8) for joints (..., 7)."""
    places = points(q, bounds.on_hand)
    return np.maximum(bounds.box_low[:, None] - places, places - bounds.box_high[:, None])


def in_box(sequence: Array, bounds: Bounds) -> Flags:
    """Whether targets stay in the box; what starts outside of it may only come nearer, on every axis of every point.

    Args:
        sequence: (N, ..., 7) radians; the first one was sent already.
        bounds: Of the targets.

    Returns:
        (...).
    """
    depth = outside(sequence, bounds)
    if depth.max() <= 0.0:
        return np.ones(sequence.shape[1:-1], dtype=np.bool_)
    worse = (depth[1:] > 0.0) & (depth[1:] > depth[:-1])
    return np.logical_not(worse.any(axis=(0, -2, -1)))
