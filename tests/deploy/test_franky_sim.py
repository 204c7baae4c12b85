"""The real driver on franky-sim: the laws' motion, expiry, death of the client, reflexes, a blocked hand.

Times are the simulator's own, at 1 kHz, so that a busy machine changes nothing. What franky-sim is not: a robot.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("franky")
pytest.importorskip("franky_sim")

from franky_plant import HOME, SERVO, arm_gravity, arm_plant  # noqa: E402
from law_prediction import predict  # noqa: E402
from simulated import SimClock  # noqa: E402

from rlspec.deploy.arm.interfaces import Command  # noqa: E402
from rlspec.deploy.arm.laws import LAWS, Impedance, hybrid_torque  # noqa: E402
from rlspec.deploy.arm.robot_limits import velocity_bounds  # noqa: E402
from rlspec.deploy.robots.fci import driver_versions, server_version  # noqa: E402
from rlspec.deploy.robots.franky import FrankyRobot, FrankySettings  # noqa: E402
from rlspec.deploy.robots.franky_sim import FrankySimRobot, SimulatorProcess  # noqa: E402
from rlspec.deploy.safety.filter import SafetyFilter, SafetySettings  # noqa: E402
from rlspec.errors import RobotError  # noqa: E402

REST = 0.01  # rad/s
# Ruckig's end is followed by franky-sim's position servo, which creeps (time constant 0.1 s).
SPEED_AT_REST = {**dict.fromkeys(LAWS, REST), "ruckig": 0.05}
HZ = 15.0
WALL, TIME, Q, DQ, TAU = 0, 1, slice(2, 9), slice(9, 16), slice(16, 23)


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    process = SimulatorProcess()
    yield process
    process.close()


@contextmanager
def connected(simulator: SimulatorProcess, law: str = "droid_hybrid") -> Iterator[FrankySimRobot]:
    simulator.order("place " + ",".join(str(joint) for joint in HOME))
    robot = FrankySimRobot(images="none", host=simulator.host)
    robot.connect(law, HZ)
    try:
        yield robot
    finally:
        robot.close()


def wait(until: Callable[[], bool], patience: float = 20.0) -> None:
    end = time.monotonic() + patience
    while not until():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def rest_robot(robot: FrankySimRobot, seconds: float) -> None:
    """Wait on the robot's own clock."""
    start = robot.robot_time
    wait(lambda: robot.robot_time >= start + seconds)


def rows_since(simulator: SimulatorProcess, wall: float) -> np.ndarray:
    record = simulator.record()
    return record[record[:, WALL] >= wall]


def standstill(rows: np.ndarray, rest: float = REST) -> float:
    """Simulated seconds from the first row until the arm rests for good."""
    moving = np.flatnonzero(np.abs(rows[:, DQ]).max(axis=1) > rest)
    return 0.0 if len(moving) == 0 else float(rows[moving[-1], TIME] - rows[0, TIME])


def joint1(value: float) -> np.ndarray:
    return np.array([value, 0, 0, 0, 0, 0, 0], dtype=np.float64)


def follow(robot: FrankySimRobot, v: float, steps: int) -> None:
    """DROID's joint velocity policy, paced by the robot's clock: target = measured + 0.2 v."""
    start = robot.robot_time
    for step in range(steps):
        robot.command(Command(robot.read().joints + 0.2 * joint1(v), 3.0 * joint1(v), 0.3))
        wait(lambda due=start + (step + 1) / HZ: robot.robot_time >= due)  # type: ignore[misc]


