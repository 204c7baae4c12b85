"""The safety filter: what may be sent to the robot in place of what the policy asks for, and why.

It is a pure state machine. Whatever is asked, the sequence of targets that it lets through keeps, by finite differences
at the control rate, the model's limits of joint position (with a margin), velocity (the FR3's envelope at the position
that a tick reaches), acceleration and jerk, and keeps elbow, wrist and hand in the workspace box by forward kinematics
of the targets. It remembers a braking that keeps all of them too: a target is sent only together with a way to stop
after it, and when requests end, or none can be met, that way is taken. Requests that keep the limits and leave room to
brake pass unchanged, bit for bit.

What happens:
- start: the first request, and the target towards which it is a slow start's part of the way, must lie within
  `first_jump` of the measured joints, and these must stand still.
- run: requests are followed; positions are clipped, steps and changes of velocity that are too large shortened as a
  whole (their direction stays), what would leave the box slides along its wall, and what could not brake in time is
  slowed joint by joint. A request that is out of reach is approached so that it is not overshot.
- hold: without a request that can be used (missing, late, malformed, or the robot is not where it should be) the
  targets brake to a standstill and stay.
- stop: after `stop_after` seconds of that, once the targets stand, there is no command any more: the caller stops the
  robot. The next usable request starts anew from the measured joints.
Outside of the box or of the position margin (only a start can be) a target may not go further out, on any axis of any
point; it may stay or come back.

The jerk limit at low rates: reversing the whole acceleration in one tick is a jerk of 2 a / T, and all Franka limits
have j = 500 a, so jerk cannot bind below 250 Hz; from there on (or where the robot reports a lower one) it is kept
exactly. Between two ticks the law in the robot's 1 kHz layer decides (Ruckig with its own jerk limits, or a spring to
the target with the torque rate limited): this filter bounds what that layer is asked for, not the torque that it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlspec.deploy.arm.interfaces import Command, RobotState
from rlspec.deploy.arm.robot_limits import RobotLimits
from rlspec.deploy.safety.brake_plan import BrakeMotion, stand
from rlspec.deploy.safety.nearest_target import ACCELERATION, BRAKING, JERK, POSITION, SLEW, VELOCITY, WORKSPACE, limit
from rlspec.deploy.safety.tick_bounds import Bounds, SafetySettings
from rlspec.errors import RobotError

__all__ = ["LIMITED", "REFUSED", "Memory", "SafetyFilter", "FilterVerdict", "SafetySettings", "filter_action", "start"]

Array = NDArray[np.float64]
Phase = Literal["start", "run", "hold", "stop"]

MISSING = "action_missing"
STALE = "action_stale"
MALFORMED = "action_malformed"
FIRST_JUMP = "first_action_jump"
STATE_MALFORMED = "state_malformed"
STATE_OUTSIDE = "state_outside_limits"
NOT_STANDING = "state_moving_at_start"
TRACKING = "tracking_error"
ROBOT_STOPPED = "robot_not_ready"

LIMITED = (POSITION, SLEW, VELOCITY, ACCELERATION, JERK, BRAKING, WORKSPACE)
"""Reasons of a changed request."""
REFUSED = (
    *(MISSING, STALE, MALFORMED, FIRST_JUMP),
    *(STATE_MALFORMED, STATE_OUTSIDE, NOT_STANDING, TRACKING, ROBOT_STOPPED),
)
"""Reasons of a refused request: the arm brakes and holds."""

_EPSILON = 1e-9


@dataclass(frozen=True)
class Memory:
    """What the filter remembers.

    Attributes:
        control_hz: Ticks per second.
        motion: Of the targets sent.
        plan: A braking from `motion` that keeps all limits, (N, 7).
        asked: What was wanted last, within the position limits, (7,) radians.
        phase: Of the last verdict.
        missing: Seconds since a request was followed.
    """

    control_hz: float
    motion: BrakeMotion
    plan: Array
    asked: Array
    phase: Phase = "start"
    missing: float = 0.0


@dataclass(frozen=True)
class FilterVerdict:
    """What may be sent.

    Attributes:
        command: None: send nothing, stop the robot.
        joints: The target of this tick, (7,) radians; where the targets stand when nothing is sent.
        reasons: Why it differs from the request: of `LIMITED` or of `REFUSED`; empty: it does not.
        phase: "start" (nothing was followed yet), "run", "hold" or "stop".
    """

    command: Command | None
    joints: Array
    reasons: tuple[str, ...]
    phase: Phase


def start(state: RobotState, limits: RobotLimits, control_hz: float) -> Memory:
    """Begin where the robot is.

    Raises:
        RobotError: The measured joints are not finite, or outside of the robot's limits.
    """
    joints = np.array(state.joints, dtype=np.float64)
    if joints.shape != (7,) or not np.all(np.isfinite(joints)):
        raise RobotError(f"the robot measures joints {joints.tolist()}; seven finite angles were expected")
    outside = (joints < limits.low) | (joints > limits.high)
    if np.any(outside):
        joint = int(np.argmax(outside))
        raise RobotError(
            f"joint {joint + 1} is measured at {joints[joint]:.3f} rad, outside of {limits.low[joint]:.3f} to "
            f"{limits.high[joint]:.3f} of a {limits.model}; move it back by hand, or choose the robot that is connected"
        )
    return _begin(control_hz, joints)


def _begin(control_hz: float, joints: Array) -> Memory:
    return Memory(control_hz, stand(joints), joints[None], joints)


def _moved(memory: Memory, way: Array) -> Memory:
    """The same motion elsewhere."""
    motion = replace(memory.motion, x=memory.motion.x + way)
    return replace(memory, motion=motion, plan=memory.plan + way, asked=memory.asked + way)


def filter_action(
    memory: Memory,
    requested: ArrayLike | None,
    state: RobotState,
    age: float,
    limits: RobotLimits,
    settings: SafetySettings,
) -> tuple[FilterVerdict, Memory]:
    """One tick of the filter as a pure function; see `SafetyFilter.filter`."""
    return advance(memory, requested, state, age, Bounds.of(limits, settings, memory.control_hz), settings)


def advance(
    memory: Memory,
    requested: ArrayLike | None,
    state: RobotState,
    age: float,
    bounds: Bounds,
    settings: SafetySettings,
    meant: Array | None = None,
) -> tuple[FilterVerdict, Memory]:
    """One tick with the figures of `Bounds` at hand; a start is judged by what is `meant`, or else requested."""
    wanted, refusal = _usable(requested, age, settings)
    trouble = _trouble(memory, state, bounds, settings)
    if not trouble and memory.phase in ("start", "stop"):
        trouble = _beyond(state, bounds)
    if not trouble and not refusal and memory.phase == "stop":
        memory = _begin(memory.control_hz, state.joints.copy())
    refusal = trouble or refusal
    if not refusal and memory.phase == "start":
        refusal = _bad_start(wanted if meant is None else meant, state, settings)
    if refusal:
        return _hold(memory, refusal, bounds, settings)
    target, plan, reasons = limit(memory.motion, memory.plan, memory.asked, wanted, bounds)
    motion = memory.motion.to(target, bounds.period)
    asked = np.clip(wanted, bounds.low, bounds.high)
    after = Memory(memory.control_hz, motion, plan, asked, "run")
    return FilterVerdict(_command(motion, bounds, settings), target, reasons, "run"), after


def _usable(requested: ArrayLike | None, age: float, settings: SafetySettings) -> tuple[Array, str]:
    """The request as an array, or why it cannot be used."""
    nothing = np.zeros(7)
    if requested is None:
        return nothing, MISSING
    try:
        wanted = np.asarray(requested)
    except ValueError:
        return nothing, MALFORMED
    if wanted.shape != (7,) or wanted.dtype.kind not in "fiu" or not np.all(np.isfinite(wanted)):
        return nothing, MALFORMED
    if not age <= settings.hold_after + _EPSILON:  # NaN is late
        return nothing, STALE
    return wanted.astype(np.float64), ""


def _trouble(memory: Memory, state: RobotState, bounds: Bounds, settings: SafetySettings) -> str:
    """Why the robot's state forbids to go on; empty: it does not."""
    if state.mode in ("reflex", "user_stopped", "disconnected"):
        return ROBOT_STOPPED
    joints, velocities = state.joints, state.velocities
    if joints.shape != (7,) or velocities.shape != (7,):
        return STATE_MALFORMED
    if not (np.all(np.isfinite(joints)) and np.all(np.isfinite(velocities))):
        return STATE_MALFORMED
    if np.any((joints < bounds.hard_low) | (joints > bounds.hard_high) | (np.abs(velocities) > bounds.fastest)):
        return STATE_OUTSIDE
    if memory.phase != "stop" and np.abs(joints - memory.motion.x).max() > settings.max_tracking_error:
        return TRACKING
    return ""


