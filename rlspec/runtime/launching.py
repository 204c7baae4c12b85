"""`launch=torchrun|accelerate|slurm launch.processes=N`: the same command in several processes, and why it ended.

Every process runs the command as it was given; `LAUNCHED` in its environment says that it need not be launched again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlspec.config.extras import install
from rlspec.cores import cores
from rlspec.errors import INTERRUPTED, ConfigError, UserError

if TYPE_CHECKING:
    from rlspec.config.schema import Launch

LAUNCHED = "RLSPEC_LAUNCHED"
RESUME = "resume=auto goes on from the last complete checkpoint"


def is_launched() -> bool:
    """Whether this process is one of several already, by us or by the user's own launcher."""
    return LAUNCHED in os.environ or "LOCAL_RANK" in os.environ


def check_processes(settings: Launch, running: int) -> None:
    """Refuse a run whose launcher made another number of processes than was asked for, which no number would show.

    Raises:
        ConfigError: naming both.
    """
    if LAUNCHED in os.environ and running != settings.processes:
        raise ConfigError(
            f"launch.processes={settings.processes}: launch={settings.by} made {running}; use launch=torchrun, or "
            "start the processes by hand with launch=here"
        )


def launch(settings: Launch, module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module arguments` in several processes; returns the exit code.

    Raises:
        UserError: A process ended before the others, with its rank and reason.
        ConfigError: The launcher is not installed.
    """
    with _environment_of_ranks(settings):
        by = {"torchrun": _torchrun, "accelerate": _accelerate, "slurm": _slurm}
        return by[settings.by](settings, module, arguments)


@contextmanager
def _environment_of_ranks(settings: Launch) -> Iterator[None]:
    """What ranks inherit; taken back, so that the next command of this process is launched too."""
    before = dict(os.environ)
    os.environ[LAUNCHED] = settings.by
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // settings.processes)))
    try:
        yield
    finally:
        # One by one: emptied at once, it would be read by other threads' getenv while it is being freed.
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


def _torchrun(settings: Launch, module: str, arguments: Sequence[str]) -> int:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=settings.processes,
        run_id=f"rlspec-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.5,
        logs_specs=DefaultLogsSpecs(redirects={rank: Std.OUT for rank in range(1, settings.processes)}),
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _ended(rank, failure.exitcode, settings.processes)
    return 0


def _ended(rank: int, code: int, processes: int) -> int:
    """What is left to say of the process that ended first; its own lines are on stderr already."""
    if code in (2, INTERRUPTED):
        return code
    why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed (exit code {code}, reason above)"
    memory = "; the machine may have run out of memory" if code == -signal.SIGKILL else ""
    raise UserError(f"rank {rank} of {processes} {why}{memory}: all others were stopped; {RESUME}")


def _accelerate(settings: Launch, module: str, arguments: Sequence[str]) -> int:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(settings.processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["--multi_gpu"]  # on CPUs too: with --cpu it starts one process, whatever --num_processes says
    code = subprocess.run([*command, "--module", module, *arguments]).returncode
    if code not in (0, 2, INTERRUPTED):
        raise UserError(f"accelerate launch ended with exit code {code} (its lines above name the rank); {RESUME}")
    return code


def _slurm(settings: Launch, module: str, arguments: Sequence[str]) -> int:
    """Submit to the cluster, or with `launch.cluster=local` run on this machine by the same code."""
    try:
        import submitit
    except ImportError:
        raise ConfigError(f"launch=slurm: submitit is not installed; {install('slurm')}") from None

    folder = Path(settings.folder).expanduser()
    executor = submitit.AutoExecutor(folder=folder, cluster=settings.cluster)
    if settings.processes % settings.nodes:
        raise ConfigError(f"launch.processes={settings.processes}: must divide among launch.nodes={settings.nodes}")
    per_node = settings.processes // settings.nodes
    options: dict[str, Any] = {"slurm_srun_args": ["--kill-on-bad-exit=1"]} | settings.options
    executor.update_parameters(
        nodes=settings.nodes,
        tasks_per_node=per_node,
        timeout_min=settings.minutes,
        name=module.rpartition(".")[2],
        **options,
    )
    job = executor.submit(RunHere(module, tuple(arguments), settings.cluster == "local"))
    sys.stdout.write(f"slurm: job {job.job_id}; logs in {folder}\n")
    sys.stdout.flush()
    if settings.cluster != "local":
        return 0
    return _follow(job, settings.processes)


def _follow(job: Any, processes: int) -> int:
    """Show what rank 0 writes, until all ranks are done or one has failed; returns the exit code."""
    tasks = [job.task(rank) for rank in range(processes)] if processes > 1 else [job]
    shown = 0
    while True:
        ended = job.done(force_check=True)
        codes = [_outcome(task, rank, processes, job) for rank, task in enumerate(tasks)]
        path = Path(tasks[0].paths.stdout)
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        sys.stdout.write("".join(line for line in text[shown:].splitlines(True) if not line.startswith("submitit ")))
        sys.stdout.flush()
        shown = len(text)
        if None not in codes or any(codes):
            job.cancel()
            return max(code or 0 for code in codes)
        if ended:
            raise UserError(f"rank {codes.index(None)} of {processes} was killed: see {path.parent}; {RESUME}")
        time.sleep(0.5)


def _outcome(task: Any, rank: int, processes: int, job: Any) -> int | None:
    """The exit code of a rank; None: it runs still. Ends the job where one has failed: submitit's executor does not."""
    from submitit.core.utils import pickle_load

    if not task.paths.result_pickle.is_file():
        return None
    kind, value = pickle_load(task.paths.result_pickle)
    if kind == "success":
        return int(value)
    job.cancel()
    raise UserError(f"rank {rank} of {processes} failed: {str(value).strip().splitlines()[-1]}; {RESUME}")


class RunHere:
    """A task of a Slurm job: tells torch who it is, then runs the command in this process."""

    def __init__(self, module: str, arguments: tuple[str, ...], local: bool) -> None:
        self.module = module
        self.arguments = arguments
        self.local = local

    def __call__(self) -> int:
        """Run; returns the exit code."""
        import importlib

        import submitit

        os.environ[LAUNCHED] = "slurm"
        environment = submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        if self.local:
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(environment.local_world_size))
        code: int = importlib.import_module(self.module).main(list(self.arguments))
        return code

    def checkpoint(self, *_: Any) -> Any:
        """What is submitted again when Slurm preempts the job: it resumes."""
        import submitit

        again = [each for each in self.arguments if not each.startswith("resume=")]
        return submitit.helpers.DelayedSubmission(RunHere(self.module, (*again, "resume=auto"), self.local))
