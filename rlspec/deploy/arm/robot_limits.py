"""Limits of the Franka arms (reference tables; on hardware the connected robot's own go before them)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rlspec.errors import RobotError

Array = NDArray[np.float64]
JOINTS = 7


@dataclass(frozen=True)
class RobotLimits:
    """What an arm must not exceed, joint by joint.

    Attributes:
        model: "fr3", "fr3_pre_5_9" or "fer".
        low, high: Joint angles, (7,) radians.
        velocity: Largest rad/s, (7,).
        acceleration: rad/s^2, (7,).
        jerk: rad/s^3, (7,).
        envelope: Coefficients o, c, a, b of the FR3's position-dependent velocity limit, (4, 7); None: there is none.
        source: Where the figures come from.
    """

    model: str
    low: Array
    high: Array
    velocity: Array
    acceleration: Array
    jerk: Array
    envelope: Array | None
    source: str


def _row(*values: float) -> Array:
    return np.array(values, dtype=np.float64)


# As in libfranka's computeUpper/LowerLimitsJointVelocity: rows o, c, a, b; joints in columns.
_FR3_ENVELOPE = np.array(
    [
        [0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35],
        [12.0, 5.17, 7.00, 8.00, 34.0, 11.0, 34.0],
        [2.75010, 1.79180, 2.90650, -0.1458, 2.81010, 4.52050, 3.01960],
        [2.75010, 1.79180, 2.90650, 3.04810, 2.81010, -0.54092, 3.01960],
    ]
)
_FR3_VELOCITY = _row(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26)

LIMITS: dict[str, RobotLimits] = {
    "fr3": RobotLimits(
        model="fr3",
        low=_row(-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508),
        high=_row(2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508),
        velocity=_FR3_VELOCITY,
        acceleration=np.full(JOINTS, 10.0),
        jerk=np.full(JOINTS, 5000.0),
        envelope=_FR3_ENVELOPE,
        source="franka_description (FR3, system 5.9 and later), velocities by libfranka 0.15 rate_limiting.h",
    ),
    "fr3_pre_5_9": RobotLimits(
        model="fr3_pre_5_9",
        low=_row(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
        high=_row(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
        velocity=_FR3_VELOCITY,
        acceleration=np.full(JOINTS, 10.0),
        jerk=np.full(JOINTS, 5000.0),
        envelope=_FR3_ENVELOPE,
        source="Franka Control Interface documentation (FR3 before system 5.9)",
    ),
    "fer": RobotLimits(
        model="fer",
        low=_row(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
        high=_row(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
        velocity=_row(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
        acceleration=_row(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
        jerk=_row(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
        envelope=None,
        source="Franka Control Interface documentation (Franka Emika Robot, formerly Panda)",
    ),
}
"""By model. The offline FR3 envelope belongs to the narrower ranges of before 5.9, so it is the tighter of the two."""


def velocity_bounds(limits: RobotLimits, q: Array) -> tuple[Array, Array]:
    """Velocities allowed at joint angles.

    Args:
        limits: Of the arm.
        q: (..., 7) radians.

    Returns:
        Lowest (at most 0) and highest (at least 0), each (..., 7) rad/s.
    """
    high = np.broadcast_to(limits.velocity, q.shape)
    if limits.envelope is None:
        return -high, high
    offset, slope, above, below = limits.envelope
    rising = np.sqrt(np.maximum(slope * (above - q), 0.0)) - offset
    falling = np.sqrt(np.maximum(slope * (below + q), 0.0)) - offset
    return -np.clip(falling, 0.0, high), np.clip(rising, 0.0, high)


def _column(name: str, values: Sequence[float] | Array) -> Array:
    column = np.asarray(values, dtype=np.float64).reshape(-1)
    if column.shape != (JOINTS,) or not np.all(np.isfinite(column)):
        raise RobotError(f"the robot reports {name} = {column.tolist()}; seven finite numbers were expected")
    return column


def from_robot(
    model: str,
    *,
    low: Sequence[float] | Array,
    high: Sequence[float] | Array,
    velocity: Sequence[float] | Array,
    acceleration: Sequence[float] | Array | None = None,
    jerk: Sequence[float] | Array | None = None,
    envelope: Array | None = None,
    source: str = "the connected robot",
) -> RobotLimits:
    """Build limits from what a connected robot reports; what it does not report comes from the model's table.

    Args:
        model: Key of `LIMITS`.
        low: Joint angles, (7,) radians.
        high: Joint angles, (7,) radians.
        velocity: (7,) rad/s.
        acceleration: (7,) rad/s^2.
        jerk: (7,) rad/s^3.
        envelope: (4, 7), see `RobotLimits`.
        source: Who reported it.

    Raises:
        RobotError: The model is unknown, or a figure is missing, not finite or not positive.
    """
    if model not in LIMITS:
        raise RobotError(f"no limits are known for robot model {model!r}; known are {', '.join(LIMITS)}")
    table = LIMITS[model]
    lowest = _column("lower joint limits", low)
    highest = _column("upper joint limits", high)
    rates = [
        _column(f"joint {name} limits", default if given is None else given)
        for name, given, default in (
            ("velocity", velocity, table.velocity),
            ("acceleration", acceleration, table.acceleration),
            ("jerk", jerk, table.jerk),
        )
    ]
    if not np.all(lowest < highest) or any(np.any(rate <= 0.0) for rate in rates):
        raise RobotError(
            f"{source} reports an empty joint range or a limit that is not positive; check its description"
        )
    fastest, steepest, sharpest = rates
    return RobotLimits(model, lowest, highest, fastest, steepest, sharpest, envelope, source)


def from_urdf(text: str, source: str = "the connected robot's URDF") -> RobotLimits:
    """Read the limits in a URDF (franky's `Robot.model_urdf`), position-dependent velocities included.

    The FR3's description gives each joint `deceleration_limit` d and `velocity_offset` o; libfranka takes
    sqrt(2 d (upper - q)) - o as the highest velocity. The model is told by the joint ranges.

    Raises:
        RobotError: It is no URDF of a Franka arm.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise RobotError(f"{source} cannot be read ({error}); state robot=franka_fr3 or franka_panda") from error
    joints = [joint for joint in root.iter("joint") if joint.get("type") == "revolute"]
    bounds = [joint.find("limit") for joint in joints]
    if len(joints) != JOINTS or any(bound is None for bound in bounds):
        raise RobotError(f"{source} has {len(joints)} limited revolute joints, a Franka arm has {JOINTS}")
    low, high, velocity = (
        _column(name, [float(bound.get(name, "nan")) for bound in bounds if bound is not None])
        for name in ("lower", "upper", "velocity")
    )
    braking = [joint.find("position_based_velocity_limits") for joint in joints]
    envelope = None
    if all(entry is not None for entry in braking):
        offset, deceleration = (
            _column(name, [float(entry.get(name, "nan")) for entry in braking if entry is not None])
            for name in ("velocity_offset", "deceleration_limit")
        )
        envelope = np.stack([offset, 2.0 * deceleration, high, -low])
    return from_robot(nearest_model(low, high), low=low, high=high, velocity=velocity, envelope=envelope, source=source)


def nearest_model(low: Array, high: Array) -> str:
    """Name of the table whose joint ranges are closest."""
    return min(
        LIMITS, key=lambda name: float(np.abs(LIMITS[name].low - low).sum() + np.abs(LIMITS[name].high - high).sum())
    )


def match(limits: RobotLimits, reported: RobotLimits, tolerance: float = 2e-3) -> RobotLimits:
    """Compare a table with what the connected robot reports.

    Args:
        limits: What the user asked for.
        reported: From `from_robot` or `from_urdf`.
        tolerance: Radians and share of a velocity by which the two may differ.

    Returns:
        What to obey: joint by joint the tighter of the two; the velocity envelope of the robot, where it reports one.

    Raises:
        RobotError: They describe different robots.
    """
    if limits.model != reported.model:
        raise RobotError(
            f"limits are for {limits.model}, but {reported.source} is of a {reported.model}; "
            "choose the robot that is connected"
        )
    figures = (
        ("lower limit", limits.low, reported.low, "rad"),
        ("upper limit", limits.high, reported.high, "rad"),
        ("velocity", limits.velocity, reported.velocity, "rad/s"),
    )
    for name, expected, actual, unit in figures:
        wrong = np.abs(expected - actual) > tolerance * np.maximum(1.0, np.abs(expected))
        if np.any(wrong):
            joint = int(np.argmax(wrong))
            raise RobotError(
                f"joint {joint + 1}: {name} {expected[joint]:.4f} {unit} in the table of {limits.model}, "
                f"{actual[joint]:.4f} by {reported.source}; nothing moves until robot and table agree"
            )
    return replace(
        reported,
        low=np.maximum(limits.low, reported.low),
        high=np.minimum(limits.high, reported.high),
        velocity=np.minimum(limits.velocity, reported.velocity),
        acceleration=np.minimum(limits.acceleration, reported.acceleration),
        jerk=np.minimum(limits.jerk, reported.jerk),
        envelope=limits.envelope if reported.envelope is None else reported.envelope,
    )
