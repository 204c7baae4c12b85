"""One thread that owns the policy: a bounded queue before it, several sessions' requests in one forward pass."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.native_threads import leave
from rlspec.serving.policy import BatchPolicy, Observation, fault_of_actions


class QueueFull(Exception):
    """More requests wait than may."""


class Expired(Exception):
    """The deadline passed before the policy was asked."""


class PolicyFailed(Exception):
    """The policy raised, or gave something that is no chunk of actions."""


@dataclass(frozen=True)
class Answer:
    """What the policy gave for one request.

    Attributes:
        actions: (horizon, numbers of an action).
        queue_s: How long the request waited.
        infer_s: What the policy took for the whole batch.
        batch: Requests in it.
    """

    actions: NDArray[np.float32]
    queue_s: float
    infer_s: float
    batch: int


class Ticket:
    """A request on its way. Made and read by the event loop's thread."""

    def __init__(self, observation: Observation, deadline: float) -> None:
        """Keep a request.

        Args:
            observation: What is asked.
            deadline: Time on the monotonic clock after which nobody waits for the answer.
        """
        self.observation = observation
        self.deadline = deadline
        self.queued_at = time.monotonic()
        self.abandoned = False
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Answer] = self._loop.create_future()

    def abandon(self) -> None:
        """Nobody waits any more: it will not be computed, or its answer is thrown away."""
        self.abandoned = True

    def settle(self, result: Answer | Exception) -> None:
        """Deliver, from any thread; to nobody where the server has ended without waiting."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._settle, result)

    def _settle(self, result: Answer | Exception) -> None:
        if self.answer.done() or self.abandoned:
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class Batcher:
    """Feeds a policy from a queue, in a thread of its own."""

    def __init__(
        self, policy: BatchPolicy, *, max_batch: int, max_queue: int, window_s: float, sessions: Callable[[], int]
    ) -> None:
        """Prepare; `start` starts the thread.

        Args:
            policy: Touched by the thread alone.
            max_batch: Largest batch, where the policy can take as many.
            max_queue: Requests that may wait.
            window_s: How long the first request of a batch waits for others.
            sessions: How many there are: with all of their requests at hand there is nothing to wait for.
        """
        self._policy = policy
        self._max_batch = max(1, min(max_batch, policy.max_batch))
        self._max_queue = max_queue
        self._window_s = window_s
        self._sessions = sessions
        self._queue: deque[Ticket] = deque()
        self._forget: deque[int] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def busy_s(self) -> float:
        """How long the policy has been computing the present batch."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, ticket: Ticket) -> None:
        """Put a request into the queue.

        Raises:
            QueueFull: There is no room.
        """
        with self._changed:
            if self._stopping or len(self._queue) >= self._max_queue:
                raise QueueFull
            self._queue.append(ticket)
            self._changed.notify()

    def forget(self, session: int) -> None:
        """Tell the policy that a session begins anew, before its next request."""
        with self._changed:
            self._forget.append(session)
            self._changed.notify()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more requests; the thread ends when it has answered what is queued."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        leave(self._thread, 0.0)

    def abandon(self) -> None:
        """Answer nothing that has not been begun, and stop."""
        with self._changed:
            self._queue.clear()
        self.stop()

    def _work(self) -> None:
        while True:
            batch, forgotten = self._take()
            for session in forgotten:
                self._policy.forget(session)
            if batch:
                self._answer(batch)
            elif not forgotten:
                return

    def _take(self) -> tuple[list[Ticket], list[int]]:
        """The next batch and the sessions to forget before it; nothing of either at the end."""
        with self._changed:
            while not self._queue and not self._forget and not self._stopping:
                self._changed.wait()
            if self._queue:
                self._gather(self._queue[0].queued_at + self._window_s)
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._max_batch))]
            forgotten = list(self._forget)
            self._forget.clear()
        return batch, forgotten

    def _gather(self, until: float) -> None:
        """Wait for the other sessions' requests, as long as one may."""
        while len(self._queue) < min(self._max_batch, self._sessions()) and not self._stopping:
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _answer(self, batch: list[Ticket]) -> None:
        start = time.monotonic()
        asked = []
        for ticket in batch:
            if ticket.deadline <= start:
                ticket.settle(Expired())
            elif not ticket.abandoned:
                asked.append(ticket)
        if not asked:
            return
        self._busy_since = start
        results = self._infer([ticket.observation for ticket in asked])
        self._busy_since = None
        took = time.monotonic() - start
        for ticket, result in zip(asked, results, strict=True):
            if isinstance(result, Exception):
                ticket.settle(result)
            else:
                ticket.settle(Answer(result, start - ticket.queued_at, took, len(asked)))

    def _infer(self, observations: list[Observation]) -> list[NDArray[np.float32] | Exception]:
        """The policy's answers; where a batch fails, each request by itself, so that one cannot fail the others."""
        try:
            results = self._policy.infer(observations)
            if len(results) != len(observations):
                raise PolicyFailed(f"the policy gave {len(results)} answers to {len(observations)} requests")
        except Exception as error:  # a model may raise anything; the request fails, not the server
            if len(observations) > 1:
                return [self._infer([each])[0] for each in observations]
            return [error if isinstance(error, PolicyFailed) else PolicyFailed(_line(error))]
        return [self._checked(result) for result in results]

    def _checked(self, actions: Any) -> NDArray[np.float32] | Exception:
        fault = fault_of_actions(actions, self._policy.spec)
        return PolicyFailed(fault) if fault else actions


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
