"""Settings of `rlspec_flow`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from rlspec.errors import ConfigError, nearest
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig

HEADS = ("bridge", "vlanext")


@PreTrainedConfig.register_subclass("rlspec_flow")
@dataclass
class RlspecFlowConfig(BackbonePolicyConfig):
    """The shared settings and those of flow matching.

    Attributes:
        head: "bridge", ours, or "vlanext" as published: it reads all hidden states of a layer, and the states come as
            tokens of the vision-language model, so that `gate_init` does not count.
        state_history: of "vlanext", how many of the newest states the model reads.
        frequency_weight: of the loss over the frequencies of a chunk, beside that of the velocity; 0: none.
        frequency_split: share of the frequencies that are low; at least the lowest is.
        frequency_low: weight of those.
        frequency_high: weight of the others.
        num_steps: Euler steps from noise to actions; None: 4 for size tiny, else 10.
        time_alpha: of the Beta distribution of training times; pi0 has 1.5 and 1, more noise than signal.
        time_beta: of the same.
        time_samples: noise and time drawn per observation and training step; the backbone runs once for all.
        noise_seed: None: noise comes from torch's generator; a number: `reset` starts a sequence of its own.
        rtc_config: how a chunk is guided by the one in hand (LeRobot sets it); None: as published.
    """

    head: str = "bridge"
    state_history: int = 1
    frequency_weight: float = 0.0
    frequency_split: float = 0.125
    frequency_low: float = 1.0
    frequency_high: float = 1.0
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
        if self.head not in HEADS:
            raise ConfigError(f"{self.type}: head={self.head!r}; {nearest(self.head, HEADS)}")
        if self.state_history > 1 and self.head != "vlanext":
            raise ConfigError(f"{self.type}: state_history={self.state_history}: only head=vlanext reads older states")
        if self.head == "vlanext" and not (self.vlm_name or self.vlm_config):
            raise ConfigError(f"{self.type}: head=vlanext needs a vision-language model; give vlm_name")
        for name in ("num_steps", "time_samples", "state_history"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{self.type}: {name}={getattr(self, name)} must be at least 1")

    @property
    def state_delta_indices(self) -> list[int]:
        """The newest states."""
        return list(range(1 - self.state_history, 1))
