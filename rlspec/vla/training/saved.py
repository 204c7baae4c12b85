"""Bytes that a forward pass keeps for its backward pass, those of recomputed layers among them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

CHECKPOINT = "_gradient_checkpointing_func"  # where modules of transformers keep torch's checkpoint


class _Kept:
    """A tensor that autograd keeps; it is gone when the part of the graph that keeps it is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor


class _Frame:
    """What is kept while one function runs: the pass itself, or one whose inside is computed again."""

    def __init__(self) -> None:
        self.saved: list[weakref.ref[_Kept]] = []
        self.inputs: list[Tensor] = []  # of functions inside, whose insides are computed again
        self.within = 0  # bytes of such an inside, at the most: each is there when it is its turn

    def storages(self) -> dict[int, int]:
        """Storage -> bytes."""
        alive = [kept.tensor for each in self.saved if (kept := each()) is not None and kept.tensor is not None]
        return {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in (*alive, *self.inputs)}

    def forget(self) -> None:
        """Let go of the tensors, as a layer does that is computed again."""
        for each in self.saved:
            if (kept := each()) is not None:
                kept.tensor = None


class SavedTensors:
    """Counts storages, each once, without those of a model's parameters."""

    def __init__(self, model: nn.Module) -> None:
        self._known = {_storage(parameter) for parameter in model.parameters()}
        self._frames = [_Frame()]

    def note(self, tensor: Tensor) -> _Kept:
        """Keep what autograd keeps."""
        kept = _Kept(tensor.detach())  # which knows of no graph: an output that its own node keeps would never go
        self._frames[-1].saved.append(weakref.ref(kept))
        return kept

    def recomputed(self, function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        """In place of `torch.utils.checkpoint.checkpoint`: inputs are kept, the inside only while it is its turn."""
        given = {name: value for name, value in settings.items() if name not in _OF_CHECKPOINT}
        self._frames[-1].inputs += [value for value in tree_leaves((args, given)) if isinstance(value, Tensor)]
        self._frames.append(_Frame())
        try:
            return function(*args, **given)
        finally:
            peak = self.peak()
            inner = self._frames.pop()
            inner.forget()
            self._frames[-1].within = max(self._frames[-1].within, peak)

    def peak(self) -> int:
        """Bytes of the innermost function that runs, without what those around it keep anyway."""
        *around, inner = self._frames
        others = self._known.union(*(frame.storages() for frame in around))
        return sum(size for key, size in inner.storages().items() if key not in others) + inner.within


_OF_CHECKPOINT = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def activation_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes at the peak of a backward pass, without parameters and gradients; buffers are left as they were."""
    counted = SavedTensors(model)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with _checkpointing_by(model, counted.recomputed), saved_tensors_hooks(counted.note, lambda kept: kept.tensor):
        loss = forward()
    peak = counted.peak()
    del loss
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return peak


@contextmanager
def _checkpointing_by(model: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    modules = [module for module in model.modules() if CHECKPOINT in vars(module)]
    before = [getattr(module, CHECKPOINT) for module in modules]
    for module in modules:
        setattr(module, CHECKPOINT, function)
    try:
        with patch("torch.utils.checkpoint.checkpoint", function):
            yield
    finally:
        for module, value in zip(modules, before, strict=True):
            setattr(module, CHECKPOINT, value)


@dataclass(frozen=True)
class Activations:
    """Bytes that grow with the batch, and those that do not, as copies of weights in another precision."""

    fixed: int
    per_sample: int

    @classmethod
    def measure(cls, model: nn.Module, forward: Callable[[int], Tensor]) -> Activations:
        """From passes over one sample and over two."""
        one, two = (activation_bytes(model, lambda size=size: forward(size)) for size in (1, 2))  # type: ignore[misc]
        return cls(max(2 * one - two, 0), two - one)

    def of(self, batch_size: int) -> int:
        """Of a batch."""
        return self.fixed + batch_size * self.per_sample
