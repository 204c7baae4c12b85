"""The simulated robot as the deployment sees it: clock, commands that expire, faults, cameras, tasks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rlspec.deploy.arm.interfaces import Command
from rlspec.deploy.arm.robot_limits import LIMITS
from rlspec.deploy.robots import mujoco as module
from rlspec.deploy.robots.mujoco import MujocoRobot
from rlspec.deploy.robots.mujoco_expert import MujocoExpert
from rlspec.errors import ConfigError, RobotError

HZ = 15.0


@pytest.fixture
def robot(request: pytest.FixtureRequest) -> Iterator[MujocoRobot]:
    """Without cameras; connected under the law that the test names, the stiff servo by default."""
    robot = MujocoRobot(images=False)
    robot.connect(getattr(request, "param", "stiff_position"), HZ)
    yield robot
    robot.close()


def move(robot: MujocoRobot, velocity: float, seconds: float, expires: float = 1.0) -> None:
    """Push joint 1's target ahead of it, as a policy in joint_velocity does."""
    start = robot.clock.now()
    for step in range(round(seconds * HZ)):
        target = robot.read().joints
        target[0] += 0.2 * velocity
        robot.command(Command(target, np.zeros(7), expires))
        robot.clock.sleep_until(start + (step + 1) / HZ)


def run_expert(robot: MujocoRobot, space: str, horizon: int, ticks: int = 200) -> int:
    """Control steps until the task is done."""
    expert = MujocoExpert(robot, space, horizon, HZ)
    chunk: list[np.ndarray] = []
    start = robot.clock.now()
    for tick in range(ticks):
        chunk = chunk or list(expert.infer({}))
        action = chunk.pop(0)
        joints = robot.read().joints
        target = joints + 0.2 * action[:7] if space == "joint_velocity" else action[:7]
        robot.command(Command(target, np.zeros(7), 0.2))
        robot.grip(float(action[7] > 0.5))
        robot.clock.sleep_until(start + (tick + 1) / HZ)
        if robot.success:
            return tick + 1
    return 0


@pytest.mark.parametrize("space", ["joint_velocity", "joint_position"])
@pytest.mark.parametrize("horizon", [1, 8])
def test_the_expert_completes_pick_and_place(robot: MujocoRobot, space: str, horizon: int) -> None:
    assert not robot.success
    assert run_expert(robot, space, horizon), robot.instruction
    assert robot.read().mode == "moving"
    robot.reset(seed=1)
    assert not robot.success
    assert run_expert(robot, space, horizon)


@pytest.mark.parametrize("robot", ["droid_hybrid"], indirect=True)
def test_the_expert_completes_it_under_droids_law(robot: MujocoRobot) -> None:
    assert run_expert(robot, "joint_velocity", 1)


def test_looking_ahead_leaves_the_world_alone(robot: MujocoRobot) -> None:
    expert = MujocoExpert(robot, "joint_velocity", 8, HZ)
    before = robot.read()
    chunk = expert.infer({})
    after = robot.read()
    assert chunk.shape == (8, 8)
    assert after.time == before.time
    np.testing.assert_array_equal(after.joints, before.joints)
    np.testing.assert_array_equal(expert.infer({}), chunk)


@pytest.mark.parametrize("robot", MujocoRobot.laws, indirect=True)
def test_an_expired_command_brings_the_arm_to_a_stand_and_keeps_it_there(robot: MujocoRobot) -> None:
    move(robot, 0.4, 0.6)
    fast = robot.read().velocities[0]
    assert fast > 0.3
    target = robot.read().joints
    target[0] += 0.1
    robot.command(Command(target, np.zeros(7), 0.1))
    sent = robot.clock.now()
    speeds = []
    for milliseconds in range(4, 900, 4):
        robot.clock.sleep_until(sent + milliseconds / 1000)
        speeds.append(np.abs(robot.read().velocities).max())
    speeds = np.array(speeds)
    assert speeds[:24].min() > 0.3, "it moves until the command expires"
    assert speeds[100:].max() < 0.02, "300 ms after the command has expired it stands"
    assert robot.read().mode == "stopped"
    stood = robot.read().joints
    robot.clock.sleep_until(sent + 3.0)
    np.testing.assert_allclose(robot.read().joints, stood, atol=2e-3)


