"""The memory that training a robot's policy needs, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from rlspec.optim.map.spec import SymmetryMap
from rlspec.runtime.memory import MemoryAccount, Row


@dataclass(frozen=True)
class RobotPolicyMemory(MemoryAccount):
    """Of one process."""

    averages: int  # of the exponential moving average
    activations: int  # kept for the backward pass; one sample's, measured, times the batch size

    lighter = "take a smaller policy"

    @property
    def total(self) -> int:
        """The peak of a step, without what single operations need for a moment."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations

    def rows(self) -> list[Row]:
        """All items."""
        return [
            ("weights", self.weights, ""),
            ("gradients", self.gradients, "policy.freeze, policy.lora"),
            ("optimizer", self.optimizer, "state"),
            ("averages", self.averages, "training.ema_decay"),
            ("activations", self.activations, "one sample's times training.batch_size"),
        ]

    def remedy(self, available: int) -> str:
        """By what takes most."""
        if self.total - self.activations > available:
            return "train LoRA adapters (policy.lora), freeze parts (policy.freeze), or set training.ema_decay=0"
        return "lower training.batch_size and raise training.gradient_accumulation"


def estimate_memory(model: nn.Module, mapping: SymmetryMap, *, ema: bool, activations: int) -> RobotPolicyMemory:
    """Memory of one process; `activations` in bytes, of a whole forward pass."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return RobotPolicyMemory(
        weights=sum(parameter.nbytes for parameter in model.parameters()),
        gradients=sum(parameter.nbytes for parameter in trained),
        optimizer=sum(spec.state_bytes for spec in mapping),
        averages=4 * sum(parameter.numel() for parameter in trained) if ema else 0,
        activations=activations,
    )


def activation_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, without parameters; buffers are left as they were."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # views of one tensor are kept once
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
