"""A rough account of the memory that a run needs, made before the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from rlspec.errors import ConfigError
from rlspec.optim.map.symmetry import SymmetryMap
from rlspec.runtime.devices import GIB


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device.

    Attributes:
        weights: all of the policy's.
        gradients: of trained parameters.
        optimizer: state, by the rule of each parameter.
        averages: of the exponential moving average.
        activations: kept for the backward pass; one sample's, measured, times the batch size.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int

    @property
    def total(self) -> int:
        """The peak of a step, without what single operations need for a moment."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations

    def table(self) -> str:
        """One line per item where they are large, else one line."""
        if self.total < GIB:
            return f"memory: about {self.total / 2**20:.0f} MiB at the peak"
        rows = [
            ("weights", self.weights, ""),
            ("gradients", self.gradients, "policy.freeze, policy.lora"),
            ("optimizer", self.optimizer, "state"),
            ("averages", self.averages, "training.ema_decay"),
            ("activations", self.activations, "one sample's times training.batch_size"),
            ("peak", self.total, ""),
        ]
        return "\n".join(f"{name:<12} {size / GIB:8.2f} GiB  {note}".rstrip() for name, size, note in rows if size)


def estimate_memory(model: nn.Module, mapping: SymmetryMap, *, ema: bool, activations: int) -> MemoryEstimate:
    """Memory of one process; `activations` in bytes, of a whole forward pass."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return MemoryEstimate(
        weights=sum(parameter.nbytes for parameter in model.parameters()),
        gradients=sum(parameter.nbytes for parameter in trained),
        optimizer=sum(spec.state_bytes for spec in mapping),
        averages=4 * sum(parameter.numel() for parameter in trained) if ema else 0,
        activations=activations,
    )


def activation_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, parameters not among them; buffers are left as they were.

    Args:
        model: that `forward` runs.
        forward: returns the loss.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()
    del loss
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return sum(kept.values())


def check_memory(estimate: MemoryEstimate, available: int) -> str | None:
    """A warning if the estimate exceeds the memory of the device, else None.

    Raises:
        ConfigError: the weights alone do not fit.
    """
    size = f"{available / GIB:.1f} GiB"
    if estimate.weights > available:
        raise ConfigError(f"the weights take {estimate.weights / GIB:.1f} GiB and the device has {size}: take a "
                          "smaller policy")  # fmt: skip
    if estimate.total <= available:
        return None
    remedy = "lower training.batch_size and raise training.gradient_accumulation"
    if estimate.total - estimate.activations > available:
        remedy = "train LoRA adapters (policy.lora), freeze parts (policy.freeze), or set training.ema_decay=0"
    return f"about {estimate.total / GIB:.1f} GiB are needed and the device has {size}: {remedy}"
