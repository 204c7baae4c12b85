"""Control steps per second of the environments, per worker and summed over workers that run at the same time.

    python tests/benchmarks/simulation_speed.py
    python tests/benchmarks/simulation_speed.py --case franka --workers 1 2 --seconds 10 --output speed.json

Each worker is a process of its own: it makes the environment, resets it, warms up, and then steps it with the scripted
expert (or with random actions, `--actions random`), episodes' resets counted apart. Milliseconds per step are the
median over steps, so that a busy moment of the machine does not move them; "cpu ms" is processor time per step, all
threads, which other processes do not change much; steps per second are steps over the time spent in them.

A case more is a line more in CASES.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import rlspec_envs
from rlspec_envs.errors import EnvironmentUnavailable


@dataclass(frozen=True)
class Case:
    """One environment to time.

    Attributes:
        name: Row of the table; `--case` selects by its beginning.
        suite, task, options: Arguments of `rlspec_envs.make_env`.
        images: Whether observations are rendered.
    """

    name: str
    suite: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)
    images: bool = True


def _franka() -> Iterator[Case]:
    for arm in ("primitive", "meshes"):
        yield Case(f"franka {arm}, state only", "franka", "pick_place", {"arm": arm}, images=False)
        for size in (128, 256):
            yield Case(f"franka {arm}, 2 x {size} px", "franka", "pick_place", {"arm": arm, "image_size": size})
    for task in ("push", "stack", "drawer"):
        yield Case(f"franka {task}, 2 x 128 px", "franka", task)
    yield Case("franka joint_velocity, 2 x 128 px", "franka", "pick_place", {"action_space": "joint_velocity"})


CASES: tuple[Case, ...] = tuple(_franka())
COLUMNS = ("create_s", "reset_ms", "step_ms", "cpu_ms")


def _measure(case: Case, seconds: float, actions: str, start: Barrier) -> dict[str, float]:
    """Step one environment for some seconds, in this process."""
    created = time.perf_counter()
    env = rlspec_envs.make_env(case.suite, case.task, **case.options)
    plain: Any = env.unwrapped
    plain.render_observations = case.images
    env.reset(seed=0)
    created = time.perf_counter() - created
    expert = rlspec_envs.make_expert(env) if actions == "expert" else None
    env.action_space.seed(0)
    steps: list[float] = []
    busy: list[float] = []
    resets: list[float] = []
    for _ in range(3):
        env.step(env.action_space.sample())
    start.wait()
    began = time.perf_counter()
    done = True
    while time.perf_counter() - began < seconds:
        moment, processor = time.perf_counter(), time.process_time()
        if done:
            env.reset(seed=len(resets))
            done = False
            resets.append(time.perf_counter() - moment)
            continue
        *_, terminated, truncated, _ = env.step(expert.act() if expert else env.action_space.sample())
        steps.append(time.perf_counter() - moment)
        busy.append(time.process_time() - processor)
        done = terminated or truncated
    env.close()
    return {
        "create_s": created,
        "reset_ms": 1e3 * statistics.median(resets),
        "step_ms": 1e3 * statistics.median(steps),
        "cpu_ms": 1e3 * statistics.median(busy),
        "steps_per_s": len(steps) / sum(steps),
    }


def _work(case: Case, seconds: float, actions: str, start: Barrier, results: Any) -> None:
    try:
        results.put(_measure(case, seconds, actions, start))
    except (EnvironmentUnavailable, ValueError) as error:
        start.abort()
        results.put({"error": str(error)})


def _run(case: Case, workers: int, seconds: float, actions: str) -> dict[str, Any]:
    """Run a case in several processes that start to step together."""
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(workers), spawn.Queue()
    processes = [spawn.Process(target=_work, args=(case, seconds, actions, start, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    errors = [result["error"] for result in found if "error" in result]
    if errors:
        return {"case": case.name, "workers": workers, "error": errors[0]}
    row: dict[str, Any] = {"case": case.name, "workers": workers}
    row |= {key: statistics.median(result[key] for result in found) for key in COLUMNS}
    return row | {"steps_per_s": sum(result["steps_per_s"] for result in found)}


def _line(row: dict[str, Any]) -> str:
    head = f"{row['case']:<36} {row['workers']:>7}"
    if "error" in row:
        return f"{head} {row['error']}"
    return head + "".join(f" {row[key]:>8.2f}" for key in COLUMNS) + f" {row['steps_per_s']:>8.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only cases whose name begins with this")
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=5.0, help="time of stepping per row")
    parser.add_argument("--actions", choices=("expert", "random"), default="expert")
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {multiprocessing.cpu_count()} cores, {time.strftime('%F')}")
    print(f"{'case':<36} {'workers':>7} {'create s':>8} {'reset ms':>8} {'step ms':>8} {'cpu ms':>8} {'steps/s':>8}")
    rows = []
    for case in CASES:
        for workers in arguments.workers if case.name.startswith(arguments.case) else ():
            rows.append(_run(case, workers, arguments.seconds, arguments.actions))
            print(_line(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