def realised_and_predicted(simulator: SimulatorProcess, law: str, v: float, steps: int) -> tuple[float, float]:
    """Mean speeds of joint 1, rad/s, over the second half of the motion."""
    with connected(simulator, law) as robot:
        start = time.monotonic()
        follow(robot, v, steps)
        end, profile = time.monotonic(), robot.profile
    rows = rows_since(simulator, start)
    rows = rows[rows[:, WALL] < end]
    half = rows[len(rows) // 2 :]
    realised = (half[-1, 2] - half[0, 2]) / (half[-1, TIME] - half[0, TIME])
    motion = predict(
        law,
        lambda q, dq: (q + 0.2 * joint1(v), 3.0 * joint1(v)),
        HOME,
        control_hz=HZ,
        steps=steps,
        plant=arm_plant(),
        profile=profile,
        servo=SERVO,
    )
    later = motion.joints[len(motion.time) // 2 :, 0]
    return float(realised), float((later[-1] - later[0]) * 1000 / (len(later) - 1))


def test_droids_law_moves_the_arm_as_fast_as_its_formula_says(simulator: SimulatorProcess) -> None:
    realised, predicted = realised_and_predicted(simulator, "droid_hybrid", 0.3, 16)
    assert realised == pytest.approx(predicted, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("v", [0.1, 0.3])
@pytest.mark.parametrize("law", LAWS)
def test_each_law_moves_the_arm_as_fast_as_its_formula_says(simulator: SimulatorProcess, law: str, v: float) -> None:
    realised, predicted = realised_and_predicted(simulator, law, v, 30)
    print(f"{law} v={v}: {realised:.4f} rad/s, by its formula {predicted:.4f}")
    assert realised == pytest.approx(predicted, rel=0.1)


def test_the_drivers_torque_is_that_of_the_formula(simulator: SimulatorProcess) -> None:
    target = HOME + np.array([0.12, -0.08, 0.1, 0.1, -0.15, 0.1, 0.2])
    with connected(simulator) as robot:
        start = time.monotonic()
        robot.command(Command(target, np.zeros(7), 3.0))
        rest_robot(robot, 1.0)
        end = time.monotonic()
    rows = rows_since(simulator, start)
    rows = rows[rows[:, WALL] < end][-200:-20:10]  # nearly at rest, short of the target by friction
    jacobian, gravity = arm_plant().jacobian, arm_gravity()
    assert len(rows) > 15
    for row in rows:
        expected = hybrid_torque(target, row[Q], row[DQ], jacobian(row[Q]))
        driver = row[TAU] - gravity(row[Q])
        np.testing.assert_allclose(driver, expected, atol=0.05)
        assert np.abs(expected).max() > 0.3


@pytest.mark.parametrize(  # one impedance is another's code with other gains
    "law", [pytest.param(law, marks=pytest.mark.slow) if law == "joint_impedance" else law for law in LAWS]
)
def test_a_command_expires_in_the_drivers_loop_while_python_is_stuck(simulator: SimulatorProcess, law: str) -> None:
    expires = 0.15
    with connected(simulator, law) as robot:
        follow(robot, 0.3, 8)
        robot.command(Command(robot.read().joints + 0.2 * joint1(0.3), joint1(0.9), expires))
        sent = time.monotonic()
        ctypes.PyDLL(None).usleep(900_000)  # holds the interpreter's lock: no thread of Python runs
        rows = rows_since(simulator, sent)
        assert np.abs(rows[0, DQ]).max() > 0.1
        assert standstill(rows, SPEED_AT_REST[law]) < 0.3
        wait(lambda: robot.read().mode == "idle", patience=5.0)
        follow(robot, 0.3, 2)  # and the arm goes on


CLIENT = """
import sys, time, numpy as np
from rlspec.deploy.arm.interfaces import Command
from rlspec.deploy.robots.franky_sim import FrankySimRobot
robot = FrankySimRobot(images="none", host=sys.argv[1])
robot.connect(sys.argv[2], 15.0)
robot.command(Command(robot.read().joints + 0.6, np.full(7, 0.4), 30.0))
while np.abs(robot.read().velocities).max() < 0.2:
    time.sleep(0.002)
print("moving", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("fault", "law"), [(signal.SIGKILL, "joint_velocity"), (signal.SIGKILL, "droid_hybrid"), (signal.SIGSTOP, "ruckig")]
)
def test_the_arm_stops_when_its_client_dies_or_freezes(
    simulator: SimulatorProcess, fault: signal.Signals, law: str
) -> None:
    simulator.order("place " + ",".join(str(joint) for joint in HOME))
    client = subprocess.Popen([sys.executable, "-c", CLIENT, simulator.host, law], stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout is not None and client.stdout.readline() == "moving\n"
        when = time.monotonic()
        os.kill(client.pid, fault)
        wait(lambda: time.sleep(0.3) or len(rows_since(simulator, when)) > 700)
        rows = rows_since(simulator, when)
        assert np.abs(rows[0, DQ]).max() > 0.1
        assert standstill(rows, SPEED_AT_REST[law]) < 0.3
    finally:
        client.kill()
        client.wait()
        wait(lambda: simulator.order("forgive") is None)


def test_a_reflex_is_shown_refused_and_recovered_from(simulator: SimulatorProcess) -> None:
    with connected(simulator) as robot:
        follow(robot, 0.3, 3)
        when = time.monotonic()
        simulator.order("reflex")
        wait(lambda: robot.read().mode == "reflex")
        assert "reflex" in robot.read().error
        with pytest.raises(RobotError, match="recover"):
            robot.command(Command(HOME, np.zeros(7), 0.2))
        rest_robot(robot, 0.3)
        assert standstill(rows_since(simulator, when)) < 0.3
        wait(robot.recover)
        assert robot.read().mode == "idle"
        follow(robot, 0.3, 5)
        assert robot.read().mode == "moving" and robot.read().velocities[0] > 0.1


@pytest.mark.parametrize(("blocked", "patience"), [(False, 0.5), (False, 0.0), (True, 0.5)])
def test_a_hand_may_still_be_moving_when_the_robot_is_closed(
    simulator: SimulatorProcess, *, blocked: bool, patience: float
) -> None:
    """In a process of its own: a driver's thread used a hand that was freed, or came back while Python ended."""
    code = f"""
import time
from rlspec.deploy.robots.franky_sim import FrankySimRobot
robot = FrankySimRobot(images="none", host={simulator.host!r})
robot.connect("droid_hybrid", {HZ})
robot.grip(0.0)
while robot.read().closure > 0.1:
    time.sleep(0.01)
print("open", flush=True)
input()
hand = robot._gripper
robot.grip(1.0)
while {patience > 0 and not blocked} and hand._sent != (1.0,):
    time.sleep(0.01)
hand.close = lambda: type(hand).close(hand, {patience})
robot.close()
print("closed", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "open\n"
    if blocked:
        simulator.order("gripper block")
    try:
        assert child.communicate("\n", timeout=60)[0] == "closed\n" and child.returncode == 0
    finally:
        simulator.order("gripper free")


def test_a_blocked_hand_delays_nothing(simulator: SimulatorProcess) -> None:
    with connected(simulator) as robot:
        robot.grip(0.0)
        wait(lambda: robot.read().closure < 0.1)
        simulator.order("gripper block")
        try:
            robot.grip(1.0)
            follow(robot, 0.3, 8)
            assert robot.read().velocities[0] > 0.2  # the arm goes on
        finally:
            simulator.order("gripper free")
        robot.stop()
        wait(lambda: robot.read().closure > 0.9)


def test_a_stop_rests_the_arm_and_a_command_moves_it_again(simulator: SimulatorProcess) -> None:
    with connected(simulator) as robot:
        follow(robot, 0.3, 4)
        when = time.monotonic()
        robot.stop()
        robot.stop()
        wait(lambda: robot.read().mode == "stopped")
        rest_robot(robot, 0.3)
        assert standstill(rows_since(simulator, when)) < 0.3
        follow(robot, 0.3, 3)
        assert robot.read().mode == "moving"


def test_versions_of_both_sides_agree(simulator: SimulatorProcess) -> None:
    assert server_version(simulator.host) == driver_versions()[1] == 10


def test_limits_are_the_connected_robots_and_another_model_is_refused(simulator: SimulatorProcess) -> None:
    with connected(simulator) as robot:
        assert robot.limits.model == "fr3" and "URDF" in robot.limits.source
        assert np.all(robot.profile.acceleration <= robot.limits.acceleration)
    panda = FrankyRobot(simulator.host, "fer", settings=FrankySettings(realtime=False))
    with pytest.raises(RobotError, match="is a fr3 .* use robot=franka_fr3$"):
        panda.connect("droid_hybrid", HZ)


def test_a_robot_that_is_read_only_is_not_moved(simulator: SimulatorProcess) -> None:
    robot = FrankySimRobot(images="none", host=simulator.host)
    robot.connect("droid_hybrid", HZ, read_only=True)
    try:
        assert robot.read().mode == "idle"
        with pytest.raises(RobotError, match="read only"):
            robot.command(Command(HOME, np.zeros(7), 0.2))
    finally:
        robot.close()


def test_a_robot_that_is_not_there_is_one_line() -> None:
    robot = FrankyRobot("127.113.37.9")
    with pytest.raises(RobotError, match="cannot be reached .* FCI activated$"):
        robot.connect("droid_hybrid", HZ)
    with pytest.raises(RobotError, match="law=stiff_position"):
        robot.connect("stiff_position", HZ)
    with pytest.raises(RobotError, match="not connected"):
        robot.read()


@pytest.mark.parametrize("law", ["droid_hybrid", pytest.param("joint_velocity", marks=pytest.mark.slow)])
def test_a_filtered_random_policy_exceeds_no_limit(simulator: SimulatorProcess, law: str) -> None:
    generator, wish = np.random.default_rng(0), np.zeros(7)
    with connected(simulator, law) as robot:
        # A soft law overshoots the speed of its target: of the arm's envelope, the target gets a share.
        guard = SafetyFilter(robot.limits, SafetySettings(velocity_share=0.75), HZ)
        guard.reset(robot.read())
        start, wall = robot.robot_time, time.monotonic()
        for step in range(45):
            state = robot.read()
            wish = np.clip(0.8 * wish + generator.normal(0, 0.5, 7), -1, 1)
            verdict = guard.filter(state.joints + 0.2 * wish, state, 0.0)
            if verdict.command is not None:
                robot.command(verdict.command)
            wait(lambda due=start + (step + 1) / HZ: robot.robot_time >= due)  # type: ignore[misc]
        limits = robot.limits
    rows = rows_since(simulator, wall)
    low, high = velocity_bounds(limits, rows[:, Q])
    assert len(rows) > 2500 and np.ptp(rows[:, Q], axis=0).max() > 0.3
    assert np.all(rows[:, Q] >= limits.low) and np.all(rows[:, Q] <= limits.high)
    beyond = np.maximum(low - rows[:, DQ], rows[:, DQ] - high)
    row, joint = np.unravel_index(np.argmax(beyond), beyond.shape)
    where = f"joint {joint + 1} at {rows[row, Q][joint]:.3f} rad: {rows[row, DQ][joint]:.3f} rad/s, row {row}"
    assert beyond.max() <= 0, f"{where}, allowed {low[row, joint]:.3f} to {high[row, joint]:.3f}"


def test_a_robot_that_vanishes_is_an_error_and_not_a_hang() -> None:
    robot = FrankySimRobot(images="synthetic", image_size=(18, 32))
    robot.connect("droid_hybrid", HZ)
    try:
        wait(lambda: set(robot.frames()) == {"exterior_1_left", "wrist_left"})
        assert robot.frames()["wrist_left"].image.shape == (18, 32, 3)
        robot.simulator.close()

        def lost() -> bool:
            try:
                robot.read()
            except RobotError as error:
                return "check the network" in str(error)
            return False

        wait(lost)
        began = time.monotonic()
        robot.stop()
        assert time.monotonic() - began < 20
    finally:
        robot.close()


def test_a_state_that_the_driver_repeats_grows_old() -> None:
    clock = SimClock()
    robot = FrankyRobot("stub", clock=clock)
    shown = SimpleNamespace(q=HOME, dq=np.zeros(7), current_errors="[]", robot_mode=None)
    robot._franky = pytest.importorskip("franky")
    robot._robot = SimpleNamespace(state=shown, poll_motion=lambda: None, is_in_control=True)

    def poll(stamp: float) -> float:
        clock.time += 0.1
        shown.time = SimpleNamespace(to_sec=lambda: stamp)
        robot._poll_once()
        return robot.read().time

    assert poll(7.0) == poll(7.0) == poll(7.0) == pytest.approx(clock.now() - 0.2)
    assert poll(7.001) == clock.now()
    poll(7.001), poll(7.001)
    with pytest.raises(RobotError, match=r"has sent no state for 0\.25 s"):
        poll(7.001)


def test_impedance_laws_never_ask_for_a_jump_of_torque() -> None:
    assert all(law.max_delta_tau <= 1.0 for law in LAWS.values() if isinstance(law, Impedance))


def test_load_and_tool_are_set_through_the_driver_and_told_as_the_arm_reports_them(simulator: SimulatorProcess) -> None:
    robot = FrankySimRobot(images="none", host=simulator.host)
    robot.settings = replace(robot.settings, payload_mass=1, payload_centre=[0, 0, 0.1], tool=0.05)
    robot.connect("droid_hybrid", HZ)
    try:
        contacts, load, tool = robot.treatment
    finally:
        robot.close()
        robot.settings = replace(robot.settings, payload_mass=0.0, tool=0.0)  # the other tests have the same arm
        robot.connect("droid_hybrid", HZ)
        robot.close()
    assert contacts == "contacts   a joint from 40 Nm, the hand from 40 N"
    assert load.endswith("payload 1.00 kg at +0.000 +0.000 +0.100 m")
    assert tool == "tool frame +0.000 +0.000 +0.153 m from the flange", "5 cm beyond the Franka hand's 0.1034 m"


@pytest.mark.slow
def test_frankys_own_waypoints_run_on_the_simulated_arm(simulator: SimulatorProcess) -> None:
    """franky without a line of ours between: what a laboratory has written for its arm runs against the same server."""
    import franky

    simulator.order("place " + ",".join(str(joint) for joint in HOME))
    robot = franky.Robot(simulator.host, realtime_config=franky.RealtimeConfig.Ignore)
    robot.relative_dynamics_factor = 0.2
    ends = [HOME + joint1(0.1), HOME + joint1(-0.1)]
    begun = time.monotonic()
    robot.move(franky.JointWaypointMotion([franky.JointWaypoint(end) for end in ends]))
    wait(lambda: np.abs(rows_since(simulator, begun)[-1, Q] - ends[-1]).max() < 2e-3)  # the position servo creeps
    path = rows_since(simulator, begun)[:, Q]
    assert path[:, 0].max() == pytest.approx(HOME[0] + 0.1, abs=0.03), "it was at the first one before"
    assert np.abs(path[:, 1:] - HOME[1:]).max() < 5e-3, "no other joint moves"
