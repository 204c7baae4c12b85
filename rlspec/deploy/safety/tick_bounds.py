"""What the safety filter is told, and the figures per tick that follow from it and from the robot's limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rlspec.config.schema import Section
from rlspec.contract.actions import DROID_HYBRID, JOINT_IMPEDANCE
from rlspec.contract.droid import HAND_LENGTH
from rlspec.deploy.arm.kinematics import POINTS, hand_points, points
from rlspec.deploy.arm.robot_limits import RobotLimits

Array = NDArray[np.float64]

GUARD = 1e-4
"""Share of every limit that is left free, so that rounding never exceeds it (libfranka leaves 1e-3 units)."""

ROBOTIQ_LENGTH = 0.177
"""Metres from the flange to the tips of a closed 2F-85: 163 mm by its drawing, and 14 mm of its coupling."""

SOFT_LAWS = (DROID_HYBRID, JOINT_IMPEDANCE)
SOFT_LAW_SHARE = 0.75
"""Springs overshoot the speed of their target: at share 1, DROID's law left the FR3's envelope by 5% in franky-sim."""


class SafetySettings(Section):
    """Margins and ages of the safety filter. Defaults are DROID's where DROID has one.

    Attributes:
        joint_margin: Radians that targets keep from the joint limits.
        workspace_low: Metres, the box that elbow, wrist, hand and tool centre point stay in (base frame; DROID's is as
            wide as the arm's reach: set it to the table and the walls of the laboratory).
        workspace_high: See `workspace_low`.
        hand_length: Metres from the flange to the hand's tip, which the box holds as well (the Franka hand's; a
            Robotiq 2F-85's is `ROBOTIQ_LENGTH`).
        velocity_share: Of the robot's limit that is used, see `for_law`; likewise `acceleration_share`, `jerk_share`.
        acceleration_share: See `velocity_share`.
        jerk_share: See `velocity_share`.
        max_step: Radians that a joint's target moves in one tick (DROID: 0.2).
        first_jump: Radians between measurement and target from which a first action is refused.
        start_velocity: rad/s of the measured joints from which a first action is refused.
        max_tracking_error: Radians between measurement and target from which actions are refused.
        state_tolerance: Radians by which a measurement may lie outside of the joint limits while the arm moves.
        hold_after: Seconds by which an action may be late; a later one counts as missing.
        stop_after: Seconds without an action that could be used after which the arm is stopped.
        expires: Seconds after which the robot stops by itself when nobody sends (at least one and a half ticks).
    """

    joint_margin: float = Field(0.1, ge=0, le=0.5)
    workspace_low: list[float] = Field([-1.0, -1.0, -1.0], min_length=3, max_length=3)
    workspace_high: list[float] = Field([1.0, 1.0, 1.0], min_length=3, max_length=3)
    hand_length: float = Field(HAND_LENGTH, ge=0.05, le=0.5)
    velocity_share: float = Field(1.0, gt=0, le=1)
    acceleration_share: float = Field(1.0, gt=0, le=1)
    jerk_share: float = Field(1.0, gt=0, le=1)
    max_step: float = Field(0.2, gt=0)
    first_jump: float = Field(0.25, gt=0)
    start_velocity: float = Field(0.2, gt=0)
    max_tracking_error: float = Field(0.5, gt=0)
    state_tolerance: float = Field(0.02, ge=0)
    hold_after: float = Field(0.2, gt=0)
    stop_after: float = Field(0.5, ge=0)
    expires: float = Field(0.2, gt=0)

    @model_validator(mode="after")
    def _box(self) -> SafetySettings:
        if not all(low < high for low, high in zip(self.workspace_low, self.workspace_high, strict=True)):
            raise ValueError("workspace_low must lie below workspace_high on every axis")
        return self

    def for_law(self, law: str) -> SafetySettings:
        """The settings under an execution law: unless a velocity share was given, soft laws get `SOFT_LAW_SHARE`."""
        if law in SOFT_LAWS and "velocity_share" not in self.model_fields_set:
            return self.model_copy(update={"velocity_share": SOFT_LAW_SHARE})
        return self


@dataclass(frozen=True)
class Bounds:
    """Limits of the targets that are sent at one rate.

    Attributes:
        period: Seconds of a tick.
        low, high: Joint angles with margin, (7,) radians; they end where the FR3's envelope leaves no velocity.
        velocity: (7,) rad/s, the slew per tick included.
        slewed: (7,) whether the slew per tick is what bounds the velocity.
        acceleration: (7,) rad/s^2.
        change: (7,) rad/s^2 by which the acceleration changes in one tick (jerk times period).
        smooth: Whether the jerk limit can bind: not where it lets the largest acceleration be reversed in a tick.
        envelope: o, c, a, b of the velocity envelope, (4, 7), or None.
        share: Of the envelope that is used.
        box_low, box_high: (3,) metres.
        on_hand: `kinematics.hand_points` of the hand.
        end_low, end_high: The robot's joint limits, (7,) radians.
        hard_low, hard_high: What a measurement may show, (7,) radians.
        fastest: What a measurement may show, (7,) rad/s.
        longest_stop: Ticks within which every braking must end.
    """

    period: float
    low: Array
    high: Array
    velocity: Array
    slewed: NDArray[np.bool_]
    acceleration: Array
    change: Array
    smooth: bool
    envelope: Array | None
    share: float
    box_low: Array
    box_high: Array
    on_hand: Array
    end_low: Array
    end_high: Array
    hard_low: Array
    hard_high: Array
    fastest: Array
    longest_stop: int

    @classmethod
    def of(cls, limits: RobotLimits, settings: SafetySettings, control_hz: float) -> Bounds:
        """Derive them.

        Args:
            limits: Of the connected robot.
            settings: Of the filter.
            control_hz: Ticks per second.
        """
        if not (math.isfinite(control_hz) and control_hz > 0):
            raise ValueError(f"control_hz={control_hz}: a positive rate was expected")
        period, free = 1.0 / control_hz, 1.0 - GUARD
        low, high = limits.low + settings.joint_margin, limits.high - settings.joint_margin
        if limits.envelope is not None:
            offset, slope, above, below = limits.envelope
            low, high = np.maximum(low, offset**2 / slope - below), np.minimum(high, above - offset**2 / slope)
        fastest = limits.velocity * settings.velocity_share * free
        slew = np.full(7, settings.max_step * control_hz * free)
        acceleration = limits.acceleration * settings.acceleration_share * free
        change = limits.jerk * settings.jerk_share * free * period
        velocity = np.minimum(fastest, slew)
        ticks = np.ceil(velocity / (acceleration * period)).max() + 3.0 * np.ceil(acceleration / change).max()
        return cls(
            period=period,
            low=low,
            high=high,
            velocity=velocity,
            slewed=slew < fastest,
            acceleration=acceleration,
            change=change,
            smooth=bool(np.any(change < 2.0 * acceleration)),
            envelope=limits.envelope,
            share=settings.velocity_share * free,
            box_low=np.array(settings.workspace_low),
            box_high=np.array(settings.workspace_high),
            on_hand=hand_points(settings.hand_length),
            end_low=limits.low,
            end_high=limits.high,
            hard_low=limits.low - settings.state_tolerance,
            hard_high=limits.high + settings.state_tolerance,
            fastest=limits.velocity * 1.1,
            longest_stop=2 * int(ticks) + 10,
        )

    def stands_outside(self, joints: Array) -> Iterator[str]:
        """A line for joints, (7,) radians, beyond the position margin, and one for `POINTS` beyond the box."""
        beyond = np.flatnonzero((joints < self.low) | (joints > self.high))
        if len(beyond):
            angles = ", ".join(f"joint{i + 1} {joints[i]:+.3f} rad" for i in beyond)
            yield f"the arm stands outside of safety.joint_margin within its limits ({angles}): it may only come back"
        places = points(joints, self.on_hand)
        out = np.any((places < self.box_low[:, None]) | (places > self.box_high[:, None]), axis=0)
        if out.any():
            show = lambda values: " ".join(f"{value:+.2f}" for value in values)  # noqa: E731
            parts = ", ".join(f"{POINTS[i]} {show(places[:, i])}" for i in np.flatnonzero(out))
            yield (
                f"the arm stands outside of the workspace box, from {show(self.box_low)} to {show(self.box_high)} m "
                f"({parts}): it may only come in; safety.workspace_low and _high are metres in the robot's base frame"
            )
