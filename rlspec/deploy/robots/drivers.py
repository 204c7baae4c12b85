"""Robots are drivers in a table: a new one is a line here, or `robot.driver=my_package.my_module:MyRobot`."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError, create_model, model_validator

from rlspec.config.messages import explain, join_lines
from rlspec.config.schema import Section
from rlspec.config.synonyms import same_meaning
from rlspec.deploy.arm.interfaces import Robot
from rlspec.deploy.robots.options import (
    DryRunOptions,
    FrankyOptions,
    FrankySimOptions,
    MujocoOptions,
    RobotDescription,
)
from rlspec.errors import ConfigError, nearest

_OF_THE_ROBOT = ("name", "model", "host", "cameras")  # what a constructor may ask for beside its options


@dataclass(frozen=True)
class Driver:
    """What speaks to a robot.

    Attributes:
        target: module:function of (`RobotDescription`, options as keywords) that returns the robot, not connected; or
            module:Class of a user. Imported when a robot is made.
        options: Schema of `robot.options`.
        real: It moves steel: it is shown what will hold, and confirmed.
        connects: To something; else it stands for any robot.
        needs_host: It has an address.
        on_this_machine: It takes none but this machine's.
        needs: What it needs of this machine: names of checks of `rlspec.doctor`.
        expert: module:function of (robot, action space or None, horizon or None, rate or None, law) that returns the
            policy of policy=expert; empty: there is none.
    """

    target: str
    options: type[Section]
    real: bool = False
    connects: bool = True
    needs_host: bool = False
    on_this_machine: bool = False
    needs: tuple[str, ...] = ()
    expert: str = ""

    def check(self, given: Mapping[str, Any], robot: str) -> Section:
        """The options in their types.

        Raises:
            ConfigError: One is unknown or of another type.
        """
        for key, value in given.items():
            if key not in self.options.model_fields:
                hint = nearest(key, self.options.model_fields) if self.options.model_fields else "it has no options"
                if alike := same_meaning(f"robot.{key}", ("robot", "host").__contains__):
                    hint = f"did you mean {alike[0]}?"
                raise ConfigError(f"robot.{key}={value}: robot={robot} has no such option; {hint}")
        try:
            return self.options.model_validate_json(json.dumps(given))
        except ValidationError as error:
            raise ConfigError(join_lines([f"robot.{line}" for line in explain(error, self.options)])) from None

    def make(self, settings: RobotDescription) -> Robot:
        """The robot, not connected. Imports the driver.

        Raises:
            ConfigError: An option that it does not have.
            RobotError: What it needs is not installed.
        """
        # What is not given is left to the driver: its defaults have one home.
        options = self.check(settings.options, settings.name).model_dump(exclude_unset=True)
        made: Any = load(self.target)
        if isinstance(made, type):
            wanted = inspect.signature(made).parameters
            own = {key: getattr(settings, key) for key in _OF_THE_ROBOT if key in wanted}
            robot: Robot = made(**own, **options)
        else:
            robot = made(settings, **options)
        return robot


_ROBOTS = "rlspec.deploy.robots"
DRIVERS: dict[str, Driver] = {
    "franky": Driver(
        f"{_ROBOTS}.franky:make",
        FrankyOptions,
        real=True,
        needs_host=True,
        needs=("driver", "kernel", "priority", "governor", "network", "robot"),
    ),
    "franky_sim": Driver(
        f"{_ROBOTS}.franky_sim:make", FrankySimOptions, on_this_machine=True, needs=("driver", "simulator")
    ),
    "mujoco": Driver(
        f"{_ROBOTS}.mujoco:make", MujocoOptions, needs=("renderer",), expert=f"{_ROBOTS}.mujoco_expert:make"
    ),
    "dry_run": Driver(f"{_ROBOTS}.dry_run:make", DryRunOptions, connects=False, expert=f"{_ROBOTS}.dry_run:waves"),
}


def find_driver(name: str) -> Driver:
    """A driver of the table, or a user's own.

    Raises:
        ConfigError: There is none.
    """
    if ":" in name:
        return _own_driver(name)
    if name not in DRIVERS:
        raise ConfigError(f"robot.driver={name}: unknown; {nearest(name, DRIVERS)}; or my_module:MyRobot")
    return DRIVERS[name]


def load(target: str) -> Any:
    """What `module:name` names.

    Raises:
        ConfigError: There is no such module, or nothing of that name in it.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"robot.driver={target}: {error}; give an importable module:Class") from None


@cache
def _own_driver(target: str) -> Driver:
    """A class that derives from `Robot`; its constructor's keywords are its options."""
    made: Any = load(target)
    if Robot not in getattr(made, "__mro__", ()):
        raise ConfigError(f"robot.driver={target}: no robot; derive it from rlspec.deploy.arm.interfaces.Robot")
    if missing := sorted(made.__abstractmethods__):
        raise ConfigError(f"robot.driver={target}: lacks {', '.join(missing)}; see rlspec.deploy.arm.interfaces.Robot")
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(made, eval_str=True).parameters.items():
        if name not in _OF_THE_ROBOT and parameter.kind is not parameter.VAR_KEYWORD:
            kind = Any if parameter.annotation is parameter.empty else parameter.annotation
            fields[name] = (kind, ... if parameter.default is parameter.empty else parameter.default)
    options = create_model("OwnOptions", __base__=Section, **fields)
    needs_host = "host" in inspect.signature(made).parameters
    return Driver(target, options, real=not made.simulated, needs_host=needs_host and not made.simulated)


class RobotSettings(RobotDescription):
    """A robot whose driver is known and has the options."""

    @property
    def found(self) -> Driver:
        """The driver.

        Raises:
            ConfigError: There is none of that name.
        """
        return find_driver(self.driver)

    @model_validator(mode="after")
    def _known_options(self) -> RobotSettings:
        self.found.check(self.options, self.name)
        return self
