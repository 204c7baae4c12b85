"""Where the processes of runs live: here, or on a Slurm cluster through submitit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from rlspec.errors import ConfigError


class Launcher(Protocol):
    """Runs a command to its end; what came of it stands in the files that it leaves."""

    def run(self, command: Sequence[str], log_path: Path, log: TextIO) -> int | None:
        """Wait for a command whose output goes to a log; its exit code, where it is known here."""


@dataclass(frozen=True)
class Local:
    """This machine; its cores are divided among the workers."""

    workers: int

    def run(self, command: Sequence[str], log_path: Path, log: TextIO) -> int | None:  # noqa: ARG002
        """Wait for a process."""
        threads = str(max(1, (os.cpu_count() or 1) // self.workers))
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode


@dataclass(frozen=True)
class Submitit:
    """A cluster, or with `cluster="local"` submitit's imitation of one."""

    folder: Path  # of submitit's own files
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of its executor, such as slurm_partition
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        try:
            import submitit
        except ImportError:
            raise ConfigError("launcher=slurm: submitit is not installed; pip install 'rlspec[slurm]'") from None
        try:
            submitit.AutoExecutor(folder=self.folder, cluster=self.cluster).update_parameters(**self.parameters)
        except (NameError, TypeError, RuntimeError) as error:
            raise ConfigError(f"slurm: {' '.join(str(error).split())}") from None

    def run(self, command: Sequence[str], log_path: Path, log: TextIO) -> int | None:
        """Wait for a job; where the scheduler gave it up, its reason stands in the log and the run can be resumed."""
        import submitit

        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        executor.update_parameters(**self.parameters)
        job = executor.submit(_append, list(command), str(log_path))
        try:
            job.result()
        except Exception as error:
            log.write(f"\njob {job.job_id}: {error}\n")
        return None


def _append(command: list[str], log_path: str) -> None:
    with open(log_path, "a", encoding="utf-8") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
