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

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from rlspec.checkpoint import checkpoint_name, rotate_checkpoints
from rlspec.errors import CheckpointError
from rlspec.optim import SpectralOptimizer
from rlspec.runtime.provenance import described_folder
from rlspec.runtime.starting import Run
from rlspec.vla.training.ema import Ema
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

    def save_policy(self, folder: Path) -> None:
        """Write what is evaluated and kept: the averaged weights where there are any."""
        if self.ema is None:
            self.loaded.save(folder, step=self.step)
            return
        with self.ema.applied():
            self.loaded.save(folder, step=self.step)

    def save(self, folder: Path) -> None:
        """Write the policy and all else that `restore` needs."""
        self.save_policy(folder)
        content: dict[str, Any] = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sums": self.sums,
            "summed": self.summed,
        }
        if self.ema is not None:
            content["ema"] = self.ema.state_dict()
            content["weights"] = {name: parameter.detach() for name, parameter in self.trained.items()}
        torch.save(content, folder / STATE)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint, of which the policy has been read already.

        Raises:
            CheckpointError: It belongs to another optimizer or other parameters.
        """
        device = next(self.loaded.policy.parameters()).device
        content = torch.load(folder / STATE, map_location=device, weights_only=True)
        if (self.ema is None) != ("ema" not in content):
            raise CheckpointError(f"{folder}: {STATE} was written with training.ema_decay on or off, unlike this run")
        self.step = int(content["step"])
        self.sums, self.summed = dict(content["sums"]), int(content["summed"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        if self.ema is not None:
            self.ema.load_state_dict(content["ema"])
            with torch.no_grad():
                for name, parameter in self.trained.items():
                    parameter.copy_(content["weights"][name])


def write_checkpoint(state: TrainingState, run: Run, *, keep_last: int) -> Path:
    """Put the checkpoint of the newest step in place, and remove the oldest."""
    target = run.directory.checkpoints / checkpoint_name(state.step)
    with described_folder(target, run, state.step) as folder:
        state.save(folder)
    rotate_checkpoints(run.directory.checkpoints, keep_last=keep_last)
    return target
