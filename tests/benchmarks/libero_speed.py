"""Simulator steps per second of rlspec's LIBERO against bare robosuite (hf-libero's own wrapper), 1 and 2 workers.

    LIBERO_ASSETS=... python tests/benchmarks/libero_speed.py [seconds]

Each worker is a process of its own; all of them start to measure together. The machine should do nothing else.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np

SUITE, TASK = "libero_object", 0
KINDS = ("bare, state", "rlspec, state", "bare, 2 views", "rlspec, 2 views", "rlspec, 2 views, fast")
COMPARED = {"rlspec, state": "bare, state", "rlspec, 2 views": "bare, 2 views"}


def make_stepper(kind: str) -> Callable[[np.ndarray], Any]:
    """Load a scene, reset it to its first initial state, and return its step function."""
    from rlspec_envs.libero.environment import LiberoEnv

    images = "views" in kind
    if kind.startswith("rlspec"):
        env = LiberoEnv(SUITE, TASK, render_observations=images, fast_rendering="fast" in kind, max_episode_steps=10**9)
        env.reset(options={"initial_state": 0})
        return env.step
    from rlspec_envs.libero.bootstrap import import_libero
    from rlspec_envs.libero.tasks import get_task, load_initial_states

    import_libero()
    from libero.libero.envs.env_wrapper import ControlEnv

    task = get_task(SUITE, TASK)
    bare = ControlEnv(
        str(task.bddl_file),
        use_camera_obs=images,
        has_offscreen_renderer=images,
        camera_heights=256,
        camera_widths=256,
        ignore_done=True,
    )
    bare.reset()
    bare.set_init_state(load_initial_states(task)[0])
    step: Callable[[np.ndarray], Any] = bare.step
    return step


def work(kind: str, seconds: float, barrier: Barrier, results: Any) -> None:
    step = make_stepper(kind)
    generator = np.random.default_rng(0)
    actions = generator.uniform(-0.3, 0.3, (64, 7))
    for action in actions[:5]:
        step(action)
    barrier.wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step(actions[count % 64])
        count += 1
    results.put(count / (time.perf_counter() - start))
    barrier.wait()


def measure(kind: str, workers: int, seconds: float) -> list[float]:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=work, args=(kind, seconds, barrier, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    rates = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return rates


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    print(f"{SUITE} task {TASK}, steps/s over {seconds:g} s\n")
    print(f"{'environment':<24}{'1 worker':>10}{'2 workers, each':>22}{'sum':>8}{'1: / bare':>11}{'2: / bare':>11}")
    sums: dict[tuple[str, int], float] = {}
    for kind in KINDS:
        one, two = measure(kind, 1, seconds), measure(kind, 2, seconds)
        sums[kind, 1], sums[kind, 2] = sum(one), sum(two)
        each = " ".join(f"{rate:.1f}" for rate in two)
        line = f"{kind:<24}{sum(one):>10.1f}{each:>22}{sum(two):>8.1f}"
        if kind in COMPARED:
            line += "".join(f"{sums[kind, n] / sums[COMPARED[kind], n]:>11.2f}" for n in (1, 2))
        print(line, flush=True)


if __name__ == "__main__":
    main()
