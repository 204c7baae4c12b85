"""Why a deployment ended, and what was counted while it ran."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rlspec.errors import INTERRUPTED

PACE_TOLERANCE = 0.05  # of real time; a controller's own clock keeps it to a thousandth
End = Literal["time", "success", "failure", "rerecord", "fault", "user"]
_CODES: dict[End, int] = {"time": 0, "success": 0, "failure": 0, "rerecord": 0, "fault": 1, "user": INTERRUPTED}


@dataclass
class DeploymentOutcome:
    """Counts of a run.

    Attributes:
        end: Why it ended: its time was over, its task was done, whoever drives called it a failure or wants it again, a
            fault, or the user.
        reason: In words.
        ticks: Of the loop; `missed` ticks were too late to happen.
        asked: Ticks for which there was an action of the policy; the filter may have refused it.
        fresh: Ticks that carried out an action of the policy.
        holds, stops: Ticks that held the last target; how often the robot was stopped for want of actions or pictures.
        resumed: How often it moved again after a stop or a reflex.
        takeovers, taken: How often a human took over from the policy, and for how many ticks.
        recoveries: Reflexes that were acknowledged.
        changed: Reason -> ticks in which the safety filter changed or refused the action.
        late: Seconds of lateness of each tick.
        inference_ms: Of each answer.
        pace: Seconds of the robot's own clock per second, where it has one; a simulated arm may be slower than time.
        standstill: Seconds from the decision to end until the robot stood; None: it was not seen to.
        rescued: Where lines of the log lie that did not fit on its disk.
    """

    end: End = "time"
    reason: str = ""
    ticks: int = 0
    missed: int = 0
    asked: int = 0
    fresh: int = 0
    holds: int = 0
    stops: int = 0
    resumed: int = 0
    takeovers: int = 0
    taken: int = 0
    recoveries: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    late: list[float] = field(default_factory=list)
    inference_ms: list[float] = field(default_factory=list)
    pace: float | None = None
    standstill: float | None = None
    rescued: str = ""

    @property
    def exit_code(self) -> int:
        """0 as planned, 1 a fault, 130 the user's stop."""
        return _CODES[self.end]

    def footer(self) -> dict[str, Any]:
        """The log's last line."""
        return {
            "outcome": self.end,
            "reason": self.reason,
            "exit_code": self.exit_code,
            "ticks": self.ticks,
            "missed_ticks": self.missed,
            "asked": self.asked,
            "fresh": self.fresh,
            "holds": self.holds,
            "stops": self.stops,
            "resumed": self.resumed,
            "takeovers": self.takeovers,
            "taken": self.taken,
            "recoveries": self.recoveries,
            "changed": dict(self.changed),
            "late_ms": _percentiles([1e3 * value for value in self.late]),
            "inference_ms": _percentiles(self.inference_ms),
            "pace": self.pace,
            "standstill_s": self.standstill,
        }

    def lines(self) -> list[str]:
        """For the terminal."""
        asked, late = _percentiles(self.inference_ms), _percentiles([1e3 * value for value in self.late])
        changed = ", ".join(f"{reason} {count / self.asked:.1%}" for reason, count in self.changed.most_common())
        stand = "" if self.standstill is None else f", at rest {1000 * self.standstill:.0f} ms later"
        lines = [
            f"{self.end}: {self.reason}{stand}",
            f"ticks      {self.ticks} ({self.fresh} with an action, {self.holds} held, {self.missed} missed), "
            f"{_times(self.stops, 'stopped')}, {_times(self.recoveries, 'helped out of a reflex')}, "
            f"{_times(self.resumed, 'moved again')}",
            f"lateness   p50 {late['p50']:.2f} ms, p99 {late['p99']:.2f} ms, max {late['max']:.2f} ms",
            f"inference  p50 {asked['p50']:.1f} ms, p99 {asked['p99']:.1f} ms, {len(self.inference_ms)} answers",
            f"changed by the safety filter: {changed or 'nothing'}",
        ]
        if self.takeovers:
            lines.append(f"{_times(self.takeovers, 'taken over by a human')}, for {self.taken} ticks")
        if self.pace is not None and abs(self.pace - 1) > PACE_TOLERANCE:
            lines.append(slow_words(self.pace))
        return lines + ([f"the log's last lines did not fit on its disk: {self.rescued}"] if self.rescued else [])


def slow_words(pace: float) -> str:
    """What a robot's clock that is not ours means for what was seen."""
    return f"the robot's clock runs at {pace:.2f} of real time: its motion is not what the policy meant"


def _times(count: int, what: str) -> str:
    return f"{what} {'never' if count == 0 else 'once' if count == 1 else f'{count} times'}"


def _percentiles(values: list[float]) -> dict[str, float]:
    return {
        name: float(np.percentile(values, percent)) if values else 0.0
        for name, percent in (("p50", 50), ("p99", 99), ("max", 100))
    }
