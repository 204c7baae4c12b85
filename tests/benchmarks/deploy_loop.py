"""Lateness of the robot's loop under load: python tests/benchmarks/deploy_loop.py [seconds=60] [busy=2].

A dry run at 15 Hz with two cameras, a policy in a thread, the safety filter and the tick log, beside `busy` processes
that compute all the time; realtime=false: without SCHED_FIFO. Prints percentiles of the ticks' lateness and the cost of
a tick.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rlspec.deploy.run import deploy
from rlspec.deploy.settings import Settings
from rlspec.display import Display


def compute() -> None:
    matrix = np.random.default_rng(0).random((200, 200))
    while True:
        matrix = matrix @ matrix
        matrix /= np.abs(matrix).max()


def measure(seconds: float, busy: int, realtime: str) -> None:
    processes = [multiprocessing.Process(target=compute, daemon=True) for _ in range(busy)]
    for process in processes:
        process.start()
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["robot=dry_run", "policy=expert", f"seconds={seconds}", f"realtime={realtime}"]
        used = time.process_time()
        outcome = deploy(Settings.read([*arguments, f"out={Path(folder) / 'run'}"]), Display(quiet=True))
        used = time.process_time() - used
    for process in processes:
        process.terminate()
    late = 1e3 * np.array(outcome.late)
    print(f"{os.cpu_count()} cores, {busy} busy processes, load {os.getloadavg()[0]:.1f}, realtime={realtime}")
    print(f"ticks {outcome.ticks}, missed {outcome.missed}, CPU {1e3 * used / outcome.ticks:.2f} ms per tick")
    print("lateness  " + ", ".join(f"p{p:g} {np.percentile(late, p):.2f} ms" for p in (50, 90, 99, 100)))


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    measure(float(given.get("seconds", 60)), int(given.get("busy", 2)), given.get("realtime", "null"))
