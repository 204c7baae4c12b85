"""Whether the batch is large enough for its gradient to be more than noise: AdAdaGrad's norm test (arXiv 2402.11215).

    tr Cov(g) <= eta^2 ||g||^2,  g the mean of the gradients of a step's K micro-batches

with `tr Cov(g)` estimated by `sum_k ||g_k - g||^2 / (K (K - 1))`. Their ratio over eta^2 is by how much the batch would
have to grow. AdAdaGrad grows it; `batch.norm_test` says so, and `batch.grow` doubles it (rlvr/training/growth.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlspec.diagnostics.probes import Reading
from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer


class NormTest:
    """A probe: the first reading attaches it, every later one tells of the newest optimizer step.

    Two norms per parameter and backward pass, for which nothing waits until the reading. Gradients are seen as they
    come, before any clipping; those of other processes are not.
    """

    def __init__(self, eta: float = 1.0) -> None:
        """At `eta` 1 noise may be as large as the gradient; smaller ones ask for more.

        Raises:
            ConfigError: unless eta is positive.
        """
        if not eta > 0:
            raise ConfigError(f"eta={eta!r}: must be positive")
        self.eta = eta
        self._attached = False
        self._coming: dict[Tensor, Tensor] = {}  # ||g_k||^2 of a gradient that is not added yet
        self._each: dict[Tensor, Tensor] = {}  # sum of ||g_k||^2
        self._total: dict[Tensor, Tensor] = {}  # ||sum of g_k||^2 so far
        self._passes: dict[Tensor, int] = {}
        self._newest: tuple[int, Tensor, Tensor] | None = None

    def __call__(self, model: nn.Module, optimizer: SpectralOptimizer) -> Reading:
        """The ratio as `noise/norm_test_ratio`, and a word where the batch is too small."""
        self.attach(optimizer)
        ratio = self.ratio()
        if ratio is None:
            return Reading({})
        numbers = {"noise/norm_test_ratio": ratio}
        if ratio <= 1:
            return Reading(numbers)
        return Reading(numbers, f"gradient mostly noise: a batch {ratio:.1f}x as large would pass the norm test")

    def ratio(self) -> float | None:
        """`tr Cov(g) / (eta^2 ||g||^2)` of the newest step: the test is passed up to 1.

        None: not attached yet, fewer than two backward passes in the step, or no finite gradient.
        """
        noise = self.noise()
        return None if noise is None else noise[0] / (noise[1] * self.eta**2)

    def noise(self) -> tuple[float, float] | None:
        """`tr Cov(g)` and `||g||^2` of the newest step, up to a factor that both have; None as for `ratio`."""
        if self._newest is None or self._newest[0] < 2:
            return None
        passes, each, total = self._newest[0], float(self._newest[1]), float(self._newest[2])
        if not (math.isfinite(each) and math.isfinite(total)) or total == 0:
            return None
        return passes * max(0.0, each - total / passes) / (passes - 1), total

    def attach(self, optimizer: SpectralOptimizer) -> None:
        """See the gradients of all steps from here on; a second call does nothing."""
        if self._attached:
            return
        self._attached = True
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.register_hook(lambda gradient, param=param: self._see(param, gradient))
                param.register_post_accumulate_grad_hook(self._accumulated)
        optimizer.register_step_pre_hook(lambda *_: self._close())

    def _see(self, param: Tensor, gradient: Tensor) -> None:
        self._coming[param] = _squared_norm(gradient)

    def _accumulated(self, param: Tensor) -> None:
        square = self._coming.pop(param, None)
        if square is not None and param.grad is not None:
            self._each[param] = self._each[param] + square if param in self._each else square
            self._total[param] = _squared_norm(param.grad)
            self._passes[param] = self._passes.get(param, 0) + 1

    def _close(self) -> None:
        if self._each:
            device = next(iter(self._each)).device
            sums = [
                torch.stack([value.to(device) for value in kept.values()]).sum() for kept in (self._each, self._total)
            ]
            self._newest = (max(self._passes.values()), *sums)  # type: ignore[assignment]
        self._each, self._total, self._passes = {}, {}, {}


def _squared_norm(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32).double().square()
