"""Gradients of GRPO's loss on the chunks of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlspec.config.vla_schema import Grpo
from rlspec.optim import SpectralOptimizer
from rlspec.policy_gradient import approx_kl, clipped_surrogate
from rlspec.vla.evaluation.observation import to_batches
from rlspec.vla.policies.likelihood import ChunkDistribution
from rlspec.vla.reinforcement.rollouts import Block, LearntGroup
from rlspec.vla.reinforcement.telemetry import GroupGradients
from rlspec.vla.training.order import SHUFFLE, derive_seed


class GrpoRunner:
    """Leaves the gradient of one update after the other in the parameters.

    The loss is the mean over chunks of the clipped surrogate of their density's ratio; a mini-batch consists of whole
    groups. The policy stays in evaluation mode: both sides of a ratio see the same network.

    Args:
        accelerator: device and precision.
        preprocessor: LeRobot's pipeline for observations.
        distribution: of the policy that is trained.
        settings: the recipe's section.
        batch_size: chunks in one forward pass.
        seed: of the run.
        clip: norm that gradients are scaled down to; 0: none.
        optimizer: whose telemetry is on in the steps that are logged.
        gradients: is told of each group then.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        preprocessor: Any,
        distribution: ChunkDistribution,
        settings: Grpo,
        *,
        batch_size: int,
        seed: int,
        clip: float,
        optimizer: SpectralOptimizer,
        gradients: GroupGradients,
    ) -> None:
        self.updates = settings.update_epochs * settings.mini_batches  # in a step
        self._accelerator, self._preprocessor, self._distribution = accelerator, preprocessor, distribution
        self._settings, self._batch_size, self._seed, self._clip = settings, batch_size, seed, clip
        self._optimizer, self._gradients = optimizer, gradients
        self._block: Block | None = None
        self._before: list[list[Tensor]] = []  # log-densities of each group's parts before the step
        self._update = 0  # of the step, counted from 0

    def backward(self, model: nn.Module, blocks: Iterator[Block], *, step: int) -> dict[str, float]:
        """The gradient of the step's next update; returns numbers to log.

        Args:
            model: the policy.
            blocks: of which one is taken for each step.
            step: counted from 0.
        """
        if self._block is None:
            self._block, self._update = next(blocks), 0
            model.eval()
            self._before = self._weigh(self._block) if self.updates > 1 else []
        numbers = self._descend(self._block, self._chosen(len(self._block.groups), step))
        norm = self._accelerator.clip_grad_norm_(model.parameters(), self._clip or math.inf)
        numbers |= {"grad_norm": float(norm), **self._block.numbers}
        self._update += 1
        if self._update == self.updates:
            self._block = None
        return numbers

    def _chosen(self, groups: int, step: int) -> list[int]:
        """Groups of the present update: the passes of a step cut them in orders of their own."""
        epoch, part = divmod(self._update, self._settings.mini_batches)
        if self._settings.mini_batches == 1:
            return list(range(groups))
        generator = torch.Generator().manual_seed(derive_seed(self._seed, SHUFFLE, step, epoch))
        parts = torch.randperm(groups, generator=generator).tensor_split(self._settings.mini_batches)
        return parts[part].tolist()

    def _weigh(self, block: Block) -> list[list[Tensor]]:
        with torch.no_grad():
            return [[self._log_prob(group, part) for part in self._parts(group)] for group in block.groups]

    def _descend(self, block: Block, chosen: list[int]) -> dict[str, float]:
        watched = self._optimizer.collect_telemetry
        total = sum(len(block.groups[number]) for number in chosen)
        device = self._accelerator.device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for number in chosen:
            group = block.groups[number]
            for index, part in enumerate(self._parts(group)):
                log_prob = self._log_prob(group, part)
                before = self._before[number][index] if self._before else log_prob.detach()
                log_ratio = log_prob - before
                advantages = group.advantages[part].to(log_ratio)
                loss, clipped = clipped_surrogate(
                    log_ratio, advantages, clip_low=self._settings.clip_low, clip_high=self._settings.clip_high
                )
                self._accelerator.backward(loss.sum() / total)
                kl = approx_kl(log_ratio.detach())
                sums += torch.stack([loss.detach().sum(), clipped.double().sum(), kl.sum()])
            if watched:
                self._gradients.add_group()
        if watched:
            self._gradients.close()
        loss_mean, clip_ratio, divergence = (sums / max(total, 1)).tolist()
        return {"loss": loss_mean, "clip_ratio": clip_ratio, "approx_kl": divergence, "rollout/chunks": float(total)}

    def _parts(self, group: LearntGroup) -> list[slice]:
        return [slice(start, start + self._batch_size) for start in range(0, len(group), self._batch_size)]

    def _log_prob(self, group: LearntGroup, part: slice) -> Tensor:
        batch = self._preprocessor(to_batches(group.observations[part], group.instructions[part]))
        with self._accelerator.autocast():
            return self._distribution.log_prob(batch, group.draws[part].to(self._accelerator.device))
