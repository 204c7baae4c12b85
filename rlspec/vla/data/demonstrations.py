"""Demonstrations by the scripted expert as a LeRobotDataset v3, generated once and kept.

While they are made, a folder beside the data set (`.NAME.work`) holds finished attempts: a run that is stopped or
killed goes on from there. The data set is assembled in the order of the attempts' seeds and put in place by one rename,
so it is the same for any number of workers and interruptions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlspec.checkpoint import write_json_atomically
from rlspec.config.vla_schema import Dataset, Demonstrations
from rlspec.contract.records import DATA_RECORD
from rlspec.display import Display
from rlspec.errors import ConfigError, DataError
from rlspec.versions import library_versions
from rlspec.vla.data.output import first_difference, locked, read_settings, writing
from rlspec.vla.data.recording import Disturbance
from rlspec.vla.data.staging import Staging
from rlspec.vla.data.workers import EpisodeJob, Pool, Progress, run_attempts

_FORMAT = 1  # of the settings that decide what is in a data set
_SECONDS = 5.0  # between two lines of progress


class EnvSpec(Protocol):
    """What demonstrations are generated in; `rlspec.config.vla_schema.Env` is one."""

    suite: str
    tasks: list[str]
    options: dict[str, Any]


def demonstrations_root(dataset: Dataset, env: EnvSpec | None) -> Path:
    """Where the demonstrations of a recipe are kept: equal ones are shared by all runs.

    Raises:
        ConfigError: The recipe has no demonstrations or no environment.
    """
    if dataset.demonstrations is None or env is None:
        raise ConfigError("dataset.demonstrations: the recipe has none, or no env to generate them in")
    if dataset.root is not None:
        return Path(dataset.root).expanduser()
    return Path("checkpoints/data") / default_name(env, dataset.demonstrations)


def default_name(env: EnvSpec, settings: Demonstrations) -> str:
    """`<suite>-<tasks>-<hash of what matters>`."""
    tasks = "-".join(env.tasks) or "all"
    text = json.dumps(what_matters(env, settings), sort_keys=True)
    return f"{env.suite}-{tasks[:40]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def what_matters(env: EnvSpec, settings: Demonstrations) -> dict[str, Any]:
    """All that decides what is in the data set; the number of workers does not."""
    chosen = settings.model_dump(mode="json", exclude={"workers"})
    if not chosen["noise"]:
        chosen["noise_share"] = 0.0
    tasks = list(env.tasks) or _tasks_of(env.suite)
    if env.suite.startswith("libero"):
        chosen["starts"] = "sampled"  # the first demonstrations started where evaluations do
    return {"format": _FORMAT, "suite": env.suite, "tasks": tasks, "options": dict(env.options), **chosen}


def _tasks_of(suite: str) -> list[str]:
    import rlspec_envs

    tasks: list[str] = rlspec_envs.list_tasks(suite)
    return tasks


def collect(env: EnvSpec, settings: Demonstrations, out: Path, display: Display, *, pool: Pool | None = None) -> Path:
    """Generate demonstrations, go on with them, or find them done.

    Args:
        env: suite, tasks (none: all) and options of the environment.
        settings: how many, from which seed, with which disturbance.
        out: the data set's folder.
        display: shows progress.
        pool: makes the executor of the attempts; None: processes.

    Returns:
        `out`.

    Raises:
        DataError: The expert fails, the folder holds something else, or it cannot be written.
        ConfigError: The environment cannot be made.
    """
    matters = what_matters(env, settings)
    work = out.with_name(f".{out.name}.work")
    with writing(out, "what was collected"), locked(work, display, "demonstrations"):
        if _is_done(out, matters):
            display.line(f"demonstrations: {out} is complete")
        else:
            _prepare(work, matters)
            _generate(matters, settings.workers, out, work, display, pool)
        shutil.rmtree(work, ignore_errors=True)
    return out


def _is_done(out: Path, matters: Mapping[str, Any]) -> bool:
    """Raises DataError where the folder holds anything but these demonstrations."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = read_settings(out / DATA_RECORD)
    if record is None:
        raise DataError(f"{out} exists and holds no demonstrations of rlspec; choose another folder, or remove it")
    if different := first_difference(record.get("settings", {}), matters):
        raise DataError(f"{out} holds demonstrations with another {different}; choose another folder, or remove it")
    return True


def _prepare(work: Path, matters: Mapping[str, Any]) -> None:
    stored = read_settings(work / "settings.json")
    begun = any((work / "episodes").glob("*"))
    if stored is not None and begun and (different := first_difference(stored, matters)):
        raise DataError(
            f"{work} holds unfinished demonstrations with another {different}; finish them with those settings, "
            "remove the folder, or choose another"
        )
    (work / "episodes").mkdir(parents=True, exist_ok=True)
    write_json_atomically(work / "settings.json", dict(matters))


