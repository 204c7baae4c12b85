"""Where the processes of runs live: here, or on a Slurm cluster through submitit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TextIO

from rlspec.config.extras import install
from rlspec.config.schema import Launch
from rlspec.cores import cores
from rlspec.errors import ConfigError


class Launcher(Protocol):
    """Runs a command to its end; what came of it stands in the files that it leaves."""

    def run(self, command: Sequence[str], log_path: Path, log: TextIO) -> int | None:
        """Wait for a command whose output goes to a log; its exit code, where it is known here."""

    def stop(self) -> int:
        """Ask all that runs, and all that is yet begun, to write a checkpoint and end; how many run now."""


class Local:
    """This machine; its cores and its GPUs are divided among the workers, as far as the user has not done so."""

    def __init__(self, workers: int) -> None:
        self._threads = str(max(1, cores() // workers))
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()
        self._shares: SimpleQueue[dict[str, str]] = SimpleQueue()  # of the GPUs, one for each worker that is free
        for share in shares_of_devices(visible_devices(), workers):
            self._shares.put(share)

    def run(self, command: Sequence[str], log_path: Path, log: TextIO) -> int | None:  # noqa: ARG002
        """Wait for a process. It has a group of its own: a terminal's Ctrl-C reaches it through `stop`, once."""
        share = self._shares.get()
        environment = {"OMP_NUM_THREADS": self._threads, **os.environ, **share}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=0
        )
        self._running.add(process)
        if self._stopped.is_set():
            _interrupt(process)
        try:
            return process.wait()
        finally:
            self._running.discard(process)
            self._shares.put(share)

    def stop(self) -> int:
        """Tell every run."""
        self._stopped.set()
        running = list(self._running)
        for process in running:
            _interrupt(process)
        return len(running)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """All of a run, as a terminal does: `accelerate launch`, say, is not told by who began it.

    A run that is still loading has nothing to save, and the kernel ends it: of a hundred KeyboardInterrupts in imports
    Python loses one, in the callbacks of its module locks.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT if _handles(process.pid, signal.SIGTERM) else signal.SIGTERM)


def _handles(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal; True where the system does not say."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def visible_devices() -> list[str]:
    """Names of the GPUs that a process sees, for CUDA_VISIBLE_DEVICES."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def shares_of_devices(devices: Sequence[str], workers: int) -> list[dict[str, str]]:
    """Variables of each worker: as many GPUs for each, at least one, which workers then share; without any, none."""
    if not devices:
        return [{} for _ in range(workers)]
    each = max(1, len(devices) // workers)
    starts = [worker * each % len(devices) for worker in range(workers)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[start : start + each])} for start in starts]


@dataclass(frozen=True)
class Submitit:
    """A cluster, or with `cluster="local"` submitit's imitation of one."""

    folder: Path  # of submitit's own files
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of its executor, such as slurm_partition
    cluster: str = "slurm"
    _jobs: set[Any] = field(default_factory=set, init=False)  # that run, or wait in the queue
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        try:
            self.executor()
        except ImportError:
            raise ConfigError(f"launcher=slurm: submitit is not installed; {install('slurm')}") from None
        except (AssertionError, NameError, TypeError, RuntimeError) as error:
            raise ConfigError(f"slurm: {' '.join(str(error).split())}") from None

    def run(self, command: Sequence[str], log_path: Path, log: TextIO) -> int | None:
        """Wait for a job; where the scheduler gave it up, its reason stands in the log and the run can be resumed."""
        job = self.executor().submit(_append, list(command), str(log_path))
        self._jobs.add(job)
        if self._stopped.is_set():
            job.cancel(check=False)
        try:
            job.result()
        except Exception as error:
            log.write(f"\njob {job.job_id}: {error}\n")
        finally:
            self._jobs.discard(job)
        return None

    def executor(self) -> Any:
        """submitit's; without a limit of the user a job gets that of `launch=slurm`, not submitit's five minutes."""
        import submitit

        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        executor.update_parameters(**{"timeout_min": Launch().minutes, **self.parameters})
        return executor

    def stop(self) -> int:
        """Cancel every job; the scheduler's signal reaches its run, which writes a checkpoint."""
        self._stopped.set()
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel(check=False)
        return len(jobs)


def _append(command: list[str], log_path: str) -> None:
    with open(log_path, "a", encoding="utf-8") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
