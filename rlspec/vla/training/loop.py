"""The training loop: steps, metrics, checkpoints and evaluations of one run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rlspec.config.schema import Checkpoints
from rlspec.config.vla_schema import Training
from rlspec.diagnostics.alignment import live_probes
from rlspec.diagnostics.idle import IdleRoles
from rlspec.diagnostics.probes import read_probes
from rlspec.errors import UserError
from rlspec.runtime.interrupt import on_any_process
from rlspec.runtime.sharding import is_sharded
from rlspec.runtime.starting import Run
from rlspec.vla.training.evaluations import Evaluations
from rlspec.vla.training.session import TrainingParts
from rlspec.vla.training.state import write_checkpoint
from rlspec.vla.training.step import FiniteGuard
from rlspec.vla.training.trackers import Trackers


class StepAbandoned(Exception):
    """A signal came before a step had changed anything: the run ends with the step before it."""


@dataclass
class TrainingLoop:
    """What a run's steps need; `train` takes them all."""

    training: Training
    checkpoints: Checkpoints
    run: Run
    accelerator: Accelerator
    parts: TrainingParts
    trackers: Trackers | None
    guard: FiniteGuard = field(default_factory=FiniteGuard)
    evaluations: Evaluations = field(init=False)  # they record through the loop
    _saved: int | None = None  # step of the newest checkpoint
    _started: float = 0.0
    _counted: int = 0  # steps since the last log line in this session

    def __post_init__(self) -> None:
        self._saved = self.run.start or None
        self._idle = IdleRoles(self.run.display)
        self._probes = (*live_probes(), *self.parts.probes)

    def train(self) -> bool:
        """Train to the last step, or to `stop_at_success`; False where a signal ended it. The last step is saved.

        Raises:
            UserError: A step cannot be taken; those before it are saved.
        """
        training, state, freezing = self.training, self.parts.state, self.parts.freezing
        stream = self.parts.batches.from_step(
            state.step,
            training.steps,
            workers=training.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        freezing.apply(self.policy, state.step + 1)
        model = self._wrapped()
        self._started = time.perf_counter()
        with self._training(), self._saving():
            while not self._is_done() and not self.run.interrupt.agreed():
                if freezing.changes_at(state.step + 1):
                    freezing.apply(self.policy, state.step + 1)
                    model = self._wrapped()
                self._step(model, stream)
                self._idle.look(state.step, state.optimizer, frozen=self._frozen_roles)
                self._around()
        return self._is_done()

    def _is_done(self) -> bool:
        early = self.evaluations.settings.stop_at_success is not None
        return self.parts.state.step >= self.training.steps or (early and on_any_process(self.evaluations.reached))

    @property
    def policy(self) -> nn.Module:
        """The policy without wrappers."""
        return self.parts.state.loaded.policy

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Save the last step, also after a signal; not where nothing was trained or it has been saved."""
        try:
            with suppress(StepAbandoned):
                yield
        except UserError:
            self._save_newest()
            raise
        self._save_newest()

    def _save_newest(self) -> None:
        step = self.parts.state.step
        if step and self._saved != step:
            self._save()

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Signals wait for the end of a step while the body runs."""
        self.run.interrupt.training = True
        try:
            with warnings.catch_warnings():
                if self.parts.freezing.until:
                    # They wait for their step; the optimizer would say that they take no part in the loss.
                    warnings.filterwarnings("ignore", message=".*had no usable gradient in.*")
                yield
        finally:
            self.run.interrupt.training = False

    def _wrapped(self) -> nn.Module:
        """The policy, in DDP where several processes have copies: made anew when other parameters have gradients."""
        if self.accelerator.num_processes == 1 or is_sharded(self.policy):
            return self.policy
        devices = [self.accelerator.device.index] if self.accelerator.device.type == "cuda" else None
        return DistributedDataParallel(self.policy, device_ids=devices, find_unused_parameters=True)

    def _step(self, model: nn.Module, stream: Iterator[dict[str, Any]]) -> None:
        state, step = self.parts.state, self.parts.state.step + 1
        logged = self._is_logged(step)
        state.optimizer.collect_telemetry = logged  # it copies weights: only where it is shown
        for _ in range(self.parts.runner.updates):
            numbers = self.parts.runner.backward(model, stream, step=step - 1)
            counts = self.guard.watch(numbers, step)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            if state.ema is not None and counts:  # else the average would take in the same weights twice
                state.ema.update()
            state.add(numbers)
        lr = float(state.scheduler.get_last_lr()[0])  # this step's: the schedule moves on
        state.scheduler.step()
        state.step = step
        self._counted += 1
        if logged:
            self._log(lr)

    def _is_logged(self, step: int) -> bool:
        return step in (1, self.training.steps) or step % self.training.log_every == 0

    def _log(self, lr: float) -> None:
        state, now = self.parts.state, time.perf_counter()
        seconds = (now - self._started) / max(self._counted, 1)
        self._started, self._counted = now, 0
        reading = read_probes(self.policy, state.optimizer, self._probes)
        row: dict[str, Any] = {
            "step": state.step,
            **state.means(),
            "lr": lr,
            "step_time": seconds,
            **self.parts.batches.progress(state.step, seconds),
            **reading.numbers,
        }
        self.record(row)
        self.run.display.step(row, self.training.steps, reading.panel)

    def record(self, row: dict[str, Any]) -> None:
        """Write a row of metrics, on the main process."""
        if self.accelerator.is_main_process:
            self.run.directory.append_metrics(row)
            if self.trackers is not None:
                self.trackers.log(row)

    def _frozen_roles(self) -> set[str]:
        mapping, frozen = self.parts.state.optimizer.symmetry, self.parts.freezing.frozen_at(self.parts.state.step)
        assert mapping is not None
        return {spec.label for spec in mapping if spec.name in frozen}

    def _around(self) -> None:
        """What happens between two steps; its time is not a step's."""
        paused = time.perf_counter()
        if self.accelerator.is_main_process:
            self._measure_held_out()  # before saving: a run that goes on from the checkpoint has the number as well
        every = self.checkpoints.every
        if every is not None and self.parts.state.step % every == 0:
            self._save()
        if self.accelerator.is_main_process:
            self.evaluations.collect()
        if self.evaluations.is_due(self.parts.state.step):
            with self.parts.state.gathered(kept=self.accelerator.is_main_process):
                if self.accelerator.is_main_process:
                    self.evaluations.start(self.parts.state)
        self._started += time.perf_counter() - paused

    def _measure_held_out(self) -> None:
        state, held_out = self.parts.state, self.parts.held_out
        if held_out is not None and held_out.due(state.step, self.training.steps):
            loss = held_out.measure(state)
            self.record({"step": state.step, "held_out/loss": loss})
            self.run.display.line(f"step {state.step}: loss {loss:+.4f} on episodes that are held out")

    def _save(self) -> None:
        self._saved = self.parts.state.step
        write_checkpoint(self.parts.state, self.run, keep_last=self.checkpoints.keep_last, samples=self.parts.samples)
        self.accelerator.wait_for_everyone()
