"""The Robot plugin keeps LeRobot's contract, and nothing reaches an arm but through the safety filter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lerobot.robots import RobotConfig, make_robot_from_config
from lerobot.rollout.strategies import core
from lerobot.teleoperators import TeleoperatorConfig, make_teleoperator_from_config
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from rlspec.deploy.arm.kinematics import forward
from rlspec.deploy.lerobot import FrankaRlspec, FrankaRlspecConfig, FrankaRlspecExpertConfig
from rlspec.deploy.lerobot.features import ACTION_KEYS, POSITIONS
from rlspec.errors import ConfigError, RobotError

Make = Callable[..., FrankaRlspec]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A robot from its configuration, as LeRobot's commands make it; disconnected at the end."""
    robots: list[FrankaRlspec] = []

    def build(**options: Any) -> FrankaRlspec:
        given = {"backend": "mujoco", "images": False, "calibration_dir": tmp_path, **options}
        robot = make_robot_from_config(FrankaRlspecConfig(**given))
        assert isinstance(robot, FrankaRlspec)
        robots.append(robot)
        return robot

    yield build
    for robot in robots:
        if robot.is_connected:
            robot.disconnect()


def joints_of(observation: dict[str, Any]) -> np.ndarray:
    return np.array([observation[key] for key in POSITIONS[:7]])


def test_the_names_are_registered_with_lerobot() -> None:
    assert RobotConfig.get_choice_class("franka_rlspec") is FrankaRlspecConfig
    assert TeleoperatorConfig.get_choice_class("franka_rlspec_expert") is FrankaRlspecExpertConfig


@pytest.mark.parametrize("space", ACTION_KEYS)
def test_features_are_known_before_connecting_and_kept_afterwards(make: Make, space: str) -> None:
    robot = make(action_space=space, images=True, image_height=24, image_width=32)
    observed, acted = robot.observation_features, robot.action_features
    assert list(observed) == [*POSITIONS, "exterior_1_left", "wrist_left"]
    assert observed["wrist_left"] == (24, 32, 3)
    assert all(key.endswith((".pos", ".vel")) for key in acted), "LeRobot's rollout drops other keys"
    with pytest.raises(DeviceNotConnectedError):
        robot.get_observation()
    with pytest.raises(DeviceNotConnectedError):
        robot.send_action({})
    robot.connect()
    with pytest.raises(DeviceAlreadyConnectedError):
        robot.connect()
    observation = robot.get_observation()
    assert set(observation) == set(observed)
    assert observation["wrist_left"].shape == (24, 32, 3) and observation["wrist_left"].dtype == np.uint8
    assert all(isinstance(observation[key], float) for key in POSITIONS)
    still = dict.fromkeys(acted, 0.0) if space != "joint_position" else {key: observation[key] for key in POSITIONS}
    assert set(robot.send_action(still)) == set(acted)
    robot.disconnect()
    assert not robot.is_connected
    with pytest.raises(DeviceNotConnectedError):
        robot.disconnect()


@pytest.mark.parametrize(("law", "follows"), [("joint_velocity", True), ("droid_hybrid", False)])
def test_a_velocity_law_begins_each_tick_where_the_arm_is(
    make: Make, monkeypatch: pytest.MonkeyPatch, law: str, follows: bool
) -> None:
    robot = make(backend="dry_run", law=law)
    robot.connect()
    still = {key: robot.get_observation()[key] for key in POSITIONS}
    robot.send_action(still)
    read = robot.backend.read
    # Pushed by 0.2 rad, which no tick bridges.
    monkeypatch.setattr(robot.backend, "read", lambda: replace(read(), joints=joints_of(still) + 0.2))
    sent = joints_of(robot.send_action({key: value + 0.2 for key, value in still.items()}))
    assert np.allclose(sent, joints_of(still) + 0.2, atol=1e-6) == follows


@pytest.mark.parametrize("space", ["joint_position", "joint_velocity", "delta_eef"])
def test_the_scripted_teleoperator_does_the_task_through_the_filter(make: Make, space: str, tmp_path: Path) -> None:
    robot = make(action_space=space)
    config = FrankaRlspecExpertConfig(action_space=space, calibration_dir=tmp_path)
    expert = make_teleoperator_from_config(config)
    assert expert.action_features == robot.action_features
    expert.connect()
    with pytest.raises(RobotError, match="backend=mujoco"):
        expert.get_action()
    robot.connect()
    changed = 0
    for _ in range(300):
        robot.get_observation()
        action = expert.get_action()
        sent = robot.send_action(action)
        moved = [key for key in sent if key != "gripper.pos"]
        changed += any(abs(sent[key] - action[key]) > 1e-6 for key in moved)
        assert np.abs(robot.backend.read().velocities).max() < 2.2  # type: ignore[union-attr]
        if robot.backend.success:  # type: ignore[union-attr]
            break
    assert robot.backend.success  # type: ignore[union-attr]
    still = joints_of(robot.get_observation())
    for _ in range(8):
        robot.send_action(expert.get_action())
    assert np.abs(joints_of(robot.get_observation()) - still).max() < 0.1, "done means done"


