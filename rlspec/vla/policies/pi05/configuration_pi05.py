"""Settings of `rlspec_pi05`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi05.configuration_pi05 import PI05Config

from rlspec.vla.policies.inherited import InheritedPreset


@PreTrainedConfig.register_subclass("rlspec_pi05")
@dataclass
class RlspecPI05Config(InheritedPreset, PI05Config):
    """LeRobot's settings and those of the optimizer's preset."""

    stock = PI05Config
