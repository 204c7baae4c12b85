"""Work that the loop must not wait for: in threads, or in lockstep with a simulated clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

from rlspec.deploy.clocks import Clock


class Job(Protocol):
    """Work on its way."""

    def done(self) -> bool:
        """Whether `result` returns at once."""
        ...

    def result(self) -> Any:
        """What the work returned; raises what it raised."""
        ...


class Worker(Protocol):
    """Takes one piece of work after the other."""

    def submit(self, work: Callable[[], Any]) -> Job:
        """Begin, or queue."""
        ...

    def close(self) -> None:
        """Take no more. What runs is not waited for."""
        ...


class ThreadWorker:
    """One daemon thread: work that hangs keeps neither the loop nor the process."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Queue work; returns at once."""
        future: Future[Any] = Future()
        self._queue.put((future, work))
        return future

    def close(self) -> None:
        """End the thread after what it has begun."""
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: B036 - handed to whoever asks for the result
                future.set_exception(error)


class LockstepWorker:
    """For simulated clocks: the work runs at once, time stands still, and the result is there `latency` s later."""

    def __init__(self, clock: Clock, latency: float = 0.0) -> None:
        self._clock, self._latency = clock, latency

    def submit(self, work: Callable[[], Any]) -> Job:
        """Run the work now."""
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return _Delayed(self._clock, self._clock.now() + self._latency, future)

    def close(self) -> None:
        """Nothing runs between calls."""


class _Delayed:
    def __init__(self, clock: Clock, due: float, future: Future[Any]) -> None:
        self._clock, self._due, self._future = clock, due, future

    def done(self) -> bool:
        return self._clock.now() >= self._due - 1e-9

    def result(self) -> Any:
        return self._future.result()
