"""A live warning of divergence: inputs of a layer that all lie on one side of its strongest direction.

Spectral alignment (arXiv 2510.04202): c = <x, v> / ||x|| for a layer's inputs x and the top right singular vector v of
its weights. Where the signs of c are mixed, an update along v cancels over the batch; where they become one, all inputs
push the largest singular value the same way, and the loss explodes soon after. Beside it the RMS of the model's output.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlspec.diagnostics.probes import PROBES, Probe, Reading
from rlspec.optim import SpectralOptimizer
from rlspec.optim.sharding.shards import full, replicated_like

log = logging.getLogger(__name__)

EVERY = 10
"""Optimizer steps between two measurements."""

THRESHOLD = 0.95
"""Share of inputs on one side from which a layer counts as aligned: ours, the paper states none."""

PATIENCE = 3
"""Measurements in a row above the threshold that make a layer aligned."""

SPREAD = 0.5
"""Share of the layers, of those that began below the threshold, that have to be aligned for a warning. Single layers
of runs that train well are aligned for good: they read one picture's or one token's strong mean."""

MOST_LAYERS = 64
_POWER_STEPS = 8  # at first; one more at every measurement
_OUTPUTS = ("lm_head", "output")
_OUTPUT = ""  # stands for the output among names of layers


@dataclass
class _Layer:
    """One linear layer that is watched."""

    name: str
    weight: Tensor
    vector: Tensor
    share: Tensor | None = None  # of the newest measurement: inputs on the larger side
    began: float | None = None  # the first share
    checks: int = 0  # measurements in a row above the threshold


@dataclass
class SpectralAlignment:
    """A probe: the first reading attaches it, later ones tell of the newest measurement.

    It measures in the first training pass of every `every`-th step: a product of the inputs with one vector per layer.
    Layers that begin above the threshold, as those behind a strong mean do, do not count. It warns once.
    """

    every: int = EVERY
    threshold: float = THRESHOLD
    patience: int = PATIENCE
    _layers: list[_Layer] = field(default_factory=list)
    _output: Tensor | None = None
    _due: set[str] = field(default_factory=set)  # layers, and the output, that this step's first pass measures
    _attached: bool = False
    _fresh: bool = False
    _steps: int = 0
    _said: bool = False

    def __call__(self, model: nn.Module, optimizer: SpectralOptimizer) -> Reading:
        """Mean and largest share over layers that began below the threshold, and the RMS of the output."""
        if not self._attached:
            self._attach(model, optimizer)
        if not self._fresh:
            return Reading({})
        self._fresh = False
        numbers = {} if self._output is None else {"output/rms": float(self._output)}
        shares = {layer.name: self._judge(layer) for layer in self._layers if layer.share is not None}
        watched = [shares[layer.name] for layer in self._layers if (layer.began or 1.0) < self.threshold]
        if watched:
            numbers |= {"alignment/mean": sum(watched) / len(watched), "alignment/largest": max(watched)}
        return Reading(numbers, self._warn())

    def _judge(self, layer: _Layer) -> float:
        share = float(layer.share) if layer.share is not None else 0.5
        layer.share = None
        if layer.began is None:
            layer.began = share
        above = share >= self.threshold > layer.began
        layer.checks = layer.checks + 1 if above else 0
        return share

    def _warn(self) -> str:
        counted = [layer for layer in self._layers if layer.began is not None and layer.began < self.threshold]
        aligned = [layer.name for layer in counted if layer.checks >= self.patience]
        if aligned and len(aligned) >= SPREAD * len(counted) and not self._said:
            self._said = True
            log.warning(
                "all inputs of %d of %d layers (%s, ...) lie on one side of the strongest direction of their weights "
                "(%.0f%% or more in %d measurements): divergence often follows; lower optim.lr, or go back to an "
                "earlier checkpoint",
                len(aligned),
                len(counted),
                ", ".join(aligned[:3]),
                100 * self.threshold,
                self.patience,
            )
        return f"aligned layers {len(aligned)} of {len(counted)}" if aligned else ""

    def _attach(self, model: nn.Module, optimizer: SpectralOptimizer) -> None:
        self._attached = True
        modules = dict(model.named_modules())
        for name in _chosen(optimizer):
            module = modules.get(name.rpartition(".")[0])
            if isinstance(module, nn.Linear):
                start = torch.randn(module.in_features, generator=torch.Generator().manual_seed(0))
                start = start.to(module.weight.device)
                layer = _Layer(name.removesuffix(".weight"), module.weight, start)
                for _ in range(_POWER_STEPS):
                    _iterate(layer)
                self._layers.append(layer)
                module.register_forward_pre_hook(lambda _, given, layer=layer: self._see(layer, given[0]))
        output = _output_of(model, optimizer, modules)
        if output is not None:
            output.register_forward_hook(lambda _module, _given, result: self._see_output(result))
        optimizer.register_step_post_hook(lambda *_: self._next())
        self._expect()  # what a layer begins with, before a large step has aligned it

    def _expect(self) -> None:
        self._due = {_OUTPUT, *(layer.name for layer in self._layers)}

    def _begin(self) -> None:
        """Keep what the layers begin with, untold: a resumed run's lines are those of one that never stopped."""
        for layer in self._layers:
            if layer.share is not None:
                layer.began, layer.share = float(layer.share), None

    def _next(self) -> None:
        if self._steps == 0:
            self._begin()
        self._fresh = self._fresh or any(layer.share is not None for layer in self._layers)
        self._due.clear()
        self._steps += 1
        if self._steps % self.every == 0:
            self._expect()
            for layer in self._layers:
                _iterate(layer)

    def _see(self, layer: _Layer, given: Tensor) -> None:
        if layer.name in self._due and torch.is_grad_enabled():
            self._due.discard(layer.name)
            rows = given.detach().reshape(-1, given.shape[-1])
            positive = ((rows @ layer.vector.to(rows.dtype)) > 0).float().mean()
            layer.share = torch.maximum(positive, 1 - positive)

    def _see_output(self, result: Any) -> None:
        if _OUTPUT in self._due and isinstance(result, Tensor) and torch.is_grad_enabled():
            self._due.discard(_OUTPUT)
            norm = torch.linalg.vector_norm(result.detach(), dtype=torch.float32)
            self._output = norm / max(1, result.numel()) ** 0.5


def live_probes() -> list[Probe]:
    """What every run looks at: `PROBES`, and a new one of these."""
    return [*PROBES, SpectralAlignment()]


def _chosen(optimizer: SpectralOptimizer) -> list[str]:
    """Names of attention and MLP matrices, evenly thinned."""
    specs = optimizer.symmetry or ()
    names = [
        spec.name for spec in specs if len(spec.shape) == 2 and spec.role.startswith(("attention", "mlp", "linear"))
    ]
    return names[:: -(-len(names) // MOST_LAYERS) or 1]


def _output_of(model: nn.Module, optimizer: SpectralOptimizer, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The output head: of a language model also where it is tied to the embeddings."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(head, nn.Module):
        return head
    names = [spec.name for spec in optimizer.symmetry or () if spec.role in _OUTPUTS]
    return modules.get(names[-1].rpartition(".")[0]) if names else None


def _iterate(layer: _Layer) -> None:
    """One power iteration of `W^T W`; the vector goes on from where it was."""
    with torch.no_grad():
        weight = layer.weight.float()
        image = full(weight.T @ (weight @ replicated_like(weight, layer.vector)))
        layer.vector = image / image.norm().clamp(min=1e-30)