@pytest.mark.parametrize("robot", MujocoRobot.laws, indirect=True)
def test_a_stop_decelerates_within_the_limits_and_a_later_command_moves_again(robot: MujocoRobot) -> None:
    move(robot, 0.4, 0.6)
    robot.stop()
    robot.stop()
    times, speeds = [], []
    begin = robot.clock.now()
    for milliseconds in range(0, 400, 10):
        robot.clock.sleep_until(begin + milliseconds / 1000)
        state = robot.read()
        times.append(state.time)
        speeds.append(state.velocities[0])
    assert state.mode == "stopped"
    assert abs(speeds[-1]) < 0.02
    slowing = -np.diff(speeds) / np.diff(times)
    assert slowing.max() < 1.5 * LIMITS["fr3"].acceleration[0]
    move(robot, 0.4, 0.6)
    assert robot.read().mode == "moving"
    assert robot.read().velocities[0] > 0.3


def test_too_fast_a_joint_trips_the_reflex_and_recovery_is_bounded(robot: MujocoRobot) -> None:
    robot.faults.recoveries = 1
    target = robot.read().joints
    target[0] += 1.5
    robot.command(Command(target, np.zeros(7), 1.0))
    robot.clock.sleep_until(0.5)
    state = robot.read()
    assert state.mode == "reflex"
    assert "joint1" in state.error and "velocity" in state.error
    with pytest.raises(RobotError, match="joint1 .* recover first"):
        robot.command(Command(target, np.zeros(7), 1.0))
    robot.clock.sleep_until(1.0)
    assert robot.read().mode == "reflex"
    assert np.abs(robot.read().velocities).max() < 0.02
    assert robot.recover()
    assert (robot.read().mode, robot.read().error) == ("stopped", "")
    robot.faults.reflex_at = robot.clock.now() + 0.1
    robot.clock.sleep_until(robot.clock.now() + 0.4)
    assert robot.read().mode == "reflex"
    assert not robot.recover()


def test_pressing_on_the_table_trips_the_reflex(robot: MujocoRobot) -> None:
    """Joint 2 leans the hand down; without the threshold the servo goes on pressing."""
    start = robot.clock.now()
    for step in range(60):
        target = robot.read().joints
        target[1] += 0.08
        robot.command(Command(target, np.zeros(7), 0.2))
        robot.clock.sleep_until(start + (step + 1) / HZ)
        if robot.read().mode == "reflex":
            break
    assert robot.read().mode == "reflex"
    assert "outside" in robot.read().error


def test_a_blocked_gripper_stays_where_it_is(robot: MujocoRobot) -> None:
    robot.faults.gripper_blocked = (0.0, 1.0)
    robot.grip(1.0)
    robot.clock.sleep_until(0.9)
    assert robot.read().closure < 0.02
    robot.clock.sleep_until(2.0)
    assert robot.read().closure > 0.98


def test_cameras_take_pictures_at_their_own_rate_and_may_stall() -> None:
    robot = MujocoRobot(image_size=(24, 32), camera_hz=10.0)
    assert robot.camera_shapes == {"exterior_1_left": (24, 32, 3), "wrist_left": (24, 32, 3)}
    robot.connect("stiff_position", HZ)
    robot.faults.camera_stalls["wrist_left"] = (0.15, 0.55)
    move(robot, 0.3, 0.5)
    frames = robot.frames()
    assert frames["exterior_1_left"].time == pytest.approx(0.5, abs=3e-3)
    assert frames["wrist_left"].time == pytest.approx(0.1, abs=3e-3)
    again = robot.frames()
    assert again["exterior_1_left"] is frames["exterior_1_left"], "nothing new is drawn twice"
    move(robot, 0.3, 0.2)
    late = robot.frames()["wrist_left"]
    assert late.time == pytest.approx(0.7, abs=3e-3)
    assert (late.image != frames["wrist_left"].image).any()
    robot.close()


def test_pictures_show_the_moment_of_their_time_also_when_asked_for_in_other_threads() -> None:
    robot = MujocoRobot(seed=5, image_size=(48, 64), camera_hz=4.0)
    robot.connect("stiff_position", HZ)
    env = robot._env
    env.image_size, env.render_observations = (48, 64), True
    expected = env.observe()["pixels"]
    move(robot, 0.4, 0.2)  # the next picture is due after 0.25 s
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        first, second = one.submit(robot.frames).result(), other.submit(robot.frames).result()
    for frames in (first, second, robot.frames()):
        assert frames["exterior_1_left"].time == 0.0
        np.testing.assert_array_equal(frames["exterior_1_left"].image, expected["external"])
        np.testing.assert_array_equal(frames["wrist_left"].image, expected["wrist"])
    robot.close()


