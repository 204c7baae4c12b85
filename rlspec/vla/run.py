"""One run of behaviour cloning from recipe to summary: demonstrations, measure, train, measure again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rlspec.checkpoint import checkpoint_name, explain_write_failure, what_is_left
from rlspec.config.vla_schema import VlaRecipe
from rlspec.display import Display
from rlspec.errors import INTERRUPTED, UserError
from rlspec.run_directory import ResumePoint, RunDirectory
from rlspec.runtime.devices import choose_device
from rlspec.runtime.interrupt import Interrupt
from rlspec.runtime.quiet import quiet_libraries
from rlspec.runtime.starting import new_run, resume_point
from rlspec.vla.training.data import OpenSamples, open_samples
from rlspec.vla.training.evaluations import EvaluatorFactory, simulator
from rlspec.vla.training.loop import Loop
from rlspec.vla.training.outcome import Outcome, earlier_seconds, show_outcome, write_outcome
from rlspec.vla.training.samples import Samples
from rlspec.vla.training.schedule import stretched_schedule
from rlspec.vla.training.session import Parts, build_parts, describe
from rlspec.vla.training.trackers import Trackers, check_report


def run_vla_recipe(
    recipe: VlaRecipe, *, samples: OpenSamples = open_samples, evaluator: EvaluatorFactory = simulator
) -> int:
    """Train as the recipe says; returns the exit code (0, or 130 after an interruption).

    Args:
        recipe: checked.
        samples: opens the data.
        evaluator: measures policies.

    Raises:
        rlspec.errors.UserError: What the user can mend, in one line.
    """
    quiet_libraries()
    device = choose_device(recipe.device)
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if recipe.training.bf16 else "no")
    display = Display(recipe.report.display, quiet=not accelerator.is_main_process)
    display.relay_messages_of("rlspec")
    display.heading(f"{recipe.recipe}: behaviour cloning of {recipe.policy.name} with {recipe.optim.name}")
    display.line(describe(recipe, device, accelerator.num_processes))
    check_report(recipe.report)
    data = samples(recipe, display)  # before a directory is made: missing data is the commonest mistake
    point = resume_point(recipe, display, accelerator, stretched=lambda stored: stretched_schedule(recipe, stored))
    run = point.run if point else new_run(recipe, accelerator)
    display.line(f"run directory: {run.path}" + (f", resumed after step {point.step}" if point else ""))
    interrupt = Interrupt()
    with interrupt.installed(), _explained(run):
        return _Run(recipe, display, run, point, accelerator, data, interrupt, evaluator).execute()


@contextmanager
def _explained(run: RunDirectory) -> Iterator[None]:
    """What the user can mend, in one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        remedy = "lower training.batch_size and raise training.gradient_accumulation, or train less (policy.lora)"
        raise UserError(f"out of memory on the device: {remedy}; {what_is_left(run.checkpoints)}") from error
    except (OSError, RuntimeError) as error:
        if (reason := explain_write_failure(error)) is None:
            raise
        raise UserError(f"{run.path}: {reason}; {what_is_left(run.checkpoints)}") from error


@dataclass
class _Run:
    """A run in progress; `execute` reads as its story."""

    recipe: VlaRecipe
    display: Display
    run: RunDirectory
    point: ResumePoint | None
    accelerator: Accelerator
    samples: Samples
    interrupt: Interrupt
    evaluator: EvaluatorFactory

    def execute(self) -> int:
        started = time.monotonic()
        parts = build_parts(self.recipe, self.run, self.point, self.accelerator, self.samples, self.display)
        main = self.accelerator.is_main_process
        measured = main and self.recipe.env is not None
        with self.evaluator(self.recipe, self.run, self.display) if measured else nullcontext() as evaluator:
            loop = self._loop(parts, evaluator)
            outcome = self._train(loop)
        outcome.seconds = round(time.monotonic() - started + (earlier_seconds(self.run) if self.point else 0.0), 1)
        if main:
            summary = write_outcome(outcome, self.recipe, self.run)
            show_outcome(summary, self.run, self.display)
        return INTERRUPTED if outcome.status == "interrupted" else 0

    def _loop(self, parts: Parts, evaluator: Any) -> Loop:
        trackers = None
        if self.accelerator.is_main_process:
            trackers = Trackers(self.recipe, self.run, step=self.point.step if self.point else 0)
        loop = Loop(self.recipe, self.run, self.display, self.accelerator, parts, evaluator, trackers, self.interrupt)
        loop.saved = self.point.step if self.point else None
        return loop

    def _train(self, loop: Loop) -> Outcome:
        """Evaluate, train, evaluate."""
        main, evaluations, state = self.accelerator.is_main_process, loop.evaluations, loop.parts.state
        before = None
        if main:
            before = evaluations.before(state, resumed=self.point is not None)
            evaluations.start_again(state.step)
        self.accelerator.wait_for_everyone()
        with self.display.steps(self.recipe.training.steps, start=state.step):
            finished = loop.run()
        outcome = Outcome(steps=state.step, status="finished" if finished else "interrupted", before=before)
        if finished and main:
            outcome.after = evaluations.after(self.run.checkpoints / checkpoint_name(state.step), state.step)
        if loop.trackers is not None:
            loop.trackers.close()
        return outcome
