"""A batch that doubles while its gradient is mostly noise: AdAdaGrad's norm test, obeyed (arXiv 2402.11215).

The paper grows the batch to what a step's test asks for; here it doubles, and only after several steps have said so
together, because one step's ratio is itself noisy (about 1 where there is nothing but noise). The number of optimizer
steps and their learning rates stay: what grows is the number of prompts in a step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from rlspec.diagnostics.norm_test import NormTest
from rlspec.diagnostics.probes import Reading
from rlspec.display import Display
from rlspec.optim import SpectralOptimizer
from rlspec.rlvr.training.batching import BatchPlan

WINDOW = 5
"""Steps whose noise is averaged before the batch may double."""


class BatchGrowth(TrainerCallback):
    """Asks the trainer to save and stop where the batch has to double; who trains goes on from there with `plan`.

    It stops at the end of a block of rollouts, so that a step's prompts are never split between two sizes.

    Attributes:
        plan: of the steps from here on.
        origin: optimizer step from which on `plan` holds, and the prompts that were drawn before.
    """

    def __init__(
        self,
        test: NormTest,
        plan: BatchPlan,
        display: Display,
        *,
        limit: int,
        steps_per_block: int,
    ) -> None:
        """`limit` is the most prompts that a step may have, `steps_per_block` the optimizer steps between rollouts."""
        self.test = test
        self.plan = plan
        self.display = display
        self.limit = limit
        self.steps_per_block = steps_per_block
        self.origin = (0, 0)
        self._doubled = False
        self._noise: list[tuple[float, float]] = []  # of the newest steps of this size

    def __call__(self, model: nn.Module, optimizer: SpectralOptimizer) -> Reading:
        """A probe: the size of the batch."""
        return Reading({"noise/prompts_per_step": float(self.plan.prompts_per_step)})

    def record(self) -> dict[str, Any]:
        """What a resumed run needs, for a checkpoint's manifest."""
        return {
            "prompts_per_step": self.plan.prompts_per_step,
            "origin": list(self.origin),
            "noise": [list(pair) for pair in self._noise],
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go on where `record` was taken."""
        self.plan = replace(self.plan, prompts_per_step=record["prompts_per_step"])
        self.origin = (record["origin"][0], record["origin"][1])
        self._noise = [(scatter, square) for scatter, square in record["noise"]]

    def take(self) -> bool:
        """Whether the batch has doubled since the last call."""
        doubled, self._doubled = self._doubled, False
        return doubled

    def on_train_begin(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        """The first step is seen as well."""
        self.test.attach(getattr(optimizer, "optimizer", optimizer))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Judge the steps since the batch had its size."""
        noise = _over_processes(self.test.noise())
        if noise is not None:
            self._noise = [*self._noise, noise][-WINDOW:]
        step, prompts = state.global_step, self.plan.prompts_per_step
        if len(self._noise) < WINDOW or step % self.steps_per_block:
            return
        scatter, square = (sum(values) for values in zip(*self._noise, strict=True))
        ratio = scatter / (square * self.test.eta**2)
        if ratio <= 1 or 2 * prompts > self.limit:
            return
        start, drawn = self.origin
        blocks = (step - start) // self.steps_per_block
        self.origin = (step, drawn + blocks * self.plan.prompts_per_generation)
        self.plan = replace(self.plan, prompts_per_step=2 * prompts)
        self._doubled, self._noise = True, []
        self.display.line(
            f"step {step}: the noise of {WINDOW} steps was {ratio:.2g} times what the norm test allows; from here on a "
            f"step has {2 * prompts} prompts instead of {prompts} (batch.grow, at most {self.limit})"
        )
        control.should_save = control.should_training_stop = True


def _over_processes(noise: tuple[float, float] | None) -> tuple[float, float] | None:
    """The mean over processes, so that all decide alike; None where one of them has no number."""
    state = PartialState()
    if state.num_processes == 1:
        return noise
    mine: Tensor = torch.tensor([*(noise or (0.0, 0.0)), float(noise is not None)], device=state.device)
    scatter, square, known = reduce(mine, reduction="mean").tolist()
    return (scatter, square) if known == 1 else None
