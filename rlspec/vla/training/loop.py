"""The training loop: steps, metrics, checkpoints and evaluations of one run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rlspec.config.vla_schema import VlaRecipe
from rlspec.display import Display
from rlspec.run_directory import RunDirectory
from rlspec.runtime.idle import EVERY, IdleRoles
from rlspec.runtime.interrupt import Interrupt
from rlspec.vla.training.evaluations import Evaluations, Evaluator
from rlspec.vla.training.session import Parts
from rlspec.vla.training.state import write_checkpoint
from rlspec.vla.training.step import FiniteGuard
from rlspec.vla.training.trackers import Trackers

GATE = "gating_factor"


@dataclass
class Loop:
    """What a run's steps need; `run` takes them all."""

    recipe: VlaRecipe
    run_directory: RunDirectory
    display: Display
    accelerator: Accelerator
    parts: Parts
    evaluator: InitVar[Evaluator | None]
    trackers: Trackers | None
    interrupt: Interrupt
    saved: int | None = None  # step of the newest checkpoint
    guard: FiniteGuard = field(default_factory=FiniteGuard)
    evaluations: Evaluations = field(init=False)
    _started: float = 0.0
    _counted: int = 0  # steps since the last log line in this session

    def __post_init__(self, evaluator: Evaluator | None) -> None:
        self.evaluations = Evaluations(self.recipe, self.run_directory, self.display, evaluator, self.record)

    def run(self) -> bool:
        """Train to the last step; returns False where a signal ended it before. The last step is saved."""
        training, state, freezing = self.recipe.training, self.parts.state, self.parts.freezing
        idle = IdleRoles(self.display)
        stream = self.parts.batches.from_step(
            state.step,
            training.steps,
            workers=training.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        freezing.apply(self.policy, state.step + 1)
        model = self._wrapped()
        self._started = time.perf_counter()
        with self._training():
            while state.step < training.steps and not self.interrupt.agreed():
                if freezing.changes_at(state.step + 1):
                    freezing.apply(self.policy, state.step + 1)
                    model = self._wrapped()
                self._step(model, stream)
                if state.step % EVERY == 0:
                    idle.look(state.optimizer, frozen=self._frozen_roles())
                self._around()
            if self.saved != state.step and state.step:
                self._save()
        return state.step >= training.steps

    @property
    def policy(self) -> nn.Module:
        """The policy without wrappers."""
        return self.parts.state.loaded.policy

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Signals wait for the end of a step while the body runs."""
        self.interrupt.training = True
        try:
            with warnings.catch_warnings():
                if self.parts.freezing.until:
                    # They wait for their step; the optimizer would say that they take no part in the loss.
                    warnings.filterwarnings("ignore", message=".*had no usable gradient in.*")
                yield
        finally:
            self.interrupt.training = False

    def _wrapped(self) -> nn.Module:
        """The policy, in DDP where there are several processes: made anew when other parameters have gradients."""
        if self.accelerator.num_processes == 1:
            return self.policy
        devices = [self.accelerator.device.index] if self.accelerator.device.type == "cuda" else None
        return DistributedDataParallel(self.policy, device_ids=devices, find_unused_parameters=True)

    def _step(self, model: nn.Module, stream: Iterator[dict[str, Any]]) -> None:
        state, step = self.parts.state, self.parts.state.step + 1
        logged = self._is_logged(step)
        state.optimizer.collect_telemetry = logged
        numbers = self.parts.runner.backward(model, stream, step=step - 1)
        counts = self.guard.watch(numbers, step)
        lr = float(state.scheduler.get_last_lr()[0])
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.scheduler.step()
        if state.ema is not None and counts:
            state.ema.update()
        state.step = step
        state.add(numbers)
        self._counted += 1
        if logged:
            self._log(lr)

    def _is_logged(self, step: int) -> bool:
        return step in (1, self.recipe.training.steps) or step % self.recipe.training.log_every == 0

    def _log(self, lr: float) -> None:
        state, now = self.parts.state, time.perf_counter()
        seconds = (now - self._started) / max(self._counted, 1)
        self._started, self._counted = now, 0
        row: dict[str, Any] = {
            "step": state.step,
            **state.means(),
            "lr": lr,
            "epoch": self.parts.batches.order.epochs(state.step),
            "step_time": seconds,
            "samples_per_second": self.parts.batches.shape.samples / seconds,
            **self._gates(),
        }
        for role, values in state.optimizer.telemetry().items():
            row.update({f"optim/{role}/{name}": value for name, value in values.items()})
        self.record(row)
        self.display.step(row, self.recipe.training.steps)

    def record(self, row: dict[str, Any]) -> None:
        """Write a row of metrics, on the main process."""
        if self.accelerator.is_main_process:
            self.run_directory.append_metrics(row)
            if self.trackers is not None:
                self.trackers.log(row)

    def _gates(self) -> dict[str, float]:
        """How far the gates of a gated head are open."""
        gates = {name: value.detach() for name, value in self.policy.named_parameters() if name.endswith(GATE)}
        return {f"gate/{name.removesuffix('.' + GATE)}": float(value.tanh().mean()) for name, value in gates.items()}

    def _frozen_roles(self) -> set[str]:
        mapping, frozen = self.parts.state.optimizer.symmetry, self.parts.freezing.frozen_at(self.parts.state.step)
        assert mapping is not None
        return {spec.label for spec in mapping if spec.name in frozen}

    def _around(self) -> None:
        """What happens between two steps; its time is not a step's."""
        paused = time.perf_counter()
        every = self.recipe.checkpoints.every
        if every is not None and self.parts.state.step % every == 0:
            self._save()
        if self.accelerator.is_main_process:
            self.evaluations.collect()
            self.evaluations.start(self.parts.state)
        self._started += time.perf_counter() - paused

    def _save(self) -> None:
        self.saved = self.parts.state.step
        if self.accelerator.is_main_process:
            write_checkpoint(self.parts.state, self.recipe, self.run_directory)
        self.accelerator.wait_for_everyone()
