"""Which action of which chunk is due: open loop, temporal ensemble, real-time chunking. Pure, on explicit times.

A policy answers an observation with a chunk of H actions, one per tick, the first for the moment of the observation.
The answer comes late. How many of its actions are past is counted, not estimated: an action is past when the robot was
sent an action in its place, so a robot that stood still while the policy thought starts a chunk at its first action.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlspec.deploy.arm.interfaces import Array

SchedulerName = Literal["open_loop", "ensemble", "rtc"]
_EPSILON = 1e-9  # of times that were added up


@dataclass(frozen=True)
class Timing:
    """How a scheduler plans.

    Attributes:
        period: Seconds per tick.
        n_action_steps: Actions that are carried out of one chunk before the next takes over (`ensemble` ignores it).
        stale: Seconds after its observation at which a chunk that has not begun is worthless.
        overlap: False: the next chunk is asked for when the last one is used up, and the robot waits (openpi's client).
        margin: Ticks by which a chunk is asked for earlier than the slowest recent inference demands.
        decay: `ensemble`: ACT's m in the weights exp(-m i), i counted from the oldest prediction.
        blend: `rtc`: actions over which the old chunk fades into the new one.
    """

    period: float
    n_action_steps: int
    stale: float = 1.5
    overlap: bool = True
    margin: int = 1
    decay: float = 0.01
    blend: int = 4


@dataclass(frozen=True)
class Request:
    """A question to the policy.

    Attributes:
        number: Of the chunk that will answer.
        observed: Time of the observation, seconds.
        consumed: Actions that the robot had been sent by then.
        prefix: (n, A) actions of the chunk in hand that come next where the answer is to continue them; the first
            `delay` of them will be carried out before it arrives. Empty: the answer is free.
        delay: Ticks that inference is expected to take.
    """

    number: int
    observed: float
    consumed: int
    prefix: Array
    delay: int


@dataclass(frozen=True)
class Chunk:
    """An answer: actions (H, A) to a request."""

    request: Request
    actions: Array


@dataclass(frozen=True)
class ScheduledStep:
    """The action of this tick: (A,), its chunk and place in it, and seconds since the chunk's observation."""

    action: Array
    chunk: int
    index: int
    age: float


class Scheduler:
    """What all schedulers share: one request at a time, counting, and dropping what came too late."""

    def __init__(self, timing: Timing, size: int, *, angles: Sequence[int] = ()) -> None:
        """Make an empty plan.

        Args:
            timing: See there.
            size: Numbers in an action; the last one is the gripper, which is never mixed.
            angles: Positions of numbers in an action that wrap at pi.
        """
        self.timing = timing
        self.consumed = 0
        self._size, self._angles = size, list(angles)
        self._requests = 0
        self._newest = -1
        self._oldest_welcome = 0
        self._in_flight = False
        self._latencies: deque[float] = deque(maxlen=16)

    # -- what the loop calls ------------------------------------------------------------------------------------------

    def wants(self) -> bool:
        """Whether the policy should be asked now."""
        return not self._in_flight and self._hungry()

    def request(self, now: float) -> Request:
        """Note that the policy is asked, with an observation of `now`."""
        self._in_flight = True
        request = Request(self._requests, now, self.consumed, self._left(), self.delay())
        self._requests += 1
        return request

    def receive(self, chunk: Chunk, now: float) -> str:
        """Take an answer; returns why it was dropped, or nothing."""
        request = chunk.request
        if request.number == self._requests - 1:  # the answer to a request that was given up lets no other one out
            self._in_flight = False
        self._latencies.append(now - request.observed)
        if request.number < self._oldest_welcome:
            return f"chunk {request.number} dropped: the robot stopped since its observation"
        if request.number <= self._newest:
            return f"chunk {request.number} dropped: out of order, after {self._newest}"
        if chunk.actions.ndim != 2 or chunk.actions.shape[1] != self._size or not len(chunk.actions):
            return f"chunk {request.number} dropped: shape {chunk.actions.shape}, not (H, {self._size})"
        if not np.isfinite(chunk.actions).all():
            return f"chunk {request.number} dropped: not finite"
        if now - request.observed > self.timing.stale + _EPSILON:
            return f"chunk {request.number} dropped: stale, {now - request.observed:.2f} s old"
        if self.consumed - request.consumed >= len(chunk.actions):
            return f"chunk {request.number} dropped: its {len(chunk.actions)} actions are past"
        self._newest = request.number
        self._accept(chunk)
        return ""

    def failed(self) -> None:
        """The request brought no answer."""
        self._in_flight = False

    def next(self, now: float) -> ScheduledStep | None:
        """The action of this tick, which counts as carried out; None: there is none."""
        step = self._take(now)
        self.consumed += step is not None
        return step

    def clear(self) -> None:
        """Forget all plans, also those on their way: the robot stopped."""
        # What is on its way was planned for an arm in motion, from where it no longer is.
        self._oldest_welcome = self._requests
        self._forget()

    def delay(self) -> int:
        """Ticks that inference takes: the slowest of the last sixteen."""
        # Not the mean: a chunk that comes later than it was expected leaves the arm without an action, and it stops.
        return math.ceil(max(self._latencies, default=0.0) / self.timing.period - _EPSILON)

    def expect(self, latency: float) -> None:
        """Tell what inference took before the start, in seconds."""
        self._latencies.append(latency)

    # -- what a scheduler decides -------------------------------------------------------------------------------------

    def _hungry(self) -> bool:
        raise NotImplementedError

    def _accept(self, chunk: Chunk) -> None:
        raise NotImplementedError

    def _take(self, now: float) -> ScheduledStep | None:
        raise NotImplementedError

    def _left(self) -> Array:
        """What the next chunk is to continue: here it is not."""
        return np.zeros((0, self._size))

    def _forget(self) -> None:
        raise NotImplementedError

    def _toward(self, start: Array, end: Array, share: Array) -> Array:
        """From `start` a share (broadcast) of the way to `end`; angles take the short way, the gripper is `end`'s."""
        difference = end - start
        wrapped = difference[..., self._angles]
        difference[..., self._angles] = (wrapped + math.pi) % (2 * math.pi) - math.pi
        mixed = start + share * difference
        mixed[..., -1] = end[..., -1]
        return mixed


class OpenLoop(Scheduler):
    """`n_action_steps` of a chunk, then the next chunk, which was asked for early enough."""

    def __init__(self, timing: Timing, size: int, *, angles: Sequence[int] = ()) -> None:
        super().__init__(timing, size, angles=angles)
        self._forget()

    def _forget(self) -> None:
        self._chunk: Chunk | None = None
        self._waiting: Chunk | None = None
        self._index = self._end = 0

    def _hungry(self) -> bool:
        lead = self.delay() + self.timing.margin if self.timing.overlap else 0
        return self._waiting is None and self._end - self._index <= lead

    def _accept(self, chunk: Chunk) -> None:
        self._waiting = chunk

    def _take(self, now: float) -> ScheduledStep | None:
        if self._index >= self._end:
            self._begin(now)
        if self._chunk is None:
            return None
        index, self._index = self._index, self._index + 1
        return _step(self._chunk, self._chunk.actions[index], index, now)

    def _begin(self, now: float) -> None:
        chunk, self._chunk, self._waiting = self._waiting, None, None
        self._index = self._end = 0
        if chunk is None or now - chunk.request.observed > self.timing.stale + _EPSILON:
            return
        past = self.consumed - chunk.request.consumed  # carried out from the old chunk while the policy thought
        if past < len(chunk.actions):
            self._chunk, self._index = chunk, past
            self._end = min(past + self.timing.n_action_steps, len(chunk.actions))


class Ensemble(Scheduler):
    """ACT's temporal ensemble: the weighted mean of all chunks' predictions for this tick; the newest one's gripper."""

    def __init__(self, timing: Timing, size: int, *, angles: Sequence[int] = ()) -> None:
        super().__init__(timing, size, angles=angles)
        self._forget()

    def _forget(self) -> None:
        self._chunks: list[Chunk] = []

    def _hungry(self) -> bool:
        return True

    def _accept(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)

    def _take(self, now: float) -> ScheduledStep | None:
        self._chunks = [chunk for chunk in self._chunks if self._place(chunk) < len(chunk.actions)]
        if not self._chunks:
            return None
        newest = self._chunks[-1]
        predictions = np.stack([chunk.actions[self._place(chunk)] for chunk in self._chunks])
        weights = np.exp(-self.timing.decay * np.arange(len(predictions)))
        # Relative to the newest prediction, so that angles near pi and -pi have a mean between them.
        towards = self._toward(np.broadcast_to(predictions[-1], predictions.shape), predictions, np.ones(()))
        action = np.average(towards, axis=0, weights=weights)
        action[-1] = predictions[-1, -1]
        return _step(newest, action, self._place(newest), now)

    def _place(self, chunk: Chunk) -> int:
        return self.consumed - chunk.request.consumed


class RealTimeChunking(Scheduler):
    """The newest chunk takes over at once, at the action that is due; what remains of the old one fades out.

    The request tells the policy what is committed (`Request.prefix`, `delay`), for those that guide by it.
    """

    def __init__(self, timing: Timing, size: int, *, angles: Sequence[int] = ()) -> None:
        super().__init__(timing, size, angles=angles)
        self._forget()

    def _forget(self) -> None:
        self._chunk: Chunk | None = None
        self._plan: Array = np.zeros((0, self._size))  # the chunk's actions, blended; row 0 is the chunk's row 0
        self._start = 0  # the value of `consumed` for row 0
        self._used = 0

    def _left(self) -> Array:
        return self._plan[self.consumed - self._start :]

    def _hungry(self) -> bool:
        enough = max(self.timing.n_action_steps - self.delay() - self.timing.margin, 1)
        return self._chunk is None or self._used >= enough or len(self._left()) <= self.delay() + self.timing.margin

    def _accept(self, chunk: Chunk) -> None:
        old = self._left()
        past = self.consumed - chunk.request.consumed
        plan = chunk.actions.copy()
        count = min(self.timing.blend, len(old), len(plan) - past)
        if count:
            share = (np.arange(1, count + 1) / (count + 1))[:, None]
            plan[past : past + count] = self._toward(old[:count], plan[past : past + count], share)
        self._chunk, self._plan, self._start, self._used = chunk, plan, chunk.request.consumed, 0

    def _take(self, now: float) -> ScheduledStep | None:
        index = self.consumed - self._start
        if self._chunk is None or index >= len(self._plan):
            return None
        self._used += 1
        return _step(self._chunk, self._plan[index], index, now)


SCHEDULERS: dict[str, type[Scheduler]] = {"open_loop": OpenLoop, "ensemble": Ensemble, "rtc": RealTimeChunking}


def _step(chunk: Chunk, action: Array, index: int, now: float) -> ScheduledStep:
    return ScheduledStep(action, chunk.request.number, index, now - chunk.request.observed)
