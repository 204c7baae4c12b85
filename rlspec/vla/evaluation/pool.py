"""Worker processes that stay, and a queue of episodes: a worker that dies or hangs is replaced."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from rlspec.cores import cores
from rlspec.errors import ConfigError, UserError
from rlspec.vla.evaluation.jobs import (
    Alive,
    Done,
    EvaluationJob,
    GroupDone,
    GroupJob,
    Job,
    JobRefused,
    Raised,
    Reply,
    WorkerSettings,
)
from rlspec.vla.evaluation.simulator import Simulator
from rlspec.vla.evaluation.worker import serve

SILENCE_SECONDS = 600.0  # loading a large policy on a busy machine takes minutes; a step never does
HOPELESS = 3  # episodes that crashed, and none that did not: the evaluation is given up
_ATTEMPTS = 2
_POLL_SECONDS = 0.25


class Stopped(Exception):
    """The evaluation was abandoned by its owner."""


@dataclass
class _Worker:
    process: Any  # multiprocessing has no public type for a context's process
    connection: Connection
    job: Job | None = None
    task: str | None = None  # of its environment
    heard: float = field(default_factory=time.monotonic)
    ready: bool = False  # its imports are done

    def end(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


class WorkerPool:
    """Runs episodes in processes of its own, started when they are first needed.

    Args:
        simulator: How workers make environments.
        count: Processes.
        warn: Gets a line about every worker that died.
        silence: Seconds without a sign of life after which a worker counts as hung.
        stopped: Asked again and again whether to end, as after `stop`.
    """

    def __init__(
        self,
        simulator: Simulator,
        count: int,
        warn: Callable[[str], None],
        *,
        silence: float = SILENCE_SECONDS,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = WorkerSettings(simulator, threads=max(1, cores() // count))
        self._count = count
        self._warn = warn
        self._silence = silence
        self._workers: list[_Worker] = []
        self._stop = threading.Event()
        self._stopped = stopped

    def run(self, jobs: Sequence[EvaluationJob], on_done: Callable[[EvaluationJob, Done], None]) -> None:
        """Run episodes; results come in the order in which they are reached.

        Raises:
            UserError: A worker refused a job, or none can be finished.
            Stopped: `stop` was called.
        """
        self._run(jobs, on_done)

    def run_groups(self, jobs: Sequence[GroupJob], on_done: Callable[[GroupJob, GroupDone], None]) -> None:
        """The same for groups of episodes."""
        self._run(jobs, on_done)

    def _run(self, jobs: Sequence[Any], on_done: Callable[[Any, Any], None]) -> None:
        """Jobs of one kind."""
        queue, attempts, crashed, finished = deque(jobs), dict.fromkeys(map(id, jobs), 0), 0, 0
        left = len(queue)
        try:
            while left:
                self._assign(queue)
                for worker, message in self._listen():
                    job = worker.job
                    assert job is not None
                    if isinstance(message, Done | GroupDone):
                        worker.job, finished, left = None, finished + 1, left - 1
                        on_done(job, message)
                        continue
                    if isinstance(message, JobRefused):
                        raise ConfigError(message.text)
                    assert isinstance(message, Raised)
                    self._replace(worker)
                    attempts[id(job)] += 1
                    again = attempts[id(job)] < _ATTEMPTS
                    self._tell(job, message, again=again)
                    if again:
                        queue.appendleft(job)
                        continue
                    crashed, left = crashed + 1, left - 1
                    if crashed >= HOPELESS and not finished:
                        raise UserError(f"{crashed} episodes crashed and none came to its end: {message.reason}")
                    on_done(job, job.crashed(message.reason))
        except BaseException:
            self._end_all()  # what is under way would answer into the next evaluation
            raise

    def _tell(self, job: Job, message: Raised, *, again: bool) -> None:
        where = f"{job.plan.task}, episode {job.plan.index}"
        then = "it is run once more" if again else "counted as a failure (crashed)"
        self._warn(f"{where}: {message.reason}; {then}")
        if not again and message.traceback:
            self._warn(message.traceback.rstrip())

    def _assign(self, queue: deque[Job]) -> None:
        """Give idle workers work, of their own task first: another task means another environment."""
        idle = [worker for worker in self._workers if worker.job is None]
        while queue and len(idle) < len(queue) and len(self._workers) < self._count:
            worker = self._start()
            self._workers.append(worker)
            idle.append(worker)
        for worker in idle:
            if not queue:
                return
            job = self._choose(queue, worker)
            queue.remove(job)
            worker.job, worker.task, worker.heard = job, job.plan.task, time.monotonic()
            try:
                worker.connection.send(job)
            except (BrokenPipeError, ConnectionResetError):
                continue  # `_listen` notices the death

    def _choose(self, queue: deque[Job], worker: _Worker) -> Job:
        others = {other.task for other in self._workers if other is not worker}
        own = next((job for job in queue if job.plan.task == worker.task), None)
        return own or next((job for job in queue if job.plan.task not in others), queue[0])

    def _start(self) -> _Worker:
        context = get_context("spawn")  # GL does not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._settings), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _listen(self) -> list[tuple[_Worker, Reply]]:
        """What busy workers say, their deaths and their silence included."""
        busy = [worker for worker in self._workers if worker.job is not None]
        ready = set(wait([worker.connection for worker in busy], timeout=_POLL_SECONDS))
        if self._stop.is_set() or self._stopped():
            raise Stopped
        heard: list[tuple[_Worker, Reply]] = []
        for worker in busy:
            if worker.connection in ready:
                worker.heard, worker.ready = time.monotonic(), True
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    heard.append((worker, Raised(self._death_of(worker), "")))
                    continue
                if not isinstance(message, Alive):
                    heard.append((worker, message))
            elif time.monotonic() - worker.heard > (self._silence if worker.ready else SILENCE_SECONDS):
                heard.append((worker, Raised(f"the worker gave no sign of life for {self._silence:g} s", "")))
        return heard

    @staticmethod
    def _death_of(worker: _Worker) -> str:
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        cause = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        hint = " (out of memory? use fewer evaluation.workers)" if code == -9 else ""
        return f"the worker died: {cause}{hint}"

    def _replace(self, worker: _Worker) -> None:
        worker.end()
        self._workers.remove(worker)

    def stop(self) -> None:
        """Make a `run` in another thread end soon."""
        self._stop.set()

    def close(self) -> None:
        """End all workers; a later `run` would start new ones."""
        idle = [worker for worker in self._workers if worker.job is None]
        for worker in idle:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
        for worker in idle:
            worker.process.join(timeout=5)
        self._end_all()

    def _end_all(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()
