"""LeRobot's teleoperators as devices: keys that are held, what their libraries raise, options that they do not have."""

from __future__ import annotations

from enum import Enum, auto
from types import SimpleNamespace
from typing import Any

import pytest
from lerobot.teleoperators.keyboard import teleop_keyboard
from lerobot.teleoperators.keyboard.configuration_keyboard import KeyboardEndEffectorTeleopConfig

from rlspec.deploy.lerobot import devices
from rlspec.deploy.lerobot.devices import LeRobotDevice
from rlspec.errors import RobotError


class Key(Enum):
    """Of pynput, on X11: the left ones go without a side."""

    up, down, left, right = auto(), auto(), auto(), auto()
    shift, shift_r, ctrl_l, ctrl_r, esc = auto(), auto(), auto(), auto(), auto()

    def __str__(self) -> str:
        return f"Key.{self.name}"


class Listener:
    """Of pynput."""

    def __init__(self, **given: Any) -> None:
        pass

    def is_alive(self) -> bool:
        return True

    start = stop = lambda self: None


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Any:
    """LeRobot's keyboard_ee itself, with nobody's keys."""
    for name, value in {
        **{"keyboard": SimpleNamespace(Key=Key, Listener=Listener), "PYNPUT_AVAILABLE": True},
        **{"require_package": lambda *_, **__: None, "pynput_can_capture": lambda: True},
    }.items():
        monkeypatch.setattr(teleop_keyboard, name, value)
    made = teleop_keyboard.KeyboardEndEffectorTeleop(KeyboardEndEffectorTeleopConfig())
    made.connect()
    return made


def pushed(device: LeRobotDevice) -> list[float]:
    twist = device.read().twist
    assert twist is not None
    return [float(number) for number in twist[:3]]


@pytest.mark.parametrize(("key", "way"), [(Key.shift_r, [0, 0, 1]), (Key.shift, [0, 0, -1]), (Key.left, [1, 0, 0])])
def test_a_key_moves_the_hand_for_as_long_as_it_is_held(keyboard: Any, key: Key, way: list[float]) -> None:
    """X11 repeats no shift and no control: one press, one release."""
    device = LeRobotDevice("keyboard_ee", keyboard)
    keyboard._on_press(key)
    assert [pushed(device) for _ in range(3)] == [way] * 3
    keyboard._on_release(key)
    assert [pushed(device) for _ in range(2)] == [[0, 0, 0]] * 2


def test_no_key_stays_pressed_whichever_of_a_pair_the_system_says_was_released(keyboard: Any) -> None:
    device = LeRobotDevice("keyboard_ee", keyboard)
    keyboard._on_press(Key.shift_r)
    assert pushed(device) == [0, 0, 1]
    keyboard._on_release(Key.shift)
    pushed(device)
    assert pushed(device) == [0, 0, 0]


def test_keys_of_the_hand_and_of_the_episode(keyboard: Any) -> None:
    device = LeRobotDevice("keyboard_ee", keyboard)
    keyboard._on_press(Key.ctrl_l)
    assert [device.read().grip for _ in range(2)] == [1.0, 1.0]
    keyboard._on_release(Key.ctrl_l)
    assert device.read().grip is None
    keyboard._on_press(SimpleNamespace(char="s"))
    assert [device.read().verdict for _ in range(2)] == ["success", ""], "once, however long it is held"


@pytest.mark.parametrize("error", [KeyError("HEBI"), OSError("unplugged"), ZeroDivisionError("x")])
def test_whatever_a_device_raises_or_says_is_one_line_with_its_name(error: Exception) -> None:
    class Broken:
        def get_action(self) -> dict[str, Any]:
            raise error

        def disconnect(self) -> None:
            raise error

    device = LeRobotDevice("phone", Broken())  # type: ignore[arg-type]
    with pytest.raises(RobotError, match=f"^teleop=phone: {type(error).__name__}: "):
        device.read()
    device.close()  # it has gone by itself
    said = {"phone.pos": None, "phone.rot": None, "phone.raw_inputs": {}, "phone.enabled": True}
    odd = LeRobotDevice("phone", SimpleNamespace(get_action=lambda: said))  # type: ignore[arg-type]
    with pytest.raises(RobotError, match="^teleop=phone: TypeError: "):
        odd.read()


@pytest.mark.parametrize(("ready", "told"), [(False, "it does not connect"), (None, "teleop=gamepad: no pad")])
def test_a_device_that_does_not_connect_is_one_line(
    ready: bool | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> None:
        if ready is None:
            raise ValueError("no pad\nhere")

    pad = SimpleNamespace(connect=connect, is_connected=ready)
    monkeypatch.setattr(devices, "make_teleoperator_from_config", lambda _: pad)
    with pytest.raises(RobotError, match=told) as caught:
        devices.open_device("gamepad", {}, Listener())  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
