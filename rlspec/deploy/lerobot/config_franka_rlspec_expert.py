"""`--teleop.type=franka_rlspec_expert`: motions without a human, for trials and demonstrations in simulation."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.teleoperators import TeleoperatorConfig

from rlspec.contract.actions import JOINT_POSITION
from rlspec.deploy.lerobot.features import ACTION_KEYS
from rlspec.errors import ConfigError

MOTIONS = ("expert", "wave")


@TeleoperatorConfig.register_subclass("franka_rlspec_expert")
@dataclass(kw_only=True)
class FrankaRlspecExpertConfig(TeleoperatorConfig):
    """A script in the place of a leader arm.

    Attributes:
        motion: expert: does the task of the MuJoCo scene; wave: swings slowly, on any backend.
        action_space: The robot's.
        amplitude: Radians of the wave.
        period_s: Seconds of the wave.
    """

    motion: str = "expert"
    action_space: str = JOINT_POSITION
    amplitude: float = 0.1
    period_s: float = 6.0

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ConfigError: A value is not among those allowed.
        """
        for name, allowed in (("motion", MOTIONS), ("action_space", tuple(ACTION_KEYS))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"teleop.{name}={getattr(self, name)}: choose one of {', '.join(allowed)}")
        if self.motion == "wave" and self.action_space != JOINT_POSITION:
            raise ConfigError(f"teleop.motion=wave: it gives joint angles; take action_space={JOINT_POSITION}")
