"""A worker process: one environment, one actor, an episode at a time.

Imports nothing heavy before the process's threads are settled.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlspec.vla.evaluation.jobs import EvaluationJob, Reply, WorkerSettings
    from rlspec.vla.evaluation.runner import Runner

BEAT_SECONDS = 1.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")


def serve(connection: Connection, settings: WorkerSettings) -> None:
    """Run jobs from the connection until it closes or None comes; the target of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for name in _THREADS:
        os.environ[name] = str(settings.threads)
    from rlspec.vla.evaluation.jobs import Alive
    from rlspec.vla.evaluation.runner import Runner

    runner = Runner(settings, on_step=_Heart(connection).beat)
    try:
        connection.send(Alive())
        while (job := connection.recv()) is not None:
            reply = _run(runner, job)
            connection.send(reply)
            if type(reply).__name__ == "Raised":
                break  # what is left of the environment or the policy is not to be trusted
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone
    finally:
        runner.close()


def _run(runner: Runner, job: EvaluationJob) -> Reply:
    from rlspec_envs.errors import EnvironmentUnavailable

    from rlspec.errors import UserError
    from rlspec.vla.evaluation.jobs import JobRefused, Raised

    try:
        return runner.run(job)
    except (UserError, EnvironmentUnavailable) as error:  # LIBERO loads its scene with the first reset
        return JobRefused(str(error))
    except Exception as error:
        return Raised(f"{type(error).__name__}: {' '.join(str(error).split())}", traceback.format_exc())


class _Heart:
    """Tells the parent, once in a while, that steps are taken."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = time.monotonic()

    def beat(self) -> None:
        from rlspec.vla.evaluation.jobs import Alive

        if time.monotonic() - self._last > BEAT_SECONDS:
            self._last = time.monotonic()
            self._connection.send(Alive())
