"""One optimizer step: forward and backward passes over a batch's parts, clipping, update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlspec.errors import UserError
from rlspec.optim.sharding.shards import full
from rlspec.vla.training.augmentation import to_float
from rlspec.vla.training.order import FORWARD, BatchShape, derive_seed, seed_all
from rlspec.vla.training.samples import camera_keys, to_device

PATIENCE = 10


@dataclass
class StepRunner:
    """Gradients of a step, from its batches."""

    accelerator: Accelerator  # devices, mixed precision and the other processes
    preprocessor: Any  # LeRobot's pipeline
    shape: BatchShape
    seed: int  # of the run
    clip: float  # norm that gradients are scaled down to; 0: none
    updates: int = 1  # in a step

    def forward(self, model: nn.Module, batch: dict[str, Any], *, step: int, number: int) -> tuple[Tensor, Any]:
        """Loss, and the policy's own numbers.

        Random numbers (noise, time, dropout) belong to the step and the pass's place in it: a resumed run draws them
        again, on any number of processes.
        """
        batch = to_device(batch, self.accelerator.device)
        for key in camera_keys(batch):
            batch[key] = to_float(batch[key])
        batch = self.preprocessor(batch)
        seed_all(derive_seed(self.seed, FORWARD, step, self.shape.place(number), 0))
        with self.accelerator.autocast():
            loss, info = model(batch)
        return loss, info

    def backward(self, model: nn.Module, batches: Any, *, step: int) -> dict[str, float]:
        """Leave the mean gradient of a step in the parameters; returns the means of the numbers to log.

        Args:
            model: the policy, wrapped where there are several processes.
            batches: iterator, of which `shape.passes` are taken.
            step: counted from 0.
        """
        totals: dict[str, Tensor | float] = {}
        for number in range(self.shape.passes):
            batch = next(batches)
            if number + 1 < self.shape.passes:
                with self.accelerator.no_sync(model):
                    loss, info = self._pass(model, batch, step, number)
            else:
                loss, info = self._pass(model, batch, step, number)
            totals["loss"] = totals.get("loss", 0.0) + loss
            for name, value in numbers_of(info).items():
                totals[name] = totals.get(name, 0.0) + value
        means = {name: value / self.shape.passes for name, value in totals.items()}
        means["grad_norm"] = self._clip(model)
        return self._on_host(means)

    def _pass(self, model: nn.Module, batch: dict[str, Any], step: int, number: int) -> tuple[Tensor, Any]:
        loss, info = self.forward(model, batch, step=step, number=number)
        self.accelerator.backward(loss / self.shape.passes)
        return loss.detach(), info

    def _clip(self, model: nn.Module) -> Tensor:
        norm = self.accelerator.clip_grad_norm_(model.parameters(), self.clip or math.inf)
        return full(torch.as_tensor(norm))

    def _on_host(self, numbers: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Values of all numbers, by one transfer; means over processes."""
        device = self.accelerator.device
        stacked = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=device) for value in numbers.values()]
        )
        if self.accelerator.num_processes > 1:
            stacked = self.accelerator.reduce(stacked, reduction="mean")
        return dict(zip(numbers, stacked.tolist(), strict=True))


def numbers_of(info: Any) -> dict[str, float]:
    """Scalars of what a policy returns beside its loss; a second `loss` among them is the first one's."""
    if not isinstance(info, Mapping):
        return {}
    scalars = {
        name: value
        for name, value in info.items()
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
    }
    return {f"loss/{name}": float(value) for name, value in scalars.items() if name != "loss"}


@dataclass
class FiniteGuard:
    """Steps whose loss or gradient is NaN or infinite change nothing; too many in a row end the run."""

    patience: int = PATIENCE
    _bad: list[int] = field(default_factory=list)

    def watch(self, numbers: Mapping[str, float], step: int) -> bool:
        """Whether the step, counted from 1, counts.

        Raises:
            UserError: It is the last of `patience` in a row that do not.
        """
        if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):
            self._bad.clear()
            return True
        self._bad.append(step)
        if len(self._bad) >= self.patience:
            raise UserError(
                f"loss or gradients were NaN or infinite in steps {self._bad[0]} to {step}: lower optim.lr or "
                "training.grad_clip_norm, lengthen training.scheduler.num_warmup_steps, or check the data set"
            )
        return False
