"""LeRobot's teleoperators, and those that others have written for it, by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from lerobot.teleoperators import Teleoperator, TeleoperatorConfig, make_teleoperator_from_config
from lerobot.utils.import_utils import register_third_party_plugins

from rlspec.deploy.arm.interfaces import Robot
from rlspec.deploy.lerobot.franka_rlspec import connected
from rlspec.deploy.teleop.readings import DeviceReading, understand
from rlspec.errors import ConfigError, RobotError, nearest

_MODULES = {  # of LeRobot's teleoperators, those that can move a seven-jointed arm
    "gamepad": "lerobot.teleoperators.gamepad",
    "keyboard_ee": "lerobot.teleoperators.keyboard",
    "phone": "lerobot.teleoperators.phone",
    "franka_rlspec_expert": "rlspec.deploy.lerobot",
}


class LeRobotDevice:
    """A connected teleoperator of LeRobot's interface."""

    def __init__(self, name: str, teleoperator: Teleoperator) -> None:
        self.name = name
        self._teleoperator = teleoperator

    def read(self) -> DeviceReading:
        """See `rlspec.deploy.teleop.takeover.HandDevice`."""
        try:
            action = self._teleoperator.get_action()
            return understand(action, self._events())
        except RobotError:
            raise
        except Exception as error:  # of whatever library the device speaks through
            raise RobotError(f"teleop={self.name}: {type(error).__name__}: {_line(error)}") from None

    def _events(self) -> Mapping[Any, Any] | None:
        """What was said of the episode.

        LeRobot's keyboard_ee (0.6.1) forgets in there which keys are held; shift and control, which it takes for down
        and up and for the hand, are not repeated by X11, so that a held key would count for one look. Some systems tell
        the release of a right one as the left one's: of such a pair none counts as held then.
        """
        ask = getattr(self._teleoperator, "get_teleop_events", None)
        keys = getattr(self._teleoperator, "current_pressed", {})
        released = {_side_less(key) for key, pressed in keys.items() if not pressed}
        held = [key for key, pressed in keys.items() if pressed and _side_less(key) not in released]
        events = ask() if ask is not None else None
        keys.update((key, True) for key in held if not isinstance(key, str))  # letters end the episode, once
        return events

    def close(self) -> None:
        """Disconnect; a device that has gone by itself is no error."""
        try:
            self._teleoperator.disconnect()
        except Exception:  # it may be unplugged, which is the reason to close it
            return


def open_device(name: str, options: Mapping[str, Any], robot: Robot) -> LeRobotDevice:
    """Make a teleoperator and connect it, which may ask somebody to calibrate it.

    Args:
        name: As in LeRobot's `--teleop.type`.
        options: Of its configuration.
        robot: That it will move: a scripted one looks at it.

    Raises:
        ConfigError: There is none of that name, or it has no such option.
        RobotError: It cannot be connected.
    """
    config = _configured(name, options)
    connected.add(robot)
    try:
        teleoperator = make_teleoperator_from_config(config)
        teleoperator.connect()
        ready = teleoperator.is_connected
    except (ConfigError, RobotError):
        raise
    except Exception as error:
        raise RobotError(f"teleop={name}: {_line(error)}") from None
    if not ready:
        raise RobotError(f"teleop={name}: it does not connect (a keyboard needs X11 and a screen); take another")
    return LeRobotDevice(name, teleoperator)


def _configured(name: str, options: Mapping[str, Any]) -> TeleoperatorConfig:
    import draccus
    from draccus.utils import DecodingError

    if name in _MODULES:
        importlib.import_module(_MODULES[name])
    elif name not in TeleoperatorConfig.get_known_choices():
        register_third_party_plugins()
    known = TeleoperatorConfig.get_known_choices()
    if name not in known:
        raise ConfigError(
            f"teleop={name}: unknown; {nearest(name, {*known, *_MODULES})}; other devices are plugins of LeRobot, "
            "packages called lerobot_teleoperator_NAME"
        )
    try:
        config: TeleoperatorConfig = draccus.decode(TeleoperatorConfig, {"type": name, **options})
    except DecodingError as error:
        raise ConfigError(f"teleop={name}: {_line(error)}; options are teleop.KEY=VALUE") from None
    return config


def _side_less(key: object) -> str:
    return str(key).removesuffix("_l").removesuffix("_r")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
