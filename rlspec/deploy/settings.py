"""What `python -m rlspec.deploy` can be told: the schema, and the command line's way into it."""

from __future__ import annotations

import ipaddress
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from rlspec.config.command import CommandLine
from rlspec.config.messages import explain, join_lines
from rlspec.config.paths import list_robots, recipes_folder
from rlspec.config.schema import Key, Section, documented
from rlspec.contract.actions import EXECUTION_LAWS, ActionSpaceName, ExecutionLaw
from rlspec.deploy.arm.gripper import GripperSettings
from rlspec.deploy.policy.schedule import Timing
from rlspec.deploy.robots.drivers import RobotSettings
from rlspec.deploy.safety.tick_bounds import SafetySettings
from rlspec.deploy.safety.watchdog import WatchdogSettings
from rlspec.deploy.teleop.takeover import TakeoverSettings
from rlspec.errors import ConfigError, nearest

RobotMode = Literal["dry_run", "shadow", "sim", "real"]

_SOURCES = ("server", "checkpoint", "policy")
_TIMING = documented(Timing)


class Schedule(Section):
    """How chunks become actions."""

    name: Annotated[Literal["open_loop", "ensemble", "rtc"], Key("how chunks become actions")] = "open_loop"
    n_action_steps: Annotated[
        int | None, Key("actions of a chunk that are carried out (default: what the policy says)")
    ] = Field(None, ge=1)
    overlap: bool = Field(True, description=_TIMING["overlap"])
    stale: float = Field(1.5, gt=0, description=_TIMING["stale"])
    margin: int = Field(1, ge=0, description=_TIMING["margin"])
    decay: float = Field(0.01, ge=0, description=_TIMING["decay"])
    blend: int = Field(4, ge=0, description=_TIMING["blend"])


class SlowStart(Section):
    """How slowly a run begins.

    Attributes:
        share: Of the velocity limits, which may be used at first.
        seconds: Until all of them may; null: 3 on a real robot, else 0.
    """

    share: float = Field(0.2, gt=0, le=1)
    seconds: float | None = Field(None, ge=0)


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


class RobotCommand(CommandLine):
    """What begins with a robot of the recipes, or of a file of one's own."""

    short = {"host": "robot.host"}

    robot: Annotated[
        RobotSettings,
        Key("franka_fr3, franka_panda (host=IP), franka_sim, mujoco (task=NAME seed=N), dry_run; or FILE.yaml", "NAME"),
    ]

    @classmethod
    def full_key(cls, key: str) -> str:
        """Short keys in full; what is no key of a robot is its driver's."""
        head, _, name = key.partition(".")
        if head == "robot" and name and "." not in name and name not in RobotSettings.model_fields:
            return f"robot.options.{name}"
        return super().full_key(key)

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Self:
        """The settings of a command line, on top of the robot's recipe.

        Raises:
            ConfigError: One line per mistake.
        """
        names = [argument.removeprefix("robot=") for argument in arguments if argument.startswith("robot=")]
        others = [argument for argument in arguments if not argument.startswith("robot=")]
        return cls._read(others, {"robot": load_robot(names[-1] if names else None)})


