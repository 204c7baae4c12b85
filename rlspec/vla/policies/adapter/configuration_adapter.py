"""Settings of `rlspec_adapter`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig

from rlspec.errors import ConfigError, nearest
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig

HEADS = ("bridge", "vla_adapter", "vla_adapter_pro")


@PreTrainedConfig.register_subclass("rlspec_adapter")
@dataclass
class RlspecAdapterConfig(BackbonePolicyConfig):
    """The shared settings, and which head.

    Attributes:
        head: "bridge", ours, or "vla_adapter" and "vla_adapter_pro" as published: as wide as the backbone, eight heads,
            so that `head_width`, `head_heads` and `gate_init` do not count.
        action_std: of the Gaussian around a chunk that reinforcement learning draws from, to begin with and in
            normalised units; learnt for each number of an action. None: the policy has no such parameter.
    """

    head: str = "bridge"
    action_std: float | None = None

    def __post_init__(self) -> None:
        """As the parent."""
        super().__post_init__()
        if self.head not in HEADS:
            raise ConfigError(f"{self.type}: head={self.head!r}; {nearest(self.head, HEADS)}")
        if self.action_std is not None and not self.action_std > 0:
            raise ConfigError(f"{self.type}: action_std={self.action_std} must be above 0")
