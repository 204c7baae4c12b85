"""The gripper's lane: never blended, decided by thresholds with hysteresis, and never asked too often."""

from __future__ import annotations

import math
from collections.abc import Callable

from pydantic import Field

from rlspec.config.schema import Section
from rlspec.deploy.workers import Job, Worker
from rlspec.errors import RobotError


class GripperSettings(Section):
    """How closures become commands.

    Attributes:
        binary: Open or close fully (DROID, LIBERO); False: the closure itself.
        close_above, open_below: Closures, 0 open to 1 closed, at which a binary hand changes its mind.
        dwell: Seconds for which a binary hand keeps its mind.
        interval: Least seconds between two commands.
        deadband: Least change of a closure that is worth a command.
        timeout: Seconds after which a hand that does not take its command is a fault.
    """

    binary: bool = True
    close_above: float = Field(0.6, ge=0, le=1)
    open_below: float = Field(0.4, ge=0, le=1)
    dwell: float = Field(0.4, ge=0)
    interval: float = Field(0.1, ge=0)
    deadband: float = Field(0.02, gt=0, le=1)
    timeout: float = Field(2.0, gt=0)


class GripperLane:
    """Closures in, commands out, on explicit times."""

    def __init__(self, settings: GripperSettings) -> None:
        self.settings = settings
        self.closure: float | None = None  # last command
        self.restart()

    def restart(self) -> None:
        """The hand may have been stopped or moved: the next decision is a command, whatever was commanded before.

        Where it stands does not count: a hand that holds something is half open, and one at 0.4 is not open.
        """
        self._commanded = False
        self._sent_at = -float("inf")

    def decide(self, wanted: float, now: float) -> float | None:
        """The closure to command now, or None: nothing."""
        settings = self.settings
        if not math.isfinite(wanted):
            return None
        closure = self._switch(wanted) if settings.binary else min(max(wanted, 0.0), 1.0)
        if closure is None:
            return None
        if self._commanded and self.closure is not None and abs(closure - self.closure) < settings.deadband:
            return None
        if now - self._sent_at < (settings.dwell if settings.binary else settings.interval):
            return None
        self.closure, self._sent_at, self._commanded = closure, now, True
        return closure

    def _switch(self, wanted: float) -> float | None:
        """Open, closed, or what it was: between the thresholds the first decision is still to come."""
        if wanted > self.settings.close_above:
            return 1.0
        return 0.0 if wanted < self.settings.open_below else self.closure


class GripperDrive:
    """Gives the lane's commands to the hand, which may take its time or never answer: the loop does not wait for it."""

    def __init__(
        self,
        lane: GripperLane,
        grip: Callable[[float], object],
        worker: Worker,
        watch: Callable[[], str] = lambda: "",
    ) -> None:
        """Connect a lane to a hand.

        Args:
            lane: Decides.
            grip: Commands the hand; may block.
            worker: In which it does.
            watch: What the hand says is wrong, at any time; it may come to itself within the lane's `timeout`.
        """
        self.lane = lane
        self._grip, self._worker, self._watch = grip, worker, watch
        self._wrong_since: float | None = None
        self._job: Job | None = None
        self._since = 0.0
        self.error = ""

    def drive(self, wanted: float, now: float) -> float | None:
        """Command a closure where the lane says so; returns it. While the hand is busy the lane waits."""
        self.problem(now)
        if self._job is not None:
            return None
        closure = self.lane.decide(wanted, now)
        if closure is not None:
            self._job, self._since = self._worker.submit(lambda: self._grip(closure)), now
        return closure

    def problem(self, now: float) -> str:
        """What is wrong with the hand, in words; empty: nothing."""
        if self._job is not None and self._job.done():
            job, self._job = self._job, None
            try:
                job.result()
            except RobotError as error:
                self.error = f"gripper: {error}"
        wrong = self._watch()
        self._wrong_since = None if not wrong else now if self._wrong_since is None else self._wrong_since
        if self._wrong_since is not None and now - self._wrong_since > self.lane.settings.timeout:
            self.error = self.error or wrong
        if self.error:
            return self.error
        if self._job is not None and now - self._since > self.lane.settings.timeout:
            return f"gripper: it has not taken its command for {now - self._since:.1f} s"
        return ""
