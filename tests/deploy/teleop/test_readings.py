"""What LeRobot's teleoperators say, in the arm's terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rlspec.deploy.lerobot.features import POSITIONS
from rlspec.deploy.teleop.readings import LEADER, understand
from rlspec.errors import RobotError

STILL = {"delta_x": 0.0, "delta_y": 0.0, "delta_z": 0.0}


def test_a_leader_arm_gives_joints_and_a_closure() -> None:
    assert LEADER == POSITIONS
    reading = understand(dict(zip(LEADER, [*range(7), 1.5], strict=True)))
    assert reading.joints is not None and reading.joints.tolist() == list(range(7))
    assert (reading.closure, reading.holds, reading.twist) == (1.0, None, None)


@pytest.mark.parametrize(("pressed", "grip"), [(0, 1.0), (1, None), (2, 0.0), (-1, None)])
def test_a_gamepad_pushes_and_grips(pressed: int, grip: float | None) -> None:
    """LeRobot 0.6.1's keyboard_ee says -1 after the key that closes was let go: that is no wish."""
    reading = understand({"delta_x": np.float32(0.5), "delta_y": -2.0, "delta_z": 0.0, "gripper": pressed})
    assert reading.twist is not None and reading.twist.tolist() == [0.5, -1.0, 0.0, 0.0, 0.0, 0.0]
    assert reading.grip == grip


def test_a_spacemouse_turns_as_well() -> None:
    reading = understand({**STILL, "delta_rx": 0.1, "delta_ry": 0.2, "delta_rz": 0.3})
    assert reading.twist is not None and reading.twist.tolist() == [0.0, 0.0, 0.0, 0.1, 0.2, 0.3]


def test_a_phone_moves_as_lerobots_own_mapping_says() -> None:
    """The axes of LeRobot's `MapPhoneActionToRobotAction`, re-typed."""
    turn = Rotation.from_rotvec([0.1, 0.2, 0.3])
    said = {"phone.pos": np.array([1.0, 2.0, 3.0]), "phone.rot": turn, "phone.raw_inputs": {"a3": -0.9}}
    reading = understand({**said, "phone.enabled": True})
    assert reading.place is not None and reading.place[0].tolist() == [-2.0, 1.0, 3.0]
    np.testing.assert_allclose(reading.place[1], Rotation.from_rotvec([0.2, 0.1, -0.3]).as_matrix(), atol=1e-12)
    assert (reading.grip, reading.holds) == (1.0, True)
    assert understand({**said, "phone.enabled": False}).holds is False
    android = {"reservedButtonA": True, "reservedButtonB": False, "move": True}
    assert understand({**said, "phone.raw_inputs": android, "phone.enabled": True}).grip == 0.0
    android = {"reservedButtonA": False, "reservedButtonB": True, "move": True}
    assert understand({**said, "phone.raw_inputs": android, "phone.enabled": True}).grip == 1.0
    with pytest.raises(RobotError, match="calibrate the phone anew"):
        understand({**said, "phone.pos": np.array([np.nan, 0.0, 0.0]), "phone.enabled": True})


def test_a_phone_without_a_pose_is_let_go_of() -> None:
    assert understand({}).holds is False


@pytest.mark.parametrize(
    ("events", "verdict"),
    [
        ({"success": True, "terminate_episode": True}, "success"),
        ({"terminate_episode": True}, "failure"),
        ({"terminate_episode": True, "rerecord_episode": True}, "rerecord"),
        ({"success": True, "rerecord_episode": True}, "rerecord"),
        ({"success": False, "terminate_episode": False}, ""),
    ],
)
def test_buttons_end_the_episode(events: dict[str, bool], verdict: str) -> None:
    assert understand(STILL, events).verdict == verdict


@pytest.mark.parametrize(
    "action",
    [
        {"shoulder_pan.pos": 1.0, "gripper.pos": 0.0},
        {key: 0.0 for key in LEADER[:-1]},
        {"delta_x": 0.0, "delta_y": 0.0},
        {"linear_velocity": 1.0, "angular_velocity": 0.0},
        {"w": None},
    ],
)
def test_devices_of_other_robots_are_refused_by_what_they_say(action: dict[str, Any]) -> None:
    with pytest.raises(RobotError, match=f"says {min(action)}.*, which moves no seven-jointed arm; take keyboard_ee"):
        understand(action)


@pytest.mark.parametrize("number", [np.nan, np.inf, None, "x"])
def test_what_is_no_number_is_refused(number: Any) -> None:
    for action in ({**STILL, "delta_x": number}, dict.fromkeys(LEADER, number)):
        with pytest.raises(RobotError, match="no number"):
            understand(action)
