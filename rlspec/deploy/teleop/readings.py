"""What a LeRobot teleoperator says, in this arm's terms. Its keys decide how it is understood; nothing is guessed.

- joint_1.pos ... joint_7.pos, gripper.pos: a leader arm of the same build (GELLO), radians and closure;
- delta_x, delta_y, delta_z (and delta_rx, delta_ry, delta_rz), gripper: keyboard_ee, gamepad, a SpaceMouse: shares of a
  speed from -1 to 1 in the base frame; gripper 0 closes, 2 opens, anything else leaves the hand alone;
- phone.pos, phone.rot, phone.raw_inputs, phone.enabled: a tracked phone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.deploy.arm.kinematics import rotation_matrix
from rlspec.errors import RobotError

Array = NDArray[np.float64]

LEADER = (*(f"joint_{i}.pos" for i in range(1, 8)), "gripper.pos")
PUSH, TURN, GRIP = ("delta_x", "delta_y", "delta_z"), ("delta_rx", "delta_ry", "delta_rz"), "gripper"
_CLOSE, _OPEN = 0, 2  # of `GRIP`; keyboard_ee of LeRobot 0.6.1 also says -1, for a key that was let go
_PHONE = ("phone.pos", "phone.rot", "phone.raw_inputs", "phone.enabled")
_PRESSED = 0.25  # of a phone's slider for the hand, -1 to 1
SUCCESS, FAILURE, AGAIN = "success", "failure", "rerecord"


@dataclass(frozen=True)
class DeviceReading:
    """One look at a device; what it does not have is None.

    Attributes:
        joints: Of a leader arm, (7,) radians.
        twist: Shares of the largest speed, (6,): along and about the base frame's axes.
        place: Of a tracked device, (3,) metres in the base frame, and its rotation (3, 3).
        closure: Of a leader's hand, 0 open to 1 closed.
        grip: What is pressed: 1.0 to close, 0.0 to open.
        holds: Whether its dead man's button is held.
        verdict: What the operator has said of the episode, which ends it: success, failure or rerecord.
    """

    joints: Array | None = None
    twist: Array | None = None
    place: tuple[Array, Array] | None = None
    closure: float | None = None
    grip: float | None = None
    holds: bool | None = None
    verdict: str = ""


def understand(action: Mapping[str, Any], events: Mapping[Any, Any] | None = None) -> DeviceReading:
    """What an action of LeRobot's interface means for this arm.

    Args:
        action: What `get_action` returned; empty: the device has nothing to say.
        events: What `get_teleop_events` returned, where the device has it.

    Raises:
        RobotError: Its keys are those of no device that can move this arm, or a number is none.
    """
    said = {getattr(key, "value", key): bool(value) for key, value in (events or {}).items()}
    verdict = AGAIN if said.get("rerecord_episode") else SUCCESS if said.get("success") else ""
    verdict = verdict or (FAILURE if said.get("terminate_episode") else "")
    holds = True if said.get("is_intervention") else None
    keys = set(action)
    if not keys:
        return DeviceReading(holds=False, verdict=verdict)
    if keys == set(LEADER):
        numbers = _numbers(action, LEADER)
        return DeviceReading(
            joints=numbers[:7], closure=min(max(float(numbers[7]), 0.0), 1.0), holds=holds, verdict=verdict
        )
    if set(PUSH) <= keys <= {*PUSH, *TURN, GRIP}:
        twist = np.clip(_numbers({key: action.get(key, 0.0) for key in (*PUSH, *TURN)}, (*PUSH, *TURN)), -1.0, 1.0)
        pressed = action.get(GRIP)
        grip = 1.0 if pressed == _CLOSE else 0.0 if pressed == _OPEN else None
        return DeviceReading(twist=twist, grip=grip, holds=holds, verdict=verdict)
    if keys == set(_PHONE):
        return _phone(action, verdict)
    raise RobotError(
        f"the teleoperator says {', '.join(sorted(map(str, keys)))}, which moves no seven-jointed arm; take "
        "keyboard_ee, gamepad, phone, or a leader arm with joint_1.pos ... joint_7.pos, gripper.pos in radians"
    )


def _numbers(action: Mapping[str, Any], keys: tuple[str, ...]) -> Array:
    try:
        numbers = np.array([float(action[key]) for key in keys])
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise RobotError("the teleoperator says what is no number; check its cable and calibration")
    return numbers


def _phone(action: Mapping[str, Any], verdict: str) -> DeviceReading:
    """The axes of LeRobot's `MapPhoneActionToRobotAction`; the phone's top edge points ahead when it is calibrated."""
    x, y, z = (float(value) for value in action["phone.pos"])
    roll, pitch, yaw = (float(value) for value in action["phone.rot"].as_rotvec())
    inputs = action["phone.raw_inputs"]
    pressed = float(inputs.get("a3", 0.0))
    pressed += float(inputs.get("reservedButtonA", 0.0)) - float(inputs.get("reservedButtonB", 0.0))
    numbers = np.array([-y, x, z, pitch, roll, -yaw, pressed])
    if not np.isfinite(numbers).all():
        raise RobotError("the teleoperator says what is no number; calibrate the phone anew")
    return DeviceReading(
        place=(numbers[:3], rotation_matrix(numbers[3:6])),
        grip=None if abs(pressed) < _PRESSED else float(pressed < 0),
        holds=bool(action["phone.enabled"]),
        verdict=verdict,
    )