def _beyond(state: RobotState, bounds: Bounds) -> str:
    """A first target is where the robot stands: that must lie within its limits, without tolerance."""
    outside = (state.joints < bounds.end_low) | (state.joints > bounds.end_high)
    return STATE_OUTSIDE if np.any(outside) else ""


def _bad_start(wanted: Array, state: RobotState, settings: SafetySettings) -> str:
    if np.abs(state.velocities).max() > settings.start_velocity:
        return NOT_STANDING
    return FIRST_JUMP if np.abs(wanted - state.joints).max() > settings.first_jump else ""


def _hold(memory: Memory, reason: str, bounds: Bounds, settings: SafetySettings) -> tuple[FilterVerdict, Memory]:
    """Follow the braking to its end and stay there; then stop."""
    missing = memory.missing + bounds.period
    standing = len(memory.plan) == 1 and not np.any(memory.motion.v)
    ended = standing and missing > settings.stop_after + _EPSILON
    if memory.phase == "stop" or ended or reason == ROBOT_STOPPED:
        joints = memory.motion.x
        resting = replace(_begin(memory.control_hz, joints), phase="stop", missing=missing)
        return FilterVerdict(None, joints, (reason,), "stop"), resting
    target = memory.plan[0]
    plan = memory.plan[1:] if len(memory.plan) > 1 else memory.plan
    motion = memory.motion.to(target, bounds.period)
    phase: Phase = "start" if memory.phase == "start" else "hold"
    after = Memory(memory.control_hz, motion, plan, target, phase, missing)
    return FilterVerdict(_command(motion, bounds, settings), target, (reason,), phase), after


