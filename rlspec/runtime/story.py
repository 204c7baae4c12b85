"""The story of a run, told once: begin or go on, measure, train, measure, say what came out.

What differs between language models and robots' policies comes from a `RunKind`, and from the `TrainingSession` that it
prepares.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from accelerate import PartialState

from rlspec.checkpoint import explain_write_failure, list_checkpoints, what_is_left
from rlspec.config.schema import AnyRecipe, Report
from rlspec.display import Display
from rlspec.errors import INTERRUPTED, ConfigError, UserError
from rlspec.run_directory import RunDirectory
from rlspec.runtime.card import write_cards
from rlspec.runtime.launching import check_processes
from rlspec.runtime.outcome import (
    Ending,
    RunOutcome,
    Scores,
    Status,
    earlier_seconds,
    resume_command,
    show_outcome,
    write_outcome,
)
from rlspec.runtime.push import check_push, push
from rlspec.runtime.quiet import quiet_libraries
from rlspec.runtime.starting import Run, start_run


class TrainingSession(Protocol):
    """A run that is ready to train. Every process calls all of it, in this order."""

    def before(self) -> Scores | None:
        """Measure the untrained policy; of a resumed run, what was measured then."""

    def train(self) -> tuple[int, Status]:
        """Train to the last step, or until `run.interrupt`; save; returns the steps taken and how it ended."""

    def after(self, step: int) -> Scores | None:
        """Measure the trained policy; not called after an interruption."""


class RunKind(Protocol):
    """What one kind of run gives to the story."""

    out_of_memory: str  # what to do where the device has too little

    @property
    def recipe(self) -> AnyRecipe:
        """Checked."""

    @property
    def process(self) -> PartialState:
        """This process among its peers."""

    def introduce(self, display: Display) -> None:
        """Say what is about to be done, and read the data: before a directory is made for what cannot be read."""

    def stretched(self, stored: Mapping[str, Any]) -> str | None:
        """The schedule of the learning rate, if it spans the run and the stored recipe has another length."""

    def prepare(self, run: Run) -> AbstractContextManager[TrainingSession]:
        """Build everything, and close it at the end."""

    def ending(self, outcome: RunOutcome, directory: RunDirectory) -> Ending:
        """What it says of its outcome."""


def tell(kind: RunKind) -> int:
    """Run from recipe to summary; returns the exit code: 0, or 130 after an interruption.

    Raises:
        rlspec.errors.UserError: What the user can mend, in one line.
    """
    quiet_libraries()
    recipe, process = kind.recipe, kind.process
    display = Display(recipe.report.display, quiet=not process.is_main_process)
    display.relay_messages_of("rlspec")
    _check_report(recipe.report)
    check_push(recipe.push)
    check_processes(recipe.launch, process.num_processes)
    kind.introduce(display)
    run = start_run(recipe, display, process, stretched=kind.stretched)
    with run.interrupt.installed(), _explained(run.directory, kind.out_of_memory):
        try:
            outcome = _carry_out(kind, run)
        except KeyboardInterrupt:  # while it measures, or a second time
            display.warn(_interrupted(run.directory))
            return INTERRUPTED
        if process.is_main_process:
            _conclude(kind.ending(outcome, run.directory), outcome, run)
    return INTERRUPTED if outcome.status == "interrupted" else 0


def _conclude(ending: Ending, outcome: RunOutcome, run: Run) -> None:
    """Write and show what came out, and last of all, when nothing can be lost any more, upload it."""
    write_outcome(outcome, ending, run)
    newest = write_cards(run, ending.origin, ending.measured, status=outcome.status, steps=outcome.steps)
    show_outcome(outcome, ending, run)
    if run.recipe.push is None:
        return
    if newest is None or outcome.status != "finished":
        run.display.warn(f"push={run.recipe.push}: nothing was uploaded, because the run {outcome.status}")
        return
    push(newest, run.recipe.push, run.display)


def _interrupted(directory: RunDirectory) -> str:
    saved = list_checkpoints(directory.checkpoints)
    if not saved:
        return f"interrupted before anything was saved; {directory.path} can be removed"
    return f"interrupted; what was trained is in {saved[-1]}; go on: {resume_command(directory)}"


def _carry_out(kind: RunKind, run: Run) -> RunOutcome:
    started = time.monotonic()
    with kind.prepare(run) as session:
        before = session.before()
        steps, status = session.train()
        after = session.after(steps) if status != "interrupted" else None
        seconds = time.monotonic() - started + (earlier_seconds(run.directory) if run.point else 0.0)
    return RunOutcome(steps, status, round(seconds, 1), before, after)


def _check_report(report: Report) -> None:
    if report.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("report.wandb=true: wandb is not installed; install it, or leave report.wandb=false")


@contextmanager
def _explained(directory: RunDirectory, out_of_memory: str) -> Iterator[None]:
    """What the user can mend, in one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        left = what_is_left(directory.checkpoints)
        raise UserError(f"out of memory on the device: {out_of_memory}; {left}") from error
    except (OSError, RuntimeError) as error:
        if (reason := explain_write_failure(error)) is None:
            raise
        raise UserError(f"{directory.path}: {reason}; {what_is_left(directory.checkpoints)}") from error
