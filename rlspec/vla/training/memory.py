"""The memory that training a robot's policy needs, before the first step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rlspec.optim.map.spec import SymmetryMap
from rlspec.runtime.memory import MemoryAccount, Row


@dataclass(frozen=True)
class RobotPolicyMemory(MemoryAccount):
    """Of one process."""

    averages: int  # of the exponential moving average
    activations: int  # kept for the backward pass, measured on one sample and on two

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
            ("activations", self.activations, "training.batch_size, training.gradient_checkpointing"),
        ]

    def remedy(self, available: int) -> str:
        """By what takes most."""
        if self.total - self.activations > available:
            return "train LoRA adapters (policy.lora), freeze parts (policy.freeze), or set training.ema_decay=0"
        return (
            "set training.gradient_checkpointing=true, or lower training.batch_size and raise "
            "training.gradient_accumulation"
        )


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