def test_what_is_returned_is_what_was_sent(make: Make) -> None:
    robot = make()
    robot.connect()
    here = robot.get_observation()
    gentle = {**{key: here[key] for key in POSITIONS}, "joint_1.pos": here["joint_1.pos"] + 0.01}
    assert robot.send_action(gentle) == pytest.approx(gentle)
    far = {**gentle, "joint_1.pos": here["joint_1.pos"] + 0.24}
    sent = robot.send_action(far)
    assert here["joint_1.pos"] + 0.01 < sent["joint_1.pos"] < here["joint_1.pos"] + 0.15
    assert robot.send_action({**gentle, "joint_2.pos": float("nan")}) != far


def test_a_first_action_far_away_moves_neither_arm_nor_hand(make: Make) -> None:
    robot = make()
    robot.connect()
    here = robot.get_observation()
    far = {**{key: here[key] for key in POSITIONS}, "joint_1.pos": here["joint_1.pos"] + 0.8, "gripper.pos": 1.0}
    for _ in range(5):
        robot.send_action(far)
    after = robot.get_observation()
    assert np.abs(joints_of(after) - joints_of(here)).max() < 0.02
    assert after["gripper.pos"] == pytest.approx(here["gripper.pos"], abs=0.02)  # it drops nothing that it holds


def test_each_action_simulates_one_control_period_and_the_arm_stops_when_nobody_sends(make: Make) -> None:
    robot = make(action_space="joint_velocity")
    robot.connect()
    clock = robot.backend.clock  # type: ignore[union-attr]
    start = clock.now()
    forward = {**dict.fromkeys(ACTION_KEYS["joint_velocity"], 0.0), "joint_1.vel": 0.5}
    for count in range(1, 13):
        robot.send_action(forward)
        assert clock.now() - start == pytest.approx(count / 15)
    assert robot.backend.read().velocities[0] > 0.2  # type: ignore[union-attr]
    clock.sleep_until(clock.now() + 0.5)
    state = robot.backend.read()  # type: ignore[union-attr]
    assert state.mode == "stopped" and np.abs(state.velocities).max() < 0.02
    stood = state.joints
    robot.send_action(forward)
    robot.send_action(forward)
    assert robot.backend.read().joints[0] > stood[0] + 1e-3, "and it goes on when somebody does"  # type: ignore[union-attr]


