"""One run of a comparison: its folder, its process, and what it left."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from rlspec.checkpoint import list_checkpoints
from rlspec.comparison.launchers import Launcher
from rlspec.comparison.plan import Plan, slug
from rlspec.errors import INTERRUPTED, ConfigError, DataError
from rlspec.run_directory import RECIPE, SUMMARY, RunDirectory

Kind = Literal["tune", "claim"]
Summary = dict[str, Any]
LENGTHS = (("trainer", "max_steps"), ("training", "steps"))  # keys of a recipe
FAILED = "rlspec.compare: this run failed"  # last line of a log
TO_COME = {"missing", "running", "interrupted"}  # states of a run that may still get a result


@dataclass(frozen=True)
class PlannedRun:
    """A run that the plan wants."""

    arm: str
    kind: Kind
    seed: int
    lr: float | None  # None: the recipe's
    arguments: tuple[str, ...]  # without its place

    @property
    def folder(self) -> Path:
        """Below the folder of the comparison."""
        rate = [] if self.lr is None else [f"lr_{self.lr:g}"]
        return Path(slug(self.arm), "-".join([self.kind, *rate, f"seed_{self.seed}"]))


def planned_run(plan: Plan, arm: str, kind: Kind, seed: int, lr: float | None, more: Sequence[str] = ()) -> PlannedRun:
    """A run of an arm at a rate; `more` are overrides that the comparison found out."""
    arguments = (*plan.arguments(arm, seed=seed, lr=lr, tuning=kind == "tune"), *more)
    return PlannedRun(arm, kind, seed, lr, arguments)


class RunTrainer:
    """Trains what has no summary yet. Commands may share a folder: a run's log is locked while it is trained."""

    def __init__(self, out: Path, launcher: Launcher) -> None:
        self.out = out
        self.launcher = launcher
        self.stopped = threading.Event()  # no further run begins

    def __call__(self, job: PlannedRun) -> Summary | None:
        """The summary of a run: an earlier one, a resumed one or a new one; None if it failed or was not begun."""
        folder = self.out / job.folder
        summary = read_summary(folder)
        if summary is None and not self.stopped.is_set():
            folder.parent.mkdir(parents=True, exist_ok=True)
            log_path = folder.with_name(f"{folder.name}.log")
            with log_path.open("a", encoding="utf-8") as log:
                _lock(log, job)  # the process inherits it: it is held until that ends, whatever becomes of us
                summary = read_summary(folder)
                if summary is None and not self.stopped.is_set():
                    code = self.launcher.run(command_of(job, folder), log_path, log)
                    if code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):  # a run may meet a signal before us
                        self.stopped.set()
                    elif code:  # it may have ended a run that was just beginning, by any code
                        self.stopped.wait(1.0)
                    summary = read_summary(folder)
                    if summary is None and not self.stopped.is_set():
                        log.write(f"\n{FAILED}{'' if code is None else f', exit status {code}'}\n")
                        log.flush()
        return summary


def _lock(log: TextIO, job: PlannedRun) -> None:
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stdout.write(f"{job.folder}: another process trains it; waiting for that\n")
        sys.stdout.flush()
        fcntl.flock(log, fcntl.LOCK_EX)


def command_of(job: PlannedRun, folder: Path) -> list[str]:
    """The command that begins a run, or goes on with it."""
    place = [f"resume={folder}"]
    if not list_checkpoints(RunDirectory(folder).checkpoints):
        place = [f"output_dir={folder.parent}", f"run={folder.name}"]
        if folder.exists():  # stopped before its first checkpoint: out of the way, not away
            stopped = len(list(folder.parent.glob(f"{folder.name}.stopped-*")))
            os.replace(folder, folder.with_name(f"{folder.name}.stopped-{stopped + 1}"))
    return [sys.executable, "-m", "rlspec.train", *job.arguments, *place, "report.display=plain"]


def read_summary(folder: Path) -> Summary | None:
    """The summary of a run that ended by itself.

    Raises:
        DataError: It is corrupt.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return None
    try:
        summary: Summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        summary = {}
    if not isinstance(summary, dict) or not isinstance(summary.get("status"), str):
        raise DataError(f"{path}: no summary; delete it, and the same command goes on from the last checkpoint")
    return summary if summary["status"] != "interrupted" else None


def unfinished_status(folder: Path) -> str:
    """What became of a run without a result: missing, running, failed, or interrupted, by whatever ended it."""
    log_path = folder.with_name(f"{folder.name}.log")
    if not log_path.is_file():
        return "missing"
    with log_path.open(encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "running"
    lines = log_path.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return "failed" if last.startswith(FAILED) else "interrupted"


def check_jobs(jobs: Sequence[PlannedRun], out: Path, check: Callable[[Any, Kind], None]) -> None:
    """Every run is a valid recipe, and its folder holds no other, before the first is trained.

    Args:
        jobs: The runs.
        out: Of the comparison.
        check: Raises ConfigError for a recipe that the comparison cannot judge.

    Raises:
        ConfigError: One of them is not, or does.
    """
    from rlspec.config.load import load_any_recipe

    valid = set()  # runs of an arm differ in rate and seed alone: one of them speaks for all
    for job in jobs:
        stored = out / job.folder / RECIPE
        if stored.is_file() or (job.arm, job.kind) not in valid:
            recipe = load_any_recipe(job.arguments)
            if recipe.push is not None:
                raise ConfigError(
                    f"push={recipe.push}: every run of the comparison would be uploaded there; leave it out"
                )
            check(recipe, job.kind)
            valid.add((job.arm, job.kind))
        if stored.is_file():
            earlier = load_any_recipe([f"recipe={stored}"])
            different = _different(earlier.model_dump(mode="json"), recipe.model_dump(mode="json"))
            if different:
                place = stored.parent
                raise ConfigError(f"out: {place} holds a run with another {different[0]}; choose another out=DIR")


def _different(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    from rlspec.config.match import differing_keys

    keys = [key for key, *_ in differing_keys(old, new)]
    return keys + [f"{a}.{b}" for a, b in LENGTHS if old.get(a, {}).get(b) != new.get(a, {}).get(b)]
