"""Changes a joint target as little as sensible until the arm may go there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlspec.deploy.safety.brake_plan import BrakeMotion, admissible, in_box, outside, releasable
from rlspec.deploy.safety.tick_bounds import GUARD, Bounds

Array = NDArray[np.float64]

POSITION = "joint_position"
VELOCITY = "joint_velocity"
SLEW = "slew"
ACCELERATION = "joint_acceleration"
JERK = "joint_jerk"
BRAKING = "braking"
WORKSPACE = "workspace"
"""Why a target was changed. BRAKING: the arm could not have braked in time, or is faster than the FR3's envelope."""

_PARTS = 12  # of the way that are tried at once
_STILL = 1e-9  # rad/s
_FAR = 10.0  # radians: no joint moves that far
_NUDGE = 1e-5  # radians, for slopes
_DAMPING = 1e-4  # m^2 / rad^2
_CLEARANCE = 1e-3  # metres that a target slides inside of a wall


def limit(
    motion: BrakeMotion, plan: Array, asked: Array, wanted: Array, bounds: Bounds
) -> tuple[Array, Array, tuple[str, ...]]:
    """Find a target near to the wanted one from which the arm can brake.

    Args:
        motion: Of the targets so far.
        plan: A braking that keeps all limits, (N, 7), from `motion`; its first target is the last resort.
        asked: What was wanted in the tick before, (7,) radians.
        wanted: (7,) radians.
        bounds: Of the targets.

    Returns:
        The target, the braking from it (N, 7), and why it was changed.
    """
    if _in_reach(motion, asked, wanted, bounds):
        for together in (False, True):
            kept, sequence = admissible(motion, wanted, bounds, together)
            if kept.all() and in_box(_from(motion, sequence), bounds):
                return wanted, sequence[1:], ()
    target, reasons = _joint_limits(motion, asked, wanted, bounds)
    kept, sequence = admissible(motion, target, bounds)
    if not kept.all():
        sequence = _braking_in_time(motion, plan, target, bounds)
        reasons.append(BRAKING)
    if not in_box(_from(motion, sequence), bounds):
        sequence = _into_box(motion, plan, _along_walls(motion, sequence[0], bounds), bounds)
        reasons.append(WORKSPACE)
    return sequence[0], sequence[1:], tuple(reasons)


def _in_reach(motion: BrakeMotion, asked: Array, wanted: Array, bounds: Bounds) -> bool:
    """Whether a target is worth a closer look (which costs more than the rest), and may be met at all.

    Who has to catch up must not race past a request that stands still, though each step were allowed by itself.
    """
    way = wanted - motion.x
    if np.abs(way).max() > _FAR:
        return False
    a = (way / bounds.period - motion.v) / bounds.period
    late = np.abs(asked - motion.x) / bounds.period**2
    return bool((np.maximum(np.abs(a), late) <= bounds.acceleration * (1.0 + GUARD)).all())


def _from(motion: BrakeMotion, sequence: Array) -> Array:
    """A sequence (N, ..., 7) with the target before it."""
    whole = np.empty((len(sequence) + 1, *sequence.shape[1:]))
    whole[0], whole[1:] = motion.x, sequence
    return whole


