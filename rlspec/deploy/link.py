"""The link to a policy server: how late answers are, how much that varies, and which chunks outlast it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlspec.deploy.arm.interfaces import Reply
from rlspec.deploy.policy.schedule import Timing

ANSWERS = 30  # measured; the scheduler plans for the slowest, so a rare late one counts
_CLOCKS = 2.0  # seconds that two clocks may differ, of which one is told in whole seconds


@dataclass(frozen=True)
class LinkFigures:
    """Of a number of answers, in milliseconds.

    Attributes:
        middle, late, slowest: Of an answer as the robot sees it: median, 95th percentile, largest.
        jitter: Median difference of two answers in a row.
        transport: Median without the server's own inference; None: the server does not say what that takes.
    """

    middle: float
    late: float
    slowest: float
    jitter: float
    transport: float | None

    @classmethod
    def of(cls, replies: Sequence[Reply]) -> LinkFigures:
        """From answers in their order, two at least."""
        times = np.array([reply.round_trip_ms for reply in replies])
        ways = [reply.round_trip_ms - reply.server_ms for reply in replies if reply.server_ms is not None]
        return cls(
            middle=float(np.median(times)),
            late=float(np.percentile(times, 95)),
            slowest=float(times.max()),
            jitter=float(np.median(np.abs(np.diff(times)))),
            transport=float(np.median(ways)) if ways else None,
        )

    def words(self) -> str:
        """`an answer takes 45 ms (95%: 61, slowest: 80), jitter 4 ms, the way there and back 3 ms`."""
        way = "" if self.transport is None else f", the way there and back {self.transport:.1f} ms of it"
        spread = f"(95%: {self.late:.0f}, slowest: {self.slowest:.0f})"
        return f"an answer takes {self.middle:.0f} ms {spread}, jitter {self.jitter:.1f} ms{way}"


def lead(slowest_ms: float, control_hz: float) -> int:
    """Actions that pass while the slowest answer is on its way, with the scheduler's margin."""
    return math.ceil(slowest_ms / 1000 * control_hz - 1e-9) + Timing(1 / control_hz, 1).margin


def chunk_verdict(slowest_ms: float, control_hz: float, horizon: int, n_action_steps: int) -> tuple[bool, str]:
    """Whether a policy's chunks last until the next one is there, and in words at which length they do.

    The next chunk is asked for `lead` actions before the end of the one in hand, and so many of its own are past when
    it takes over.

    Args:
        slowest_ms: Of the answers.
        control_hz: Ticks per second.
        horizon: Actions in a chunk; 0: the policy does not say.
        n_action_steps: That are carried out.
    """
    ahead = lead(slowest_ms, control_hz)
    wanted = f"at {control_hz:g} Hz chunks of {2 * ahead} actions suffice, {ahead} of which are carried out"
    if slowest_ms > 1000 * Timing(1.0, 1).stale:
        return False, "answers are stale when they arrive"
    if not horizon:
        return True, wanted
    carried = min(n_action_steps, horizon - ahead)
    said = f"this policy's are {horizon}, {n_action_steps} carried out"
    return carried >= ahead, f"{wanted}; {said}{'' if carried >= ahead else ': the arm will wait for it'}"


def clock_words(there: float | None, here: float) -> str:
    """What the server's clock (seconds since 1970) means for dates in two logs; empty: nothing, or it does not say."""
    if there is None or abs(there - here) <= _CLOCKS:
        return ""
    return f"its clock is {there - here:+.0f} s off: dates in its log and in the robot's do not match"