def _generate(
    matters: Mapping[str, Any], workers: int, out: Path, work: Path, display: Display, pool: Pool | None
) -> None:
    job = EpisodeJob(
        suite=matters["suite"],
        tasks=tuple(matters["tasks"]),
        options=matters["options"],
        seed=matters["seed"],
        disturbance=Disturbance(matters["noise"], matters["noise_share"]),
        video=matters["video"],
        staging=work / "episodes",
    )
    started, reporter = time.monotonic(), _Reporter(job, matters["episodes"], display)
    display.line(f"demonstrations: {matters['episodes']} of each of {len(job.tasks)} tasks of {job.suite}, into {out}")
    finished = work / "dataset"
    shutil.rmtree(finished, ignore_errors=True)
    attempts = run_attempts(job, matters["episodes"], workers, reporter, pool)
    frames = _assemble(attempts, job, matters, finished, reporter)
    seconds = time.monotonic() - started
    if out.exists():
        out.rmdir()
    os.replace(finished, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    display.line(f"demonstrations: {reporter.summary()}, {frames} frames, {size:.1f} MB in {seconds:.0f} s")


def _assemble(
    attempts: Iterator[tuple[int, int]], job: EpisodeJob, matters: Mapping[str, Any], root: Path, reporter: _Reporter
) -> int:
    """Write the data set while episodes come in; returns the number of frames."""
    from rlspec.vla.data.assembly import DatasetBuilder, features_of

    staging, builder, about = Staging(job.staging), None, {}
    episodes, frames = [], 0
    for task, number in attempts:
        episode = staging.load(task, number)
        if builder is None:
            about = episode.environment
            features = features_of(
                episode,
                action_space=about["action_space"],
                video=job.video,
                disturbed=job.disturbance.std > 0,
            )
            builder = DatasetBuilder(
                root, fps=_rate(about), features=features, robot_type=_robot(about), video=job.video
            )
        builder.add(episode)
        frames += len(episode)
        plan = episode.plan
        episodes.append({"seed": plan.seed, "initial_state": plan.initial_state, "task": job.tasks[task]})
    assert builder is not None, "at least one episode is wanted, or run_attempts has raised"
    builder.finish()
    record = {
        "suite": job.suite,
        "tasks": list(job.tasks),
        **about,
        "settings": dict(matters),
        "failures": reporter.failures(),
        "versions": library_versions(),
        "episodes": episodes,
    }
    write_json_atomically(root / DATA_RECORD, record)
    return frames


def _rate(about: Mapping[str, Any]) -> int:
    """LeRobot counts whole frames per second."""
    rate = about["control_hz"]
    if round(rate) != rate:
        raise ConfigError(f"env: control_hz={rate}: LeRobot's data sets want a whole number of frames per second")
    return round(rate)


def _robot(about: Mapping[str, Any]) -> str:
    return str(about["env"].get("robot", "franka"))


class _Reporter:
    """Progress, one line every few seconds."""

    def __init__(self, job: EpisodeJob, wanted: int, display: Display) -> None:
        self.job, self.wanted, self.display = job, wanted, display
        self.tasks: Sequence[Progress] = ()
        self._shown = self._started = time.monotonic()
        self._before: int | None = None  # successes that an earlier, interrupted run has left

    def __call__(self, tasks: Sequence[Progress]) -> None:
        self.tasks = tasks
        done = sum(len(progress.successes) for progress in tasks)
        if self._before is None:
            self._before = done
            if done:
                self.display.line(f"demonstrations: {done} from before")
        now = time.monotonic()
        if now - self._shown >= _SECONDS:
            self._shown = now
            speed = (done - self._before) / (now - self._started)
            total = self.wanted * len(self.job.tasks)
            self.display.line(f"demonstrations: {done}/{total}  failed {self._failed()}  {speed:.2f} per second")

    def _failed(self) -> int:
        return sum(len(progress.failures) for progress in self.tasks)

    def failures(self) -> dict[str, dict[str, int]]:
        """Task -> kind of failure -> how often."""
        return {
            task: dict(sorted(Counter(progress.failures).items()))
            for task, progress in zip(self.job.tasks, self.tasks, strict=True)
        }

    def summary(self) -> str:
        """`200 of 203 attempts succeeded (dropped 2, timeout 1)`."""
        kinds = Counter(kind for progress in self.tasks for kind in progress.failures)
        done = sum(len(progress.successes) for progress in self.tasks)
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        return f"{done} of {done + self._failed()} attempts succeeded" + (f" ({listed})" if listed else "")