def _joint_limits(motion: BrakeMotion, asked: Array, wanted: Array, bounds: Bounds) -> tuple[Array, list[str]]:
    """Clip positions; shorten step and change of velocity as a whole, so that their directions stay; bound jerks.

    A target that cannot be reached in this tick is approached so that it can be met with its own velocity (by which it
    moved since it was last asked for) and is not overshot.
    """
    reasons = []
    target = np.clip(wanted, np.minimum(bounds.low, motion.x), np.maximum(bounds.high, motion.x))
    if np.any(target != wanted):
        reasons.append(POSITION)
    direct = (target - motion.x) / bounds.period
    moving = np.minimum(np.maximum((target - asked) / bounds.period, -bounds.velocity), bounds.velocity)
    behind = direct - moving
    less = np.minimum(bounds.acceleration, 0.5 * bounds.change) * bounds.period  # a deceleration that starts in a tick
    v = moving + np.copysign(releasable(np.abs(behind), less), behind)
    excess = np.abs(v) / bounds.velocity
    worst = int(np.argmax(excess))
    if excess[worst] > 1.0:
        v = v / excess[worst]
        reasons.append(SLEW if bounds.slewed[worst] else VELOCITY)
    change = v - motion.v
    steepest = float((np.abs(change) / (bounds.acceleration * bounds.period)).max())
    if steepest > 1.0:
        change = change / steepest
    v = motion.v + change
    if bounds.smooth:
        rough, a = change / bounds.period, motion.a
        v = motion.v + bounds.period * np.minimum(np.maximum(rough, a - bounds.change), a + bounds.change)
        if np.any(np.abs(rough - a) > bounds.change):
            reasons.append(JERK)
    if np.abs(v - direct).max() <= _STILL:  # a target that none of them changes keeps its bits
        return target, reasons
    if steepest > 1.0 or not reasons or reasons == [POSITION]:
        reasons.append(ACCELERATION)
    return motion.x + bounds.period * v, reasons


def _along_walls(motion: BrakeMotion, target: Array, bounds: Bounds) -> Array:
    """Take out of a target that leaves the box what leads out of it, so that the arm slides along a wall."""
    rows = np.concatenate([[motion.x, target], target + _NUDGE * np.eye(7)])
    depths = outside(rows, bounds).reshape(9, -1)
    excess = depths[1] - np.maximum(depths[0], -_CLEARANCE)
    out = (depths[1] > 0.0) & (excess > 0.0)
    if not out.any():
        return target
    slopes = (depths[2:, out] - depths[1, out]).T / _NUDGE
    # Points on one wall have nearly the same slopes: the damping keeps the change small where they contradict.
    return target - slopes.T @ np.linalg.solve(slopes @ slopes.T + _DAMPING * np.eye(len(slopes)), excess[out])


def _last_resort(plan: Array) -> Array:
    """The braking that is known, as a sequence of a target and what follows it."""
    return plan if len(plan) > 1 else np.concatenate([plan, plan])


def _braking_in_time(motion: BrakeMotion, plan: Array, target: Array, bounds: Bounds) -> Array:
    """Go back, joint by joint, towards the last resort as far as needed; returns the target and its braking."""
    parts = np.arange(_PARTS)[:, None]
    candidates: Array = plan[0] + parts / _PARTS * (target - plan[0])
    kept, sequences = admissible(motion, candidates, bounds)
    last = np.where(kept, parts, -1).max(axis=0)
    return _merge(_last_resort(plan), sequences[:, np.maximum(last, 0), np.arange(7)], last >= 0)


def _merge(old: Array, new: Array, take: NDArray[np.bool_]) -> Array:
    """Sequences (N, 7) of which the columns `take` come from `new`; the shorter one stands at its end."""
    length = max(len(old), len(new))
    longer = [np.concatenate([rows, np.repeat(rows[-1:], length - len(rows), axis=0)]) for rows in (old, new)]
    return np.where(take, longer[1], longer[0])


def _into_box(motion: BrakeMotion, plan: Array, target: Array, bounds: Bounds) -> Array:
    """Go back with all joints together towards the last resort as far as needed; returns the target and its braking."""
    kept, sequence = admissible(motion, target, bounds, together=True)
    if kept.all() and in_box(_from(motion, sequence), bounds):
        return sequence
    candidates: Array = plan[0] + np.arange(_PARTS)[:, None] / _PARTS * (target - plan[0])
    rows, sequences = admissible(motion, candidates, bounds, together=True)
    inside = rows.all(axis=-1) & in_box(_from(motion, sequences), bounds)
    if not inside.any():
        return _last_resort(plan)
    return sequences[:, int(np.flatnonzero(inside)[-1])]
