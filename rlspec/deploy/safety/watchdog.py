"""When the robot must not go on: pure judgements on explicit times, and a thread that watches the loop itself."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field

from rlspec.config.schema import Section
from rlspec.deploy.arm.interfaces import Frame
from rlspec.deploy.clocks import Clock
from rlspec.deploy.outcome import PACE_TOLERANCE, slow_words

Judgement = Literal["run", "hold", "stop", "end"]
_EPSILON = 1e-6


class WatchdogSettings(Section):
    """Ages in seconds, and how often the robot is helped up.

    At 15 Hz the actions are 67 ms apart. From the first tick without a fresh one on (67 ms after the last action) the
    safety filter brakes the targets; 200 ms after the last action, two empty ticks later, the robot is stopped, which
    also ends what a soft law still creeps towards its target. Commands expire by themselves after `safety.expires`, the
    same 200 ms: that is what stops the robot when this process cannot.

    Attributes:
        stop_after: Age of the last fresh action at which the robot is stopped (at least two ticks).
        give_up: Age of the last fresh action at which the run ends.
        camera: Age of the newest picture of a camera that the policy needs at which the robot is stopped.
        heartbeat: Seconds within which the policy server must answer a ping; else the robot is stopped until it does.
            Raise it on a slow network; null: no pings.
        late: Lateness of a tick after which plans are thrown away.
        recoveries: Reflexes and errors that are acknowledged within `window` seconds; one more ends the run.
        window: See `recoveries`.
    """

    stop_after: float = Field(0.2, gt=0)
    give_up: float = Field(5.0, gt=0)
    camera: float = Field(0.15, gt=0)
    heartbeat: float | None = Field(0.1, gt=0)
    late: float = Field(0.2, gt=0)
    recoveries: int = Field(3, ge=0)
    window: float = Field(60.0, gt=0)


class Watchdog:
    """Ages of actions: run, hold, stop, end."""

    def __init__(self, settings: WatchdogSettings, now: float, period: float) -> None:
        self.settings = settings
        self._stop_after = max(settings.stop_after, 2 * period)
        self._since = now

    def fed(self, now: float) -> None:
        """A fresh action was carried out."""
        self._since = now

    def rested(self, now: float) -> None:
        """There was good reason for no action until now, such as a recovery."""
        self._since = now

    def judge(self, now: float, *, fresh: bool, stopped: bool) -> Judgement:
        """What this tick may do.

        Args:
            now: Seconds.
            fresh: There is an action for this tick.
            stopped: The robot was stopped already, or has not begun: it is not held first.
        """
        age = now - self._since
        if age >= self.settings.give_up - _EPSILON and not fresh:
            return "end"
        if fresh:
            return "run"
        return "stop" if stopped or age >= self._stop_after - _EPSILON else "hold"


def stalled_camera(frames: Mapping[str, Frame], needed: Mapping[str, str], now: float, limit: float) -> str:
    """Which camera does not deliver, in words; empty: all do.

    Args:
        frames: Newest picture of each camera.
        needed: Key of the policy -> camera.
        now: Seconds.
        limit: Seconds that a picture may be old.
    """
    for camera in needed.values():
        if camera not in frames:
            return f"camera {camera} delivers nothing"
        if now - frames[camera].time > limit + _EPSILON:
            return f"camera {camera} stalls: its newest picture is {1e3 * (now - frames[camera].time):.0f} ms old"
    return ""


class WallWatch:
    """Tells jumps of the wall clock. They move nothing: the loop runs on the monotonic clock, only dates are wrong."""

    def __init__(self, tolerance: float = 0.5) -> None:
        self._tolerance = tolerance
        self._offset: float | None = None

    def look(self, now: float, wall: float) -> str:
        """Words for a jump since the last look; empty: none."""
        offset, self._offset = self._offset, wall - now
        jump = 0.0 if offset is None else self._offset - offset
        return f"the wall clock jumped by {jump:+.1f} s" if abs(jump) > self._tolerance else ""


class PaceWatch:
    """Tells when the robot's own clock does not keep ours: a simulation that the machine is too slow for.

    Attributes:
        overall: Seconds of its clock per second of ours since the first look; None: too early to say.
    """

    def __init__(self, window: float = 2.0) -> None:
        self._window = window
        self._first: tuple[float, float] | None = None
        self._told = False
        self.overall: float | None = None

    def look(self, now: float, robot_time: float) -> list[str]:
        """What there is to tell, once; empty: nothing."""
        if self._first is None:
            self._first = now, robot_time
        elapsed = now - self._first[0]
        if elapsed < self._window:
            return []
        self.overall = (robot_time - self._first[1]) / elapsed
        if self._told or abs(self.overall - 1) <= PACE_TOLERANCE:
            return []
        self._told = True
        return [slow_words(self.overall)]


class Recoveries:
    """Counts how often the robot was helped up."""

    def __init__(self, settings: WatchdogSettings) -> None:
        self._settings = settings
        self._times: deque[float] = deque()

    def another(self, now: float) -> bool:
        """Whether the robot may be helped up once more; counts it."""
        while self._times and now - self._times[0] > self._settings.window:
            self._times.popleft()
        if len(self._times) >= self._settings.recoveries:
            return False
        self._times.append(now)
        return True


class Supervisor:
    """A thread that stops the robot when the loop's thread does not come back.

    It covers a loop that hangs in a call. A process that dies or is suspended is covered by the commands, which expire.
    """

    def __init__(self, clock: Clock, limit: float, stop: Callable[[], object], *, poll: float = 0.02) -> None:
        self._clock, self._limit, self._stop, self._poll = clock, limit, stop, poll
        self._beat = clock.now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self.interventions = 0

    def start(self) -> None:
        """Begin to watch."""
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        """The loop lives."""
        self._beat = self._clock.now()

    def close(self) -> None:
        """Watch no more."""
        self._ended.set()

    def _watch(self) -> None:
        handled = -1.0
        while not self._ended.wait(self._poll):
            beat = self._beat
            if self._clock.now() - beat > self._limit and beat != handled:
                handled = beat
                self.interventions += 1
                self._stop()