def _command(motion: BrakeMotion, bounds: Bounds, settings: SafetySettings) -> Command:
    return Command(motion.x, motion.v, max(settings.expires, 1.5 * bounds.period))


class SafetyFilter:
    """`filter_action` with a memory.

    Args:
        limits: Of the connected robot.
        settings: Margins and ages.
        control_hz: Rate at which `filter` is called and its targets are sent, 1 to 200 Hz. Limits hold for this rate: a
            late tick moves slower than they allow; the caller must not send two targets within one period.
        by_velocity: The robot follows the commands' velocities and not their targets. Nothing would pull it back to a
            target that it has left (after a tick that was missed, say), so each tick begins where it is measured.
    """

    def __init__(
        self,
        limits: RobotLimits,
        settings: SafetySettings | None = None,
        control_hz: float = 15.0,
        *,
        by_velocity: bool = False,
    ) -> None:
        self.limits = limits
        self.settings = settings or SafetySettings()
        self.control_hz = control_hz
        self.bounds = Bounds.of(limits, self.settings, control_hz)
        self._by_velocity = by_velocity
        self._memory: Memory | None = None

    def reset(self, state: RobotState) -> None:
        """Begin anew where the robot is.

        Raises:
            RobotError: The measured joints are not finite, or outside of the robot's limits.
        """
        self._memory = start(state, self.limits, self.control_hz)

    def filter(
        self,
        requested: ArrayLike | Sequence[float] | None,
        state: RobotState,
        age: float = 0.0,
        *,
        meant: Array | None = None,
    ) -> FilterVerdict:
        """Judge the request of one tick.

        Args:
            requested: Joint target, (7,) radians; None: there is none.
            state: Newest measurement.
            age: Seconds since the tick for which the request was meant.
            meant: Where `requested` is a first part of the way: its end, (7,) radians, by which a start is judged.
        """
        assert self._memory is not None, "reset comes first"
        memory = self._memory
        if self._by_velocity and not _trouble(memory, state, self.bounds, self.settings):
            memory = _moved(memory, state.joints - memory.motion.x)
        verdict, self._memory = advance(memory, requested, state, age, self.bounds, self.settings, meant)
        return verdict
