"""What `python -m rlspec.deploy` can be told: the schema, and the command line's way into it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from rlspec.config.arguments import split_setting
from rlspec.config.messages import explain, join_lines, takes_text, unknown_key
from rlspec.config.paths import recipes_folder
from rlspec.config.schema import Section
from rlspec.config.values import read_value
from rlspec.contract.actions import DROID_HYBRID, ActionSpaceName, ExecutionLaw
from rlspec.deploy.arm.gripper import GripperSettings
from rlspec.deploy.safety.tick_bounds import SafetySettings
from rlspec.deploy.safety.watchdog import WatchdogSettings
from rlspec.errors import ConfigError, nearest

Driver = Literal["franky", "franky_sim", "mujoco", "dry_run"]
RobotMode = Literal["dry_run", "shadow", "sim", "real"]

_SOURCES = ("server", "checkpoint", "policy")
_SHORT = {
    "host": "robot.host",
    "task": "robot.options.task",
    "seed": "robot.options.seed",
    "scheduler": "schedule.name",
    "n_action_steps": "schedule.n_action_steps",
}
"""Short keys of the command line."""


class RobotSettings(Section):
    """A robot: an option of recipes/robot.

    Attributes:
        name: As it is shown, and typed to confirm.
        driver: What speaks to it.
        model: Of the arm: decides the table of limits, and must be what the arm says that it is.
        host: Address of the arm's controller.
        law: How targets become motion.
        cameras: DROID's name (exterior_1_left, exterior_2_left, wrist_left) -> KIND:SERIAL, optionally with
            @WIDTHxHEIGHTxFPS; kinds: opencv, realsense, zed, synthetic.
        camera_keys: The policy's key -> camera, where the names do not tell.
        options: Of the driver.
    """

    name: str
    driver: Driver
    model: Literal["fr3", "fr3_pre_5_9", "fer"] = "fr3"
    host: str | None = None
    law: ExecutionLaw = DROID_HYBRID
    cameras: dict[str, str] = {}
    camera_keys: dict[str, str] = {}
    options: dict[str, bool | int | float | str] = {}


class Schedule(Section):
    """How chunks become actions; see `rlspec.deploy.policy.schedule.Timing`."""

    name: Literal["open_loop", "ensemble", "rtc"] = "open_loop"
    n_action_steps: int | None = Field(None, ge=1)  # None: what the policy says
    overlap: bool = True
    stale: float = Field(1.5, gt=0)
    margin: int = Field(1, ge=0)
    decay: float = Field(0.01, ge=0)
    blend: int = Field(4, ge=0)


class SlowStart(Section):
    """The share of the velocity limits that may be used at first, and seconds until all of them may."""

    share: float = Field(0.2, gt=0, le=1)
    seconds: float | None = Field(None, ge=0)  # None: 3 on a real robot, else 0


class Inference(Section):
    """How the policy is asked.

    Attributes:
        deadline: Seconds; a later answer ends the session with the server.
        latency: Seconds that an answer takes on the clock of a simulation in lockstep.
        warmup: Requests before the start, the first of which may be as slow as it likes.
    """

    deadline: float = Field(2.0, gt=0)
    latency: float = Field(0.0, ge=0)
    warmup: int = Field(2, ge=0)


class Settings(Section):
    """One deployment."""

    robot: RobotSettings
    server: str | None = None
    checkpoint: str | None = None
    policy: Literal["expert", "hold"] | None = None
    token: str | None = None
    mode: RobotMode | None = None
    seconds: float = Field(30.0, gt=0)
    rate: float | None = Field(None, gt=0, le=200)
    law: ExecutionLaw | None = None
    action_space: ActionSpaceName | None = None
    prompt: str = ""
    out: str | None = None
    frames: bool = False
    yes: bool = False
    estop_file: str | None = None
    realtime: bool | None = None
    schedule: Schedule = Schedule()
    safety: SafetySettings = SafetySettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    gripper: GripperSettings = GripperSettings()
    slow_start: SlowStart = SlowStart()
    inference: Inference = Inference()

    @model_validator(mode="after")
    def _one_policy(self) -> Settings:
        given = [source for source in _SOURCES if getattr(self, source) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} exclude each other" if given else "no policy"
            raise ValueError(f"{what}: give one of server=ws://HOST:PORT, checkpoint=DIR, policy=expert|hold")
        return self

    @model_validator(mode="after")
    def _share_of_the_law(self) -> Settings:
        self.safety = self.safety.for_law(self.law or self.robot.law)
        return self

    @model_validator(mode="after")
    def _possible_mode(self) -> Settings:
        simulated = self.robot.driver != "franky"
        mode = self.effective_mode
        if mode == "real" and simulated:
            raise ValueError(f"mode=real: robot={self.robot.name} is simulated; take mode=sim")
        if mode == "sim" and not simulated:
            raise ValueError(f"mode=sim: robot={self.robot.name} is real; take robot=franka_sim, or mode=shadow")
        if self.robot.driver == "franky_sim" and not _is_loopback(self.robot.host):
            raise ValueError(
                f"host={self.robot.host}: robot=franka_sim runs on this machine; for an arm take robot=franka_fr3"
            )
        if self.robot.driver == "dry_run" and mode != "dry_run":
            raise ValueError(f"mode={mode}: robot=dry_run connects to nothing; take mode=dry_run")
        if self.policy == "expert" and self.robot.driver not in ("mujoco", "dry_run") and mode != "dry_run":
            raise ValueError(f"policy=expert: not for robot={self.robot.name}; allowed: robot=mujoco, robot=dry_run")
        if self.robot.driver == "franky" and mode != "dry_run" and self.robot.host is None:
            raise ValueError(f"robot={self.robot.name}: no address; add host=IP of the arm's controller")
        return self

    @property
    def effective_mode(self) -> RobotMode:
        """The mode, or what the robot stands for."""
        if self.mode is not None:
            return self.mode
        defaults: dict[Driver, RobotMode] = {"franky": "real", "dry_run": "dry_run"}
        return defaults.get(self.robot.driver, "sim")


def _is_loopback(host: str | None) -> bool:
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def list_robots() -> list[str]:
    """Names for `robot=`."""
    return sorted(path.stem for path in (recipes_folder() / "robot").glob("*.yaml"))


def parse(arguments: Sequence[str]) -> Settings:
    """Settings of a command line.

    Raises:
        ConfigError: One line per mistake.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, value = split_setting(argument, "seconds=30")
        given[_SHORT.get(key, key)] = value
    tree = {"robot": load_robot(given.pop("robot", None))}
    for key, value in given.items():
        _assign(tree, key, value)
    return validate(tree)


