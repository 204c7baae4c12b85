"""Checkpoints: the policy as LeRobot keeps it, and beside it what an exact resume needs.

<checkpoint-N>/
  config.json, model.safetensors               of the policy (its averaged weights where there are any), or of its
  adapter_config.json, adapter_model...        adapters: what PreTrainedPolicy.from_pretrained and lerobot-eval read
  policy_preprocessor*, policy_postprocessor*  LeRobot's pipelines with the statistics
  rlspec.json                                  action space, rate, law, horizon, cameras: see rlspec.vla.data.facts
  training_state.pt                            optimizer, schedule, averages, raw weights, sums of the next log line
  recipe.yaml, symmetry.md, .json, manifest.json
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from rlspec.checkpoint import checkpoint_name, rotate_checkpoints
from rlspec.errors import CheckpointError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.sharding.state import fill, whole, whole_state
from rlspec.runtime.provenance import described_folder
from rlspec.runtime.sharding import is_sharded, unsharded
from rlspec.runtime.starting import Run
from rlspec.vla.training.ema import Ema, replaced
from rlspec.vla.training.policy import LoadedPolicy

STATE = "training_state.pt"


@dataclass
class TrainingState:
    """All that changes from step to step."""

    loaded: LoadedPolicy
    optimizer: SpectralOptimizer
    scheduler: LRScheduler
    ema: Ema | None
    trained: dict[str, nn.Parameter]  # parameters that move at some time, by name
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of what is logged next
    summed: int = 0  # steps in it
    _averages: dict[str, Tensor] = field(default_factory=dict)  # whole, while they are gathered

    def add(self, numbers: Mapping[str, float]) -> None:
        """Count a step's numbers for the next log line."""
        self.summed += 1
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Means over the steps since the last log line, which begin anew."""
        means = {name: value / self.summed for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means

    @contextmanager
    def gathered(self, *, kept: bool) -> Iterator[None]:
        """Whole weights and averages while the body runs, in which the process that keeps them may call `save_policy`.

        Every process calls it.
        """
        self._averages = {} if self.ema is None else self.ema.state_dict(kept=kept)["averages"]
        try:
            with unsharded(self.loaded.policy):
                yield
        finally:
            self._averages = {}

    def save_policy(self, folder: Path) -> None:
        """Write what is evaluated and kept: the averaged weights where there are any."""
        with replaced(dict(self.loaded.policy.named_parameters()), self._averages):
            self.loaded.save(folder, step=self.step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Whole weights, averaged where there are averages, on every process while the body runs."""
        with self.gathered(kept=True), replaced(dict(self.loaded.policy.named_parameters()), self._averages):
            yield

    def content(self, *, kept: bool) -> dict[str, Any]:
        """All else that `restore` needs, whole, for the process that keeps it. On every process."""
        content: dict[str, Any] = {
            "step": self.step,
            "optimizer": whole_state(self.optimizer, kept=kept),
            "scheduler": self.scheduler.state_dict(),
            "sums": self.sums,
            "summed": self.summed,
        }
        if self.ema is not None:
            content["ema"] = {"steps": self.ema.steps, "averages": self._averages}
            weights = {name: parameter.detach() for name, parameter in self.trained.items()}
            content["weights"] = {name: whole(value, kept=kept) for name, value in weights.items()}
        return content

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint, of which the policy has been read already.

        Raises:
            CheckpointError: It belongs to another optimizer or other parameters.
        """
        device = next(self.loaded.policy.parameters()).device
        location = "cpu" if is_sharded(self.loaded.policy) else device  # the whole has no room on the device
        content = torch.load(folder / STATE, map_location=location, weights_only=True)
        if (self.ema is None) != ("ema" not in content):
            raise CheckpointError(f"{folder}: {STATE} was written with training.ema_decay on or off, unlike this run")
        self.step = int(content["step"])
        self.sums, self.summed = dict(content["sums"]), int(content["summed"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        if self.ema is not None:
            self.ema.load_state_dict(content["ema"])
            for name, parameter in self.trained.items():
                fill(parameter, content["weights"][name])


def write_checkpoint(state: TrainingState, run: Run, *, keep_last: int, samples: int) -> None:
    """Put the checkpoint of the newest step in place, and remove the oldest. On every process; the main one writes.

    Args:
        state: after a step.
        run: whose checkpoint it is.
        keep_last: checkpoints that stay.
        samples: of a step, which a resume on another number of processes makes again.
    """
    target = run.directory.checkpoints / checkpoint_name(state.step)
    main = run.process.is_main_process
    with state.gathered(kept=main):
        content = state.content(kept=main)
        if not main:
            return
        with described_folder(target, run, state.step, samples=samples) as folder:
            state.save_policy(folder)
            torch.save(content, folder / STATE)
    rotate_checkpoints(run.directory.checkpoints, keep_last=keep_last)
