"""Settings of `rlspec_smolvla`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from rlspec.vla.policies.inherited import InheritedPreset


@PreTrainedConfig.register_subclass("rlspec_smolvla")
@dataclass
class RlspecSmolVLAConfig(InheritedPreset, SmolVLAConfig):
    """LeRobot's settings and those of the optimizer's preset."""

    stock = SmolVLAConfig