def test_actions_that_come_too_fast_wait_for_their_tick(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In real time the filter's limits hold only at its own rate."""
    from rlspec.deploy.robots import mujoco as module

    wall = [50.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: wall[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: wall.__setitem__(0, wall[0] + seconds))
    robot = make(real_time=True)
    robot.connect()
    here = {key: robot.get_observation()[key] for key in POSITIONS}
    times = []
    for _ in range(6):
        robot.send_action(here)
        times.append(wall[0])
        wall[0] += 0.02  # a loop at 50 Hz
    np.testing.assert_allclose(np.diff(times), 1 / 15, atol=1e-6)


def test_lerobots_way_home_works_in_velocity_mode(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a rollout LeRobot sends positions, whatever the action space."""
    monkeypatch.setattr(core, "precise_sleep", lambda _: None)
    robot = make(action_space="joint_velocity")
    robot.connect()
    observation = robot.get_observation()
    home = {key: value for key, value in observation.items() if key.endswith(".pos")}
    for _ in range(15):
        robot.send_action({**dict.fromkeys(ACTION_KEYS["joint_velocity"], 0.0), "joint_1.vel": 0.4})
    assert abs(robot.get_observation()["joint_1.pos"] - home["joint_1.pos"]) > 0.2
    hardware: Any = SimpleNamespace(robot_wrapper=robot, initial_position=home)
    core.RolloutStrategy._return_to_initial_position(hardware, duration_s=2.0, fps=20)
    for _ in range(5):
        robot.send_action(home)
    assert np.abs(joints_of(robot.get_observation()) - joints_of(home)).max() < 0.02


def test_a_reflex_and_a_stalled_camera_end_the_session(make: Make) -> None:
    robot = make(images=True, image_height=16, image_width=16)
    robot.connect()
    here = {key: robot.get_observation()[key] for key in POSITIONS}
    robot.backend.faults.camera_stalls["wrist_left"] = (0.0, 9.0)  # type: ignore[union-attr]
    for _ in range(20):
        robot.send_action(here)
    with pytest.raises(RobotError, match="camera wrist_left has delivered nothing for 1.3 s"):
        robot.get_observation()
    robot.backend.faults.reflex_at = robot.backend.clock.now()  # type: ignore[union-attr]
    robot.send_action(here)
    with pytest.raises(RobotError, match="stopped by itself"):
        robot.send_action(here)


def test_mistakes_are_named(make: Make) -> None:
    with pytest.raises(ConfigError, match="robot.backend=ros: unknown; .*dry_run.*; or my_module:MyRobot"):
        FrankaRlspecConfig(backend="ros")
    with pytest.raises(ConfigError, match="--robot.host=IP"):
        FrankaRlspecConfig(backend="franky")
    with pytest.raises(ConfigError, match="robot.backend=franky: no box of the room; add --robot.workspace_low="):
        FrankaRlspecConfig(backend="franky", host="1.2.3.4", workspace_low=[-0.2, -0.5, 0.0])
    walls = FrankaRlspecConfig(
        backend="franky", host="1.2.3.4", workspace_low=[-0.2, -0.5, 0.0], workspace_high=[0.7, 0.5, 0.9]
    )
    assert (walls.safety.workspace_low, walls.safety.workspace_high) == ([-0.2, -0.5, 0.0], [0.7, 0.5, 0.9])
    with pytest.raises(ConfigError, match="wave: it gives joint angles"):
        FrankaRlspecExpertConfig(motion="wave", action_space="delta_eef")
    robot = make(action_space="joint_velocity")
    robot.connect()
    with pytest.raises(RobotError, match="keys joint_7.vel missing or foreign"):
        robot.send_action(dict.fromkeys(ACTION_KEYS["joint_velocity"][:6] + ("gripper.pos",), 0.0))


def test_without_a_robot_the_wave_swings(make: Make, tmp_path: Path) -> None:
    robot = make(backend="dry_run", images=True, image_height=8, image_width=8, control_hz=100.0)
    config = FrankaRlspecExpertConfig(motion="wave", amplitude=0.2, period_s=0.4, calibration_dir=tmp_path)
    wave = make_teleoperator_from_config(config)
    wave.connect()
    robot.connect()
    start = joints_of(robot.get_observation())
    for _ in range(20):
        robot.send_action(wave.get_action())
    moved = joints_of(robot.get_observation()) - start
    assert moved.min() > 0.0 and moved.max() < 0.25
    wave.disconnect()


def test_the_sticks_of_lerobots_gamepad_push_the_hand_through_the_filter(make: Make) -> None:
    robot = make()
    robot.connect()
    begin = forward(joints_of(robot.get_observation()))[0]
    for _ in range(20):
        sent = robot.send_action({"delta_x": 0.0, "delta_y": np.float32(1.0), "delta_z": 0.0, "gripper": 0})
    assert set(sent) == set(robot.action_features) and sent["gripper.pos"] == 1.0
    way = forward(joints_of(sent))[0] - begin
    assert way[1] == pytest.approx(20 * 0.15 / 15, abs=0.02) and np.abs(way[[0, 2]]).max() < 0.01
    still = robot.send_action({"delta_x": 0.0, "delta_y": 0.0, "delta_z": 0.0, "gripper": 1})
    assert np.abs(joints_of(still) - joints_of(sent)).max() < 0.1 and still["gripper.pos"] == 1.0


def test_the_hand_and_every_driver_of_the_table_are_there_for_lerobot_too() -> None:
    box = {"workspace_low": [-0.2, -0.5, 0.0], "workspace_high": [0.7, 0.5, 0.9]}
    options = {"gripper": "robotiq", "gripper_port": "/dev/ttyUSB7"}
    config = FrankaRlspecConfig(backend="franky", host="1.2.3.4", options=options, **box)
    robot = config.driver.make(config.described({}))
    assert (robot.settings.gripper, robot.settings.gripper_port) == ("robotiq", "/dev/ttyUSB7")
    assert config.safety.hand_length == pytest.approx(0.177), "the box is kept for the longer hand"
    with pytest.raises(ConfigError, match="robot.gripperr=robotiq: robot=franka_fr3 has no such option; did you mean"):
        FrankaRlspecConfig(backend="franky", host="1.2.3.4", options={"gripperr": "robotiq"}, **box)


def test_a_hand_that_is_wrong_ends_lerobots_session(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    robot = make(backend="mujoco")
    robot.connect()
    still = {key: robot.get_observation()[key] for key in POSITIONS}
    monkeypatch.setattr(type(robot.backend), "grip_problem", "gripper: the cable is out")
    with pytest.raises(RobotError, match="gripper: the cable is out"):
        for _ in range(60):
            robot.send_action(still)
