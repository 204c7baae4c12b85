"""`--robot.type=franka_rlspec`: what LeRobot's commands can be told about a Franka arm."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.cameras import CameraConfig
from lerobot.robots import RobotConfig

from rlspec.contract.actions import DROID_HYBRID, JOINT_POSITION, STIFF_POSITION
from rlspec.contract.pictures import DROID_SIZE
from rlspec.deploy.lerobot.features import ACTION_KEYS
from rlspec.deploy.safety.tick_bounds import SafetySettings
from rlspec.errors import ConfigError

BACKENDS = ("dry_run", "mujoco", "franky_sim", "franky")
_LAWS = {"mujoco": STIFF_POSITION}


@RobotConfig.register_subclass("franka_rlspec")
@dataclass(kw_only=True)
class FrankaRlspecConfig(RobotConfig):
    """A Franka arm behind rlspec's safety filter.

    Attributes:
        backend: dry_run: no robot; mujoco: rlspec's table-top; franky_sim: franky's simulator behind the real driver;
            franky: an arm at `host`.
        host: Address of the arm's control unit.
        robot_model: fr3, fr3_pre_5_9 or fer: whose limits hold.
        action_space: joint_position (radians), joint_velocity (DROID's, unitless) or delta_eef (LIBERO's, unitless).
        law: How targets become motion, of contract.actions.EXECUTION_LAWS; droid_hybrid by default, stiff_position in
            MuJoCo.
        control_hz: Rate for which limits hold; commands that come faster wait. None: the action space's (15, 15, 20).
            Give LeRobot's --fps or --dataset.fps the same.
        images: False: no simulated cameras.
        image_height, image_width: Pixels of simulated cameras.
        cameras: LeRobot's own, by name; they go before simulated ones.
        camera_timeout_s: Seconds after which a picture is too old to act on.
        workspace_low, workspace_high: Metres, the box that the arm stays in; backend=franky wants both.
        task, seed: Of the MuJoCo scene.
        realtime: backend=franky refuses a kernel without PREEMPT_RT; False: any kernel will do.
        real_time: MuJoCo follows the wall clock; else every action simulates exactly one control period.
    """

    backend: str = "dry_run"
    host: str = ""
    robot_model: str = "fr3"
    action_space: str = JOINT_POSITION
    law: str = ""
    control_hz: float | None = None
    images: bool = True
    image_height: int = DROID_SIZE[0]
    image_width: int = DROID_SIZE[1]
    cameras: dict[str, CameraConfig] = field(default_factory=dict)
    camera_timeout_s: float = 1.0
    workspace_low: list[float] | None = None
    workspace_high: list[float] | None = None
    task: str = "pick_place"
    seed: int = 0
    realtime: bool = True
    real_time: bool = False

    def __post_init__(self) -> None:
        """Fill in what depends on other fields.

        Raises:
            ConfigError: A value is not among those allowed.
        """
        super().__post_init__()
        for name, allowed in (("backend", BACKENDS), ("action_space", tuple(ACTION_KEYS))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"robot.{name}={getattr(self, name)}: choose one of {', '.join(allowed)}")
        if self.backend == "franky" and not self.host:
            raise ConfigError("robot.backend=franky: no address; add --robot.host=IP of the arm's control unit")
        if self.backend == "franky" and (self.workspace_low is None or self.workspace_high is None):
            keys = "--robot.workspace_low=[x,y,z] --robot.workspace_high=[x,y,z]"
            raise ConfigError(f"robot.backend=franky: no box of the room; add {keys} in metres")
        self.law = self.law or _LAWS.get(self.backend, DROID_HYBRID)

    @property
    def safety(self) -> SafetySettings:
        """The filter's settings, with the box where there is one."""
        box = {"workspace_low": self.workspace_low, "workspace_high": self.workspace_high}
        return SafetySettings.model_validate({key: value for key, value in box.items() if value is not None})
