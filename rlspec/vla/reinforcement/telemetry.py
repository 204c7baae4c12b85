"""How many directions the action part's gradient has, and how much of it is noise between groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlspec.diagnostics.measures.ranks import singular_values, stable_rank
from rlspec.diagnostics.probes import Reading
from rlspec.optim import SpectralOptimizer
from rlspec.optim.map.spec import SymmetryMap


class GroupGradients:
    """A probe of the newest update in which each group's gradient was seen.

    `grad/action_stable_rank` is the median over the action part's matrices of the gradient's stable rank,
    `grad/action_stable_rank_of_a_group` that of the single groups' gradients. `grad/group_noise` is tr Cov(g) / |g|^2
    of the mean g over G groups, with tr Cov(g) estimated by sum |g_k - g|^2 / (G (G - 1)): above 1 most of the gradient
    is noise.
    """

    def __init__(self, policy: nn.Module, mapping: SymmetryMap) -> None:
        matrices = {spec.name for spec in mapping if spec.modality == "action"}
        self._watched = [
            parameter
            for name, parameter in policy.named_parameters()
            if name in matrices and parameter.ndim == 2 and min(parameter.shape) > 1 and parameter.requires_grad
        ]
        self._before: list[Tensor] | None = None
        self._squares: list[float] = []
        self._ranks: list[float] = []
        self._newest: dict[str, float] = {}

    def add_group(self) -> None:
        """A group's backward passes are done: its gradient is what they added."""
        now = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in self._watched]
        own = now if self._before is None else [new - old for new, old in zip(now, self._before, strict=True)]
        self._squares.append(_squared(own))
        self._ranks.append(_median_rank(own))
        self._before = now

    def close(self) -> None:
        """The update's last group is done."""
        count, whole = len(self._squares), self._before or []
        self._newest = {}
        if count > 1 and (square := _squared(whole)) > 0:
            spread = count * max(0.0, sum(self._squares) - square / count) / (count - 1)
            self._newest = {
                "grad/action_stable_rank": _median_rank(whole),
                "grad/action_stable_rank_of_a_group": sum(self._ranks) / count,
                "grad/group_noise": spread / square,
            }
        self._before, self._squares, self._ranks = None, [], []

    def __call__(self, model: nn.Module, optimizer: SpectralOptimizer) -> Reading:
        """What was seen."""
        if not self._newest:
            return Reading({})
        rank, noise = self._newest["grad/action_stable_rank"], self._newest["grad/group_noise"]
        return Reading(
            self._newest, f"action gradients: stable rank {rank:.1f}, noise over groups {noise:.1f}x the signal"
        )


def _squared(gradients: list[Tensor]) -> float:
    return sum(float(gradient.double().square().sum()) for gradient in gradients)


def _median_rank(gradients: list[Tensor]) -> float:
    ranks = [float(stable_rank(singular_values(gradient))) for gradient in gradients if gradient.any()]
    return float(torch.tensor(ranks).median()) if ranks else 0.0
