"""Several killable grading processes behind one thread-safe object, for scripts, threads and asyncio alike."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType

from rlspec.errors import ConfigError
from rlspec.rlvr.grading.process import GraderProcess, GraderUnavailable, Item
from rlspec.rlvr.grading.verdict import Reason, Verdict

MAX_TIMEOUT = 3.0
CHUNK_ITEMS = 32
CHUNK_CHARACTERS = 200_000
TRIPPED_SHARE = 0.05  # of a batch that timed out: something is wrong with the data or the machine

BARE, COMPLETION, THINKING = 0, 1, 2  # as in worker.py, which is not imported here

_Job = tuple[Sequence[Item], "Future[list[Verdict]]"]


class GraderPool:
    """Grades in `workers` processes; every verdict within `timeout` seconds of the start of its grading.

    Processes start in the background when the pool is made. With `warm` they import computer algebra first (one to
    three seconds); without, they answer plain questions at once and import when the first symbolic one comes, which
    then takes that much longer: right for golds that are plain numbers.

    Use it as a context manager (which waits until the processes are ready), or call `close`; at the exit of the
    interpreter, or when the parent dies, the processes end by themselves.

    Attributes:
        counts: how many verdicts had each reason, since the start.
        timeout_share: the share of timeouts in the last finished batch (0 to 1).
    """

    def __init__(self, workers: int = 2, timeout: float = MAX_TIMEOUT, *, warm: bool = True) -> None:
        if workers < 1:
            raise ConfigError(f"workers={workers}: at least 1 is needed")
        if not 0 < timeout <= MAX_TIMEOUT:
            raise ConfigError(f"timeout={timeout}: more than 0 and at most {MAX_TIMEOUT} seconds are allowed")
        self.counts: Counter[Reason] = Counter()
        self.timeout_share = 0.0
        self._owner = os.getpid()
        self._lock, self._gate = threading.Lock(), threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._processes = [GraderProcess(timeout, warm=warm) for _ in range(workers)]
        self._started = [threading.Event() for _ in self._processes]
        threads = [
            threading.Thread(target=_work, args=(process, self._jobs, started), name="grader", daemon=True)
            for process, started in zip(self._processes, self._started, strict=True)
        ]
        for thread in threads:
            thread.start()
        self._finalizer = weakref.finalize(
            self, _shut_down, os.getpid(), self._gate, self._jobs, self._processes, threads
        )

    def __enter__(self) -> GraderPool:
        self.wait_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def restarts(self) -> int:
        """How often a grading process had to be replaced."""
        return sum(process.restarts for process in self._processes)

    @property
    def tripped(self) -> bool:
        """Whether more than 5% of the last batch timed out: stop, or look at the data."""
        return self.timeout_share > TRIPPED_SHARE

    @property
    def worker_pids(self) -> list[int]:
        """Process groups of the workers."""
        return [process.pid for process in self._processes]

    def wait_ready(self) -> None:
        """Wait until every process has started (or failed to: then grading raises)."""
        for started in self._started:
            started.wait()

    def grade_many(self, items: Sequence[tuple[str, str]], *, thinking: bool = False) -> list[Verdict]:
        """Verdicts on (completion, gold) pairs, in order.

        Raises:
            GraderUnavailable: the grading processes do not start.
        """
        return self._wait(self._submit(items, THINKING if thinking else COMPLETION))

    def grade_answers(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts on (bare answer, gold) pairs, in order."""
        return self._wait(self._submit(pairs, BARE))

    async def agrade_many(self, items: Sequence[tuple[str, str]], *, thinking: bool = False) -> list[Verdict]:
        """As `grade_many`, without blocking the event loop."""
        return await self._gather(self._submit(items, THINKING if thinking else COMPLETION))

    async def agrade_answers(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """As `grade_answers`, without blocking the event loop."""
        return await self._gather(self._submit(pairs, BARE))

    def close(self) -> None:
        """End the processes. Jobs that still wait get an error."""
        self._finalizer()

    def _submit(self, pairs: Sequence[tuple[str, str]], mode: int) -> list[Future[list[Verdict]]]:
        if os.getpid() != self._owner:
            raise RuntimeError("this GraderPool belongs to the parent process: make one in each process")
        chunks = _chunks([(mode, text, gold) for text, gold in pairs])
        futures: list[Future[list[Verdict]]] = [Future() for _ in chunks]
        with self._gate:  # a job that enters is either done or refused by `_shut_down`, never forgotten
            if not self._finalizer.alive:
                raise RuntimeError("this GraderPool is closed")
            for job in zip(chunks, futures, strict=True):
                self._jobs.put(job)
        return futures

    def _wait(self, futures: list[Future[list[Verdict]]]) -> list[Verdict]:
        return self._count([verdict for future in futures for verdict in future.result()])

    async def _gather(self, futures: list[Future[list[Verdict]]]) -> list[Verdict]:
        parts = await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
        return self._count([verdict for part in parts for verdict in part])

    def _count(self, verdicts: list[Verdict]) -> list[Verdict]:
        with self._lock:
            self.counts.update(verdict.reason for verdict in verdicts)
            timeouts = sum(verdict.reason == "timeout" for verdict in verdicts)
            self.timeout_share = timeouts / len(verdicts) if verdicts else 0.0
        return verdicts


def _chunks(items: list[Item]) -> list[list[Item]]:
    """Parts of at most `CHUNK_ITEMS` items and, unless an item alone is longer, `CHUNK_CHARACTERS` characters."""
    chunks: list[list[Item]] = []
    room = 0
    for item in items:
        size = len(item[1]) + len(item[2])
        if not chunks or len(chunks[-1]) == CHUNK_ITEMS or size > room:
            chunks.append([])
            room = CHUNK_CHARACTERS
        chunks[-1].append(item)
        room -= size
    return chunks


def _work(process: GraderProcess, jobs: queue.SimpleQueue[_Job | None], started: threading.Event) -> None:
    """A thread's life: hand chunks to its process until None comes."""
    with contextlib.suppress(GraderUnavailable):  # the first job tries again, and its caller hears of it
        process.wait_ready()
    started.set()
    while (job := jobs.get()) is not None:
        items, future = job
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(process.grade(items))
        except BaseException as error:  # the waiting caller gets it, whatever it is
            future.set_exception(error)


def _shut_down(
    owner: int,
    gate: threading.Lock,
    jobs: queue.SimpleQueue[_Job | None],
    processes: list[GraderProcess],
    threads: list[threading.Thread],
) -> None:
    """End threads and processes; in a forked child of the owner, leave the owner's processes alone."""
    if os.getpid() != owner:
        return
    with gate, contextlib.suppress(queue.Empty):
        while True:
            job = jobs.get_nowait()
            if job is not None and job[1].set_running_or_notify_cancel():
                job[1].set_exception(RuntimeError("the GraderPool was closed"))
    for _ in threads:
        jobs.put(None)
    for process in processes:
        process.kill()
    for thread in threads:
        thread.join(timeout=MAX_TIMEOUT)
    for process in processes:
        process.close()
