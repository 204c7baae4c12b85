"""Settings of `rlspec_adapter`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig

from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig


@PreTrainedConfig.register_subclass("rlspec_adapter")
@dataclass
class RlspecAdapterConfig(BackbonePolicyConfig):
    """Nothing beyond the shared settings."""