def test_time_goes_on_over_scenes_and_never_back(robot: MujocoRobot) -> None:
    robot.clock.sleep_until(1.0)
    robot.reset(seed=7)
    assert robot.clock.now() == pytest.approx(1.0)
    assert robot.read().time == pytest.approx(1.0)
    robot.clock.sleep_until(0.5)
    assert robot.clock.now() == pytest.approx(1.0)
    robot.clock.sleep_until(1.25)
    assert robot.read().time == pytest.approx(1.25, abs=3e-3)


def test_equal_seeds_give_equal_scenes() -> None:
    states = []
    for _ in range(2):
        robot = MujocoRobot(seed=11, images=False)
        robot.connect("droid_hybrid", HZ)
        run_expert(robot, "joint_velocity", 2, ticks=10)
        states.append(robot.read().joints)
        robot.close()
    np.testing.assert_array_equal(*states)


def test_in_real_time_the_physics_follows_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: wall[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: wall.__setitem__(0, wall[0] + seconds))
    robot = MujocoRobot(images=False, real_time=True)
    robot.connect("stiff_position", HZ)
    target = robot.read().joints
    target[0] += 0.1
    robot.command(Command(target, np.zeros(7), 0.5))
    wall[0] += 0.3
    assert robot.read().time == pytest.approx(0.3, abs=3e-3)
    assert robot.read().joints[0] > target[0] - 0.05, "it has moved though nobody slept"
    robot.clock.sleep_until(0.4)
    assert wall[0] == pytest.approx(100.4)
    wall[0] += 1.0
    assert robot.read().mode == "stopped"
    robot.close()


def test_limits_are_the_narrower_of_the_table_and_the_simulated_arm(robot: MujocoRobot) -> None:
    limits = robot.limits
    assert limits.model == "fr3"
    np.testing.assert_array_equal(limits.low, np.maximum(LIMITS["fr3"].low, LIMITS["fr3_pre_5_9"].low))
    np.testing.assert_array_equal(limits.high, np.minimum(LIMITS["fr3"].high, LIMITS["fr3_pre_5_9"].high))
    panda = MujocoRobot(model="fer", images=False)
    np.testing.assert_array_equal(panda.connect("stiff_position", HZ).high, LIMITS["fer"].high)
    panda.close()


def test_what_a_user_gets_wrong_is_named_with_its_remedy() -> None:
    with pytest.raises(RobotError, match="law=ruckig: robot=mujoco runs droid_hybrid"):
        MujocoRobot().connect("ruckig", HZ)
    with pytest.raises(RobotError, match="task 'juggle' .* choose one of pick_place"):
        MujocoRobot(task="juggle").connect("droid_hybrid", HZ)
    with pytest.raises(ConfigError, match="model=ur5"):
        MujocoRobot(model="ur5")
    with pytest.raises(ConfigError, match="exterior_1_left"):
        MujocoRobot(cameras=["front"])
    with pytest.raises(ConfigError, match="acts in joint_velocity"):
        MujocoExpert(MujocoRobot(), "cartesian_velocity")
    with pytest.raises(RobotError, match="not connected"):
        MujocoRobot().frames()
    assert MujocoRobot().read().mode == "disconnected"


def test_a_shadow_may_look_but_not_move() -> None:
    robot = MujocoRobot(images=False)
    robot.connect("droid_hybrid", HZ, read_only=True)
    with pytest.raises(RobotError, match="read only"):
        robot.command(Command(robot.read().joints, np.zeros(7), 1.0))
    with pytest.raises(RobotError, match="read only"):
        robot.grip(1.0)
    robot.clock.sleep_until(0.5)
    assert robot.read().mode == "idle"
    robot.close()
    robot.close()


def test_importing_the_robot_imports_no_simulator() -> None:
    heavy = "torch, lerobot, gymnasium, pandas, mujoco, matplotlib"
    code = (
        "import sys, rlspec.deploy.robots.mujoco, rlspec.deploy.robots.mujoco_expert\n"
        f"print([name for name in '{heavy}'.split(', ') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
