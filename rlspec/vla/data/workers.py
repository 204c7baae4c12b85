"""Attempts at demonstrations in worker processes, which write what they reach into the staging folder."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rlspec.errors import ConfigError, DataError
from rlspec.vla.data.recording import Disturbance, plan_episode, replay_with_images
from rlspec.vla.data.staging import Staging

HOPELESS = 10  # attempts without a single success after which a task is given up


@dataclass(frozen=True)
class EpisodeJob:
    """What all attempts have in common."""

    suite: str
    tasks: tuple[str, ...]
    options: Mapping[str, Any]
    seed: int
    disturbance: Disturbance
    video: bool
    staging: Path


@dataclass
class Progress:
    """Attempts of one task. Those that are known or under way are always the first ones without a gap."""

    index: int
    wanted: int
    outcomes: dict[int, str] = field(default_factory=dict)  # attempt -> kind of failure, empty for a success
    started: int = 0

    @property
    def successes(self) -> list[int]:
        """Attempts that succeeded, in order."""
        return sorted(attempt for attempt, kind in self.outcomes.items() if not kind)

    @property
    def failures(self) -> list[str]:
        """Kinds of failure, in the order of the attempts."""
        return [kind for _, kind in sorted(self.outcomes.items()) if kind]

    def needs_more(self) -> bool:
        """Whether the attempts under way could not be enough: what is started is the same for any number of workers."""
        return len(self.successes) + self.started - len(self.outcomes) < self.wanted

    def is_done(self) -> bool:
        """Whether there are enough successes and nothing is under way."""
        return len(self.outcomes) == self.started and not self.needs_more()


def attempt(job: EpisodeJob, task: int, number: int) -> str:
    """Try one demonstration in this process.

    Returns:
        The kind of failure, empty for a success.

    Raises:
        ConfigError: The environment cannot be made.
        DataError: The environment does not repeat itself.
    """
    env, expert = _environment(job, task)
    staging = Staging(job.staging)
    plan = plan_episode(env, expert, job.seed + number, job.disturbance)
    if plan.failure:
        staging.save_failure(task, number, plan.failure)
    else:
        rate = round(env.unwrapped.control_hz) if job.video else None
        staging.save(task, number, replay_with_images(env, plan, video_fps=rate))
    return plan.failure


class _Made(threading.local):
    """The environment that attempts of this worker go on using; renderers do not bear two in one process."""

    key: tuple[str, str, str] | None = None
    env: Any = None
    expert: Any = None


_made = _Made()


def _environment(job: EpisodeJob, task: int) -> tuple[Any, Any]:
    key = (job.suite, job.tasks[task], repr(job.options))
    if _made.key != key:
        if _made.env is not None:
            _made.env.close()
        _made.key, _made.env = None, make_environment(job.suite, job.tasks[task], job.options)
        _made.expert = make_demonstrator(_made.env)
        _made.key = key
    return _made.env, _made.expert


def make_environment(suite: str, task: str, options: Mapping[str, Any]) -> Any:
    """An environment of `rlspec_envs`.

    Raises:
        ConfigError: It cannot be made; the line says why.
    """
    import rlspec_envs
    from rlspec_envs.errors import EnvironmentUnavailable

    try:
        return rlspec_envs.make_env(suite, task, **options)
    except (ValueError, EnvironmentUnavailable) as error:
        raise ConfigError(f"env: {error}") from None


def make_demonstrator(env: Any) -> Any:
    """The scripted expert of an environment.

    Raises:
        ConfigError: The task has none.
    """
    import rlspec_envs

    try:
        return rlspec_envs.make_expert(env)
    except ValueError as error:
        raise ConfigError(f"env: {error}") from None


Report = Callable[[Sequence[Progress]], None]
Pool = Callable[[int], AbstractContextManager[Executor]]


def run_attempts(
    job: EpisodeJob, episodes: int, workers: int, report: Report, pool: Pool | None = None
) -> Iterator[tuple[int, int]]:
    """Try until every task has enough successes.

    Args:
        job: what to do.
        episodes: successes wanted per task.
        workers: processes.
        report: called after every attempt.
        pool: makes the executor; None: processes.

    Yields:
        (task, attempt) of the successes, in order, as soon as they and all before them are there.

    Raises:
        DataError: The expert fails too often, or a worker died.
        ConfigError: The environment cannot be made.
    """
    tasks = [Progress(index, episodes) for index in range(len(job.tasks))]
    _find_known(tasks, Staging(job.staging))
    waiting = deque((progress, number) for progress in tasks for number in range(episodes))
    if all(progress.is_done() for progress in tasks):
        yield from _ready(waiting)
        return
    with (pool or process_pool)(workers) as executor:
        pending: dict[Future[str], tuple[Progress, int]] = {}
        while True:
            _submit(executor, job, tasks, pending, limit=2 * workers)
            report(tasks)
            yield from _ready(waiting)
            if not pending:
                return
            done = wait(pending, return_when=FIRST_COMPLETED).done
            # In the order of their start, so that one worker meets the same failure first each time.
            for future in [started for started in pending if started in done]:
                progress, number = pending.pop(future)
                progress.outcomes[number] = _result(future, job.tasks[progress.index])
                _check_hope(progress, job.tasks[progress.index])


def _find_known(tasks: Sequence[Progress], staging: Staging) -> None:
    """Take over what an interrupted collection left: attempts up to the first one that is missing."""
    for progress in tasks:
        while progress.needs_more():
            outcome = staging.outcome(progress.index, progress.started)
            if outcome is None:
                break
            progress.outcomes[progress.started] = outcome
            progress.started += 1


def _submit(
    executor: Executor,
    job: EpisodeJob,
    tasks: Sequence[Progress],
    pending: dict[Future[str], tuple[Progress, int]],
    limit: int,
) -> None:
    staging = Staging(job.staging)
    for progress in tasks:
        while len(pending) < limit and progress.needs_more():
            number, progress.started = progress.started, progress.started + 1
            if (known := staging.outcome(progress.index, number)) is not None:  # beyond a gap
                progress.outcomes[number] = known
            else:
                pending[executor.submit(attempt, job, progress.index, number)] = (progress, number)


def _ready(waiting: deque[tuple[Progress, int]]) -> Iterator[tuple[int, int]]:
    """The next successes, as far as everything before them is known."""
    while waiting:
        progress, position = waiting[0]
        known = next((n for n in range(progress.started) if n not in progress.outcomes), progress.started)
        successes = [number for number in progress.successes if number < known]
        if position >= len(successes):
            return
        waiting.popleft()
        yield progress.index, successes[position]


def _check_hope(progress: Progress, task: str) -> None:
    failed, tried = len(progress.failures), len(progress.outcomes)
    if (failed >= HOPELESS and not progress.successes) or failed > 2 * (progress.wanted + HOPELESS):
        kinds = ", ".join(sorted(set(progress.failures)))
        solved = f"the expert solved {task} in {tried - failed} of {tried} attempts ({kinds})"
        raise DataError(f"{solved}; lower noise, or mend env.options")


def _result(future: Future[str], task: str) -> str:
    try:
        return future.result()
    except BrokenProcessPool:
        raise DataError(
            f"a worker process died while it demonstrated {task} (out of memory?); use fewer workers; the same command "
            "goes on"
        ) from None
    except DataError as error:
        raise DataError(f"{task}: {error}") from None


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """Spawned processes that end with this one, however it ends."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_prepare_worker, initargs=(os.getpid(),))
    try:
        yield pool
    except BaseException:
        # What is under way is not waited for; its results so far are in the staging folder.
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        raise
    pool.shutdown()


def _prepare_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
