"""Who says whether a trial succeeded: the operator with one key, blind to the policy, or the simulation."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rlspec.deploy.outcome import DeploymentOutcome
from rlspec.deploy.trials.plan import TrialTask

KEYS = "s success   f failure   1..9 tenths of it   r repeat (it does not count)   q pause"


@dataclass(frozen=True)
class TrialVerdict:
    """Of a trial: its credit from 0 to 1, where 1 is success; None: it does not count and is repeated."""

    credit: float | None

    @property
    def success(self) -> bool:
        """Whether all of the task was done."""
        return self.credit == 1.0


class Paused(Exception):  # noqa: N818 - no error: the operator goes home
    """The series goes on another time."""


class Judge(Protocol):
    """Looks at trials. It is never told which policy runs."""

    def prepare(self, number: int, of: int, task: TrialTask, scene: int) -> None:
        """Show what is to be reset, and wait until it is; raises Paused."""
        ...

    def judge(self, task: TrialTask, outcome: DeploymentOutcome) -> TrialVerdict:
        """What became of the trial that has just ended; raises Paused."""
        ...


class SimulationJudge:
    """The simulated task knows."""

    def prepare(self, number: int, of: int, task: TrialTask, scene: int) -> None:
        """The scene's seed lays it out."""

    def judge(self, task: TrialTask, outcome: DeploymentOutcome) -> TrialVerdict:
        """Success ends the run; whatever else ended it, a fault too, is a failure."""
        return TrialVerdict(1.0 if outcome.end == "success" else 0.0)


class OperatorJudge:
    """Asks on the terminal.

    Args:
        show: Takes lines.
        key: Waits for a key; by default the terminal's, without Enter.
    """

    def __init__(self, show: Callable[[str], None], key: Callable[[], str] | None = None) -> None:
        self._show, self._key = show, key or read_key

    def prepare(self, number: int, of: int, task: TrialTask, scene: int) -> None:
        """See `Judge`."""
        self._show(f"\ntrial {number} of {of}: {task.name}, scene {scene + 1}")
        for name, text in (("reset", task.reset), ("scene", task.scene(scene)), ("success", task.success)):
            if text:
                self._show(f"  {name:8} {text}")
        self._show("  space or Enter: begin   q: pause")
        self._await({" ", "\r", "\n"})

    def judge(self, task: TrialTask, outcome: DeploymentOutcome) -> TrialVerdict:
        """See `Judge`."""
        self._show(f"  it ended: {outcome.end}" + (f" ({task.credit})" if task.credit else ""))
        self._show(f"  {KEYS}")
        pressed = self._await({"s", "f", "r", *"123456789"})
        if pressed == "r":
            return TrialVerdict(None)
        return TrialVerdict({"s": 1.0, "f": 0.0}.get(pressed) if pressed in "sf" else int(pressed) / 10)

    def _await(self, wanted: set[str]) -> str:
        while True:
            pressed = self._key().lower()
            if pressed in ("q", ""):
                raise Paused
            if pressed in wanted:
                return pressed


def read_key() -> str:
    """The next key of the terminal, or of what stands for it the next character; empty: it is gone."""
    if not sys.stdin.isatty():
        return sys.stdin.read(1)
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        select.select([terminal], [], [])
        return os.read(terminal, 1).decode(errors="ignore")
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
