"""Settings of `rlspec_flow`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from rlspec.errors import ConfigError
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig


@PreTrainedConfig.register_subclass("rlspec_flow")
@dataclass
class RlspecFlowConfig(BackbonePolicyConfig):
    """The shared settings and those of flow matching.

    Attributes:
        num_steps: Euler steps from noise to actions; None: 4 for size tiny, else 10.
        time_alpha: of the Beta distribution of training times; pi0 has 1.5 and 1, more noise than signal.
        time_beta: of the same.
        time_samples: noise and time drawn per observation and training step; the backbone runs once for all.
        noise_seed: None: noise comes from torch's generator; a number: `reset` starts a sequence of its own.
        rtc_config: how a chunk is guided by the one in hand (LeRobot sets it); None: as published.
    """

    num_steps: int | None = None
    time_alpha: float = 1.5
    time_beta: float = 1.0
    time_samples: int = 1
    noise_seed: int | None = None
    rtc_config: RTCConfig | None = None

    def __post_init__(self) -> None:
        """As the parent.

        Raises:
            ConfigError: as the parent, and on numbers below 1.
        """
        if self.num_steps is None:
            self.num_steps = 4 if self.size == "tiny" else 10
        super().__post_init__()
        for name in ("num_steps", "time_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{self.type}: {name}={getattr(self, name)} must be at least 1")
