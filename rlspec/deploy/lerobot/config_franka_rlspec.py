"""`--robot.type=franka_rlspec`: what LeRobot's commands can be told about a Franka arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lerobot.cameras import CameraConfig
from lerobot.robots import RobotConfig
from pydantic import ValidationError

from rlspec.config.messages import explain, join_lines
from rlspec.contract.actions import DROID_HYBRID, JOINT_POSITION, STIFF_POSITION
from rlspec.contract.pictures import DROID_SIZE
from rlspec.deploy.lerobot.features import ACTION_KEYS
from rlspec.deploy.robots.drivers import Driver, RobotSettings, find_driver
from rlspec.deploy.safety.tick_bounds import SafetySettings
from rlspec.errors import ConfigError

_LAWS = {"mujoco": STIFF_POSITION}


@RobotConfig.register_subclass("franka_rlspec")
@dataclass(kw_only=True)
class FrankaRlspecConfig(RobotConfig):
    """A Franka arm behind rlspec's safety filter.

    Attributes:
        backend: Who speaks to it, of `rlspec.deploy.robots.drivers.DRIVERS` (dry_run: no robot; mujoco: rlspec's
            table-top; franky_sim: franky's simulator behind the real driver; franky: an arm at `host`), or your own as
            my_module:MyRobot.
        options: Of that driver, for example {gripper: robotiq, gripper_port: /dev/ttyUSB0}.
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
    options: dict[str, Any] = field(default_factory=dict)
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
        if self.action_space not in ACTION_KEYS:
            raise ConfigError(f"robot.action_space={self.action_space}: choose one of {', '.join(ACTION_KEYS)}")
        if self.driver.needs_host and not self.host:
            raise ConfigError(
                f"robot.backend={self.backend}: no address; add --robot.host=IP of the arm's control unit"
            )
        if self.driver.real and (self.workspace_low is None or self.workspace_high is None):
            keys = "--robot.workspace_low=[x,y,z] --robot.workspace_high=[x,y,z]"
            raise ConfigError(f"robot.backend={self.backend}: no box of the room; add {keys} in metres")
        self.described({})  # an option that the driver does not have is told before anything connects
        self.law = self.law or _LAWS.get(self.backend, DROID_HYBRID)

    @property
    def driver(self) -> Driver:
        """Of the backend."""
        try:
            return find_driver(self.backend)
        except ConfigError as error:
            raise ConfigError(str(error).replace("robot.driver=", "robot.backend=", 1)) from None

    @property
    def has_simulated_cameras(self) -> bool:
        """Whether the driver draws pictures of its own."""
        return "images" in self.driver.options.model_fields or not self.driver.connects

    def described(self, cameras: Mapping[str, Any]) -> RobotSettings:
        """The arm as every other command is told of it, with these simulated cameras.

        Raises:
            ConfigError: The driver has no such option.
        """
        known = self.driver.options.model_fields
        told: dict[str, Any] = {
            "image_size": [self.image_height, self.image_width],
            **{key: getattr(self, key) for key in ("task", "seed", "real_time", "realtime")},
        }
        if "images" in known:
            drawn = bool(cameras)
            told["images"] = drawn if known["images"].annotation is bool else "synthetic" if drawn else "none"
        size = f"synthetic@{self.image_width}x{self.image_height}x30"
        try:
            return RobotSettings(
                name=f"franka_{self.robot_model}" if self.driver.real else self.backend,
                driver=self.backend,
                model=self.robot_model,  # type: ignore[arg-type] # pydantic looks
                host=self.host or None,
                cameras={} if self.driver.connects else dict.fromkeys(cameras, size),
                options={key: value for key, value in told.items() if key in known} | self.options,
            )
        except ValidationError as error:
            raise ConfigError(join_lines(explain(error, RobotSettings))) from None

    @property
    def safety(self) -> SafetySettings:
        """The filter's settings, with the box where there is one, for the hand that the arm has."""
        box = {"workspace_low": self.workspace_low, "workspace_high": self.workspace_high}
        room: dict[str, Any] = {key: value for key, value in box.items() if value is not None}
        return SafetySettings.model_validate(room | {"hand_length": self.described({}).hand_length})