def validate(tree: dict[str, Any]) -> Settings:
    """Settings from a mapping.

    Raises:
        ConfigError: One line per mistake.
    """
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        ours = [str(item["ctx"]["error"]) for item in error.errors() if item["type"] == "value_error"]
        raise ConfigError(join_lines(ours or explain(error, Settings))) from None


def load_robot(name: str | None) -> dict[str, Any]:
    """The mapping of one robot.

    Raises:
        ConfigError: There is none of that name.
    """
    robots = list_robots()
    if name is None:
        raise ConfigError(f"robot: required; add robot=NAME; allowed: {', '.join(robots)}")
    if name not in robots:
        raise ConfigError(f"robot={name}: unknown; {nearest(name, robots)}")
    text = (recipes_folder() / "robot" / f"{name}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def _assign(tree: dict[str, Any], key: str, value: str) -> None:
    """Put a value at a dotted key; keys below robot.camera_keys hold dots and slashes of their own."""
    path = key.split(".")
    if key.startswith("robot.camera_keys."):
        path = ["robot", "camera_keys", key.removeprefix("robot.camera_keys.")]
    if path[0] not in Settings.model_fields:
        raise ConfigError(f"{key}={value}: unknown key; {nearest(key, (*Settings.model_fields, *_SHORT))}")
    if not all(path):
        raise ConfigError(_unknown(key, value))
    if path[0] == "robot" and len(path) == 2 and path[1] not in RobotSettings.model_fields:
        path = ["robot", "options", path[1]]
    node: Any = tree
    for part in path[:-1]:
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise ConfigError(_unknown(key, value))
    node[path[-1]] = value if takes_text(key, Settings) and value != "null" else read_value(value)


def _unknown(key: str, value: str) -> str:
    return unknown_key(key.split("."), value, Settings)
