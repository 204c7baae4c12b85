"""Several processes on this machine, with one thread each; a job runs every check of `checks_of_ranks` once."""

from __future__ import annotations

import os
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from torch import multiprocessing


def run_checks(rank: int, world: int, folder: str, names: tuple[str, ...]) -> None:
    """One process of a job: every check writes what it raised, or nothing."""
    import torch.distributed as dist
    from checks_of_ranks import CHECKS, FOR_FOUR, MORE

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    for name in names or [name for name in CHECKS if world > 2 or name not in FOR_FOUR]:
        found = ""
        try:
            with warnings.catch_warnings(action="ignore"):
                (CHECKS | MORE)[name](Path(folder))
        except Exception:  # whatever it is, the test shows it
            found = traceback.format_exc()
        Path(folder, f"{name}.{rank}").write_text(found, encoding="utf-8")
        dist.barrier()
    dist.destroy_process_group()


class Job:
    """What the checks found on every rank."""

    def __init__(self, world: int, folder: Path, *names: str) -> None:
        self.world, self.folder = world, folder
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        context = multiprocessing.spawn(run_checks, (world, str(folder), names), nprocs=world, join=False)
        self.failure = ""
        try:
            while not context.join():
                pass
        except Exception as error:
            self.failure = str(error)

    def verdict(self, name: str) -> None:
        """Fail as the check did, on any rank."""
        for rank in range(self.world):
            file = self.folder / f"{name}.{rank}"
            assert file.exists(), f"rank {rank} did not come to it: {self.failure}"
            found = file.read_text(encoding="utf-8")
            assert not found, f"rank {rank} of {self.world}:\n{found}"