class Settings(RobotCommand):
    """Observe, ask the policy, schedule its chunks, filter, send, log: at the rate that the policy was trained at.

    Stop it with space, q or Ctrl-C, by `touch OUT/ESTOP`, or with SIGUSR1. Exit code: 0 as planned, 1 a fault stopped
    it, 2 a mistake in the arguments, 130 you stopped it.
    """

    command = "deploy"
    synopsis = (
        "robot=NAME (server=ws://HOST:PORT | checkpoint=DIR | policy=expert|hold) [teleop=NAME] [key=value ...]",
        "calibrate=workspace robot=NAME [out=FILE]",
        "calibrate=camera robot=NAME camera=NAME [out=FILE]",
        "summary=RUN [out=DIR] | replay=RUN [law=NAME] | export=RUN[,RUN] out=DIR [video=true]",
    )
    example = "seconds=30"
    short = {
        "host": "robot.host",
        "task": "robot.options.task",
        "seed": "robot.options.seed",
        "scheduler": "schedule.name",
        "n_action_steps": "schedule.n_action_steps",
    }
    below = {"teleop": "teleop_options"}

    server: Annotated[
        str | None,
        Key("a running rlspec.serve, or openpi's or RoboArena's server (add action_space=NAME)", "URL"),
    ] = None
    checkpoint: Annotated[str | None, Key("starts a server of our own for it on this machine", "DIR")] = None
    policy: Annotated[
        Literal["expert", "hold"] | None,
        Key("hold; expert: the scripted one of mujoco, slow waves in dry_run"),
    ] = None
    token: Annotated[str | None, Key("what that server wants (or in the variable RLSPEC_TOKEN)")] = None
    mode: Annotated[
        RobotMode | None,
        Key(
            "dry_run: no connection; shadow: connected to read only, shows what it would send; sim: simulated robots' "
            "own; real: shows the limits, asks, starts slowly"
        ),
    ] = None
    seconds: Annotated[float, Key("of the run", "S")] = Field(30.0, gt=0)
    teleop: Annotated[
        str | None,
        Key(
            "a human who takes over by moving it, or drives alone: gamepad, keyboard_ee, phone, a plugin of LeRobot",
            "NAME",
        ),
    ] = None
    teleop_options: Annotated[dict[str, Any], Key("options of that device", "KEY=VALUE")] = {}
    rate: Annotated[float | None, Key("where the policy does not say", "HZ")] = Field(None, gt=0, le=200)
    law: Annotated[ExecutionLaw | None, Key(f"{', '.join(EXECUTION_LAWS)} (default: the robot's)", "NAME")] = None
    action_space: Annotated[ActionSpaceName | None, Key("where the policy does not say", "NAME")] = None
    prompt: Annotated[str, Key("the instruction")] = ""
    out: Annotated[str | None, Key("where ticks.jsonl goes (default checkpoints/deploy/<robot>-<time>)", "DIR")] = None
    frames: Annotated[bool, Key("keep the policy's pictures beside the log (needs Pillow)", "true")] = False
    view: Annotated[bool, Key("a page to watch it on, with a stop button", "true")] = False
    view_address: Annotated[str, Key("of that page; beyond this machine its address holds a token", "HOST:PORT")] = (
        "127.0.0.1:8090"
    )
    yes: Annotated[bool, Key("real robots: do not ask", "true")] = False
    estop_file: Annotated[str | None, Key("(default OUT/ESTOP)", "FILE")] = None
    realtime: Annotated[
        bool | None,
        Key("false: no SCHED_FIFO for the loop; true: say so where the system forbids it (default: where it permits)"),
    ] = None
    print: Annotated[bool, Key("print all settings, with what each key means and its unit, and stop")] = False
    schedule: Schedule = Schedule()
    safety: SafetySettings = SafetySettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    gripper: GripperSettings = GripperSettings()
    takeover: TakeoverSettings = TakeoverSettings()
    slow_start: SlowStart = SlowStart()
    inference: Inference = Inference()

    @classmethod
    def more(cls) -> str:
        """What can be done with the folder of a run."""
        return """
afterwards, with the folder of a run:
  summary=RUN  a picture and a page of its log (a run writes them by itself where matplotlib is installed)
  replay=RUN   sends what was sent to the simulated arm, and shows by how much the motion differs
  export=RUN   a LeRobotDataset v3 whose action is what was sent"""

    @model_validator(mode="after")
    def _one_policy(self) -> Settings:
        given = [source for source in _SOURCES if getattr(self, source) is not None]
        if len(given) > 1 or not (given or self.teleop):
            what = f"{' and '.join(given)} exclude each other" if given else "no policy"
            raise ValueError(f"{what}: give one of server=ws://HOST:PORT, checkpoint=DIR, policy=expert|hold")
        if self.teleop_options and self.teleop is None:
            raise ValueError(f"teleop.{min(self.teleop_options)}: no device; add teleop=NAME")
        if self.teleop is not None and self.effective_mode == "shadow":
            raise ValueError(f"teleop={self.teleop}: nothing is sent with mode=shadow; leave it out")
        return self

    @property
    def driven_by_hand(self) -> bool:
        """Whether a human drives and no policy is there."""
        return all(getattr(self, source) is None for source in _SOURCES)

    @model_validator(mode="after")
    def _share_of_the_law(self) -> Settings:
        self.safety = self.safety.for_law(self.law or self.robot.law)
        return self

    @model_validator(mode="after")
    def _room_of_the_robot(self) -> Settings:
        """What the command line does not say of box and hand, the robot's file does."""
        given, box = self.safety.model_fields_set, self.robot.box
        room: dict[str, Any] = {} if "hand_length" in given else {"hand_length": self.robot.hand_length}
        if box is not None and not {"workspace_low", "workspace_high"} & given:
            room |= {"workspace_low": box.low, "workspace_high": box.high}
        self.safety = SafetySettings.model_validate(self.safety.model_dump(exclude_unset=True) | room)
        return self

    @model_validator(mode="after")
    def _possible_mode(self) -> Settings:
        robot, driver, mode = self.robot, self.robot.found, self.effective_mode
        if mode == "real" and not driver.real:
            raise ValueError(f"mode=real: robot={robot.name} is simulated; take mode=sim")
        if mode == "sim" and driver.real:
            raise ValueError(f"mode=sim: robot={robot.name} is real; take robot=franka_sim, or mode=shadow")
        if driver.on_this_machine and not _is_loopback(robot.host):
            raise ValueError(
                f"host={robot.host}: robot={robot.name} runs on this machine; for an arm take robot=franka_fr3"
            )
        if not driver.connects and mode != "dry_run":
            raise ValueError(f"mode={mode}: robot={robot.name} connects to nothing; take mode=dry_run")
        if self.policy == "expert" and not driver.expert and mode != "dry_run":
            raise ValueError(f"policy=expert: not for robot={robot.name}; allowed: robot=mujoco, robot=dry_run")
        if driver.needs_host and mode != "dry_run" and robot.host is None:
            raise ValueError(f"robot={robot.name}: no address; add host=IP of the arm's controller")
        return self

    @model_validator(mode="after")
    def _a_box_that_was_set(self) -> Settings:
        if self.effective_mode == "real" and not {"workspace_low", "workspace_high"} <= self.safety.model_fields_set:
            robot = shlex.quote(self.robot.name)  # or a file's path
            remedy = f"python -m rlspec.deploy calibrate=workspace robot={robot} host={self.robot.host}"
            raise ValueError(
                "safety.workspace_low, safety.workspace_high: not both set, and the default box reaches a metre each "
                f"way and below the table; set them, or run `{remedy}` and take the file that it writes as robot="
            )
        return self

    @property
    def effective_mode(self) -> RobotMode:
        """The mode, or what the robot stands for."""
        driver = self.robot.found
        own: RobotMode = "real" if driver.real else "sim" if driver.connects else "dry_run"
        return self.mode or own


def _is_loopback(host: str | None) -> bool:
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def described_robot(name: str) -> RobotSettings:
    """One robot as it is described, by itself.

    Raises:
        ConfigError: There is none of that name, or its file is wrong.
    """
    try:
        return RobotSettings.model_validate_json(json.dumps(load_robot(name)))
    except ValidationError as error:
        raise ConfigError(join_lines([f"robot={name}: {line}" for line in explain(error, RobotSettings)])) from None


def load_robot(name: str | None) -> dict[str, Any]:
    """The mapping of one robot.

    Raises:
        ConfigError: There is none of that name.
    """
    robots = list_robots()
    if name is not None and name.endswith((".yaml", ".yml")):
        return _read_robot(Path(name).expanduser())
    if name is None:
        raise ConfigError(f"robot: required; add robot=NAME; allowed: {', '.join(robots)}")
    if name not in robots:
        raise ConfigError(f"robot={name}: unknown; {nearest(name, robots)}")
    return _read_robot(recipes_folder() / "robot" / f"{name}.yaml")


def _read_robot(path: Path) -> dict[str, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"robot={path}: cannot be read ({' '.join(str(error).split())}); correct the file") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"robot={path}: no mapping with name, driver, ...; see recipes/robot for examples")
    return loaded
