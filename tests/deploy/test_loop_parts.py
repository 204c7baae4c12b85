"""The smaller parts of the loop: what watches, what works beside it, what the policy sees."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import SimClock, Simulation, simulation

from rlspec.deploy.arm.interfaces import Command, Frame, Reply
from rlspec.deploy.arm.robot_limits import LIMITS
from rlspec.deploy.clocks import MonotonicClock
from rlspec.deploy.log.frames import FrameKeeper
from rlspec.deploy.policy.observe import match_cameras
from rlspec.deploy.policy.sources import Contract, HoldPolicy, WavePolicy, check_width
from rlspec.deploy.robots.dry_run import HOME, DryRunRobot
from rlspec.deploy.safety.watchdog import Recoveries, Supervisor, WallWatch, Watchdog, WatchdogSettings, stalled_camera
from rlspec.deploy.workers import LockstepWorker, ThreadWorker
from rlspec.errors import ConfigError, RobotError

PATIENCE = 20.0


def test_watchdog_ages() -> None:
    dog = Watchdog(WatchdogSettings(stop_after=0.2, give_up=1.0), 0.0, 1 / 15)
    assert dog.judge(0.5, fresh=False, stopped=True) == "stop"  # not begun
    dog.fed(0.5)
    found = [dog.judge(0.5 + tick / 15, fresh=False, stopped=False) for tick in range(1, 5)]
    assert found == ["hold", "hold", "stop", "stop"]
    assert dog.judge(1.4, fresh=True, stopped=True) == "run"
    assert dog.judge(1.5, fresh=False, stopped=True) == "end"
    slow = Watchdog(WatchdogSettings(stop_after=0.2), 0.0, 0.25)  # at 4 Hz an action is not late after 0.2 s
    slow.fed(0.0)
    assert [slow.judge(tick / 4, fresh=False, stopped=False) for tick in (1, 2)] == ["hold", "stop"]


def test_recoveries_are_bounded_within_a_window() -> None:
    recoveries = Recoveries(WatchdogSettings(recoveries=2, window=10))
    assert [recoveries.another(time) for time in (0, 1, 2, 10.5, 10.6, 11.5)] == [True, True, False, True, False, True]


def test_cameras() -> None:
    frames = {"a": Frame(10.0, np.zeros((1, 1, 3), np.uint8))}
    assert stalled_camera(frames, {"x": "a"}, 10.15, 0.15) == ""
    assert stalled_camera(frames, {"x": "a"}, 10.2, 0.15) == "camera a stalls: its newest picture is 200 ms old"
    assert stalled_camera(frames, {"x": "b"}, 10.0, 0.15) == "camera b delivers nothing"
    assert stalled_camera(frames, {}, 99.0, 0.15) == ""


def test_wall_clock() -> None:
    watch = WallWatch()
    assert [watch.look(now, wall) for now, wall in ((0, 50), (1, 51.1), (2, 52))] == ["", "", ""]
    assert watch.look(3, 3653) == "the wall clock jumped by +3600.0 s"
    assert watch.look(4, 3654) == ""


def test_supervisor_stops_the_robot_once_per_hang() -> None:
    stops: list[float] = []
    supervisor = Supervisor(MonotonicClock(), 0.05, lambda: stops.append(time.monotonic()), poll=0.005)
    supervisor.start()
    for _ in range(2):
        count = len(stops)
        supervisor.beat()
        end = time.monotonic() + PATIENCE
        while len(stops) == count:
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(0.1)
        assert len(stops) == count + 1
    supervisor.close()


def test_work_that_hangs_keeps_nobody() -> None:
    worker, release = ThreadWorker("test"), threading.Event()
    hanging = worker.submit(lambda: release.wait(PATIENCE))
    waiting = worker.submit(lambda: 1 / 0)
    assert not hanging.done()
    release.set()
    with pytest.raises(ZeroDivisionError):
        waiting.result(PATIENCE)
    worker.close()


def test_lockstep_work_takes_simulated_time() -> None:
    clock = SimClock()
    job = LockstepWorker(clock, 0.25).submit(lambda: 7)
    clock.sleep_until(100.2)
    assert not job.done()
    clock.sleep_until(100.25)
    assert job.done()
    assert job.result() == 7


def robot(clock: SimClock) -> DryRunRobot:
    made = DryRunRobot(LIMITS["fr3"], {"wrist_left": (18, 32, 30.0)}, clock)
    made.connect("ruckig", 10.0)
    return made


def test_dry_run_reaches_its_target_in_a_period() -> None:
    clock = SimClock()
    arm = robot(clock)
    arm.command(Command(HOME + 0.05, np.zeros(7), 0.5))
    clock.sleep_until(100.05)
    assert arm.read().joints == pytest.approx(HOME + 0.025)
    clock.sleep_until(100.1)
    assert arm.read().joints == pytest.approx(HOME + 0.05)
    assert arm.read().velocities == pytest.approx(np.full(7, 0.5))


def test_dry_run_stops_by_itself_when_a_command_expires() -> None:
    clock = SimClock()
    arm = robot(clock)
    arm.command(Command(HOME + 0.1, np.zeros(7), 0.05))  # 1 rad/s, void after half of the way
    clock.sleep_until(100.06)
    assert arm.read().mode == "stopped"
    clock.sleep_until(101.0)
    # s + v^2 / (2 a), all FR3 joints have 10 rad/s^2
    assert arm.read().joints == pytest.approx(HOME + 0.05 + 1 / 20)
    assert np.all(arm.read().velocities == 0)


def test_dry_run_refuses() -> None:
    clock = SimClock()
    arm = robot(clock)
    arm.reflex()
    with pytest.raises(RobotError, match="in reflex"):
        arm.command(Command(HOME, np.zeros(7), 0.2))
    assert arm.recover()
    arm.command(Command(HOME, np.zeros(7), 0.2))
    with pytest.raises(RobotError, match="law=fast"):
        arm.connect("fast", 15.0)
    arm.connect("ruckig", 15.0, read_only=True)
    with pytest.raises(RobotError, match="read only"):
        arm.command(Command(HOME, np.zeros(7), 0.2))


def test_cameras_of_a_policy() -> None:
    openpi = ("observation/exterior_image_1_left", "observation/wrist_image_left")
    roboarena = ("observation/exterior_image_0_left", "observation/exterior_image_1_left")
    ours = ["exterior_1_left", "exterior_2_left", "wrist_left"]
    assert list(match_cameras(openpi, ours, {}).values()) == ["exterior_1_left", "wrist_left"]
    assert list(match_cameras(roboarena, ours, {}).values()) == ["exterior_1_left", "exterior_2_left"]
    assert match_cameras(["observation.images.wrist_left"], ours, {}) == {"observation.images.wrist_left": "wrist_left"}
    assert match_cameras(["front"], ours, {"front": "wrist_left"}) == {"front": "wrist_left"}
    assert match_cameras(["front"], ["front"], {}) == {"front": "front"}
    with pytest.raises(
        ConfigError, match="the policy needs camera front .front.; say which it is with robot.camera_ke"
    ):
        match_cameras(["front"], ours, {})


@pytest.mark.parametrize("space", ["joint_position", "joint_velocity", "delta_eef", "cartesian_velocity"])
def test_hold_holds(space: str) -> None:
    from rlspec.deploy.arm.interfaces import RobotState
    from rlspec.deploy.arm.targets import Targets

    policy = HoldPolicy(space, 15.0)
    seen: dict[str, Any] = {"observation/joint_position": HOME, "observation/gripper_position": np.array([0.7])}
    actions = policy.infer(seen).actions
    target = Targets(space)(actions[0], RobotState(0.0, HOME, np.zeros(7), 0.7))
    assert target.joints == pytest.approx(HOME, abs=1e-4)
    assert target.closure == pytest.approx(0.7)


def test_wave_is_smooth_across_chunks() -> None:
    clock = SimClock()
    policy = WavePolicy(clock, "joint_position", 15.0)
    seen: dict[str, Any] = {"observation/joint_position": HOME, "observation/gripper_position": np.array([0.0])}
    first = policy.infer(seen).actions
    clock.sleep_until(clock.time + 4 / 15)
    second = policy.infer(seen).actions
    assert first[4:] == pytest.approx(second[:-4], abs=1e-9)


def test_pictures_are_kept(tmp_path: Path) -> None:
    keeper = FrameKeeper(tmp_path)
    image = np.full((18, 32, 3), 200, np.uint8)
    for tick, moment in enumerate((1.0, 1.0, 2.0)):
        keeper.put(tick, {"wrist_left": Frame(moment, image)})
    keeper.close()
    assert sorted(path.name for path in (tmp_path / "wrist_left").iterdir()) == ["0.jpg", "2.jpg"]
    assert (keeper.dropped, keeper.error) == (0, "")


def commitments(run: Simulation, latency: float) -> list[dict[str, Any]]:
    """Requests that name committed actions to a policy that takes them."""
    object.__setattr__(run.loop.parts.asker._contract, "takes_prefix", True)
    run.policy.latency = latency
    run.run()
    assert len(run.policy.asked) >= 3
    return [asked for asked in run.policy.asked if "rlspec/prefix" in asked]


@pytest.mark.parametrize("scheduler", ["open_loop", "ensemble"])
def test_who_does_not_continue_a_chunk_commits_to_nothing(scheduler: str) -> None:
    assert not commitments(simulation("seconds=3", f"scheduler={scheduler}"), 0.15)


def test_inference_that_outlasts_a_chunk_is_committed_to_what_is_left() -> None:
    requests = commitments(simulation("seconds=4", "scheduler=rtc"), 0.9)
    assert requests
    assert all(asked["rlspec/delay"] <= len(asked["rlspec/prefix"]) for asked in requests)


def test_real_time_chunking_tells_the_policy_what_is_committed() -> None:
    run = simulation("seconds=3", "scheduler=rtc")
    requests = commitments(run, 0.15)
    assert len(requests) >= 3
    assert requests[-1]["rlspec/delay"] == 3  # 150 ms at 15 Hz
    sent = [line["requested"] for line in run.log.lines if line["requested"] is not None]
    committed = requests[0]["rlspec/prefix"]
    assert committed.shape[1] == 8
    assert any(np.allclose(committed[0], action) for action in sent)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((16, 7), "one of cartesian_position, cartesian_velocity, delta_eef has that width"),
        ((16, 32), "serve a policy"),
    ],
)
def test_a_policy_whose_actions_have_another_width_is_refused_before_the_start(
    shape: tuple[int, ...], remedy: str
) -> None:
    contract = Contract("joint_position", 15.0)
    check_width(Reply(np.zeros((16, 8)), 0.0, 0.0), contract)
    with pytest.raises(ConfigError, match=rf"shape \({shape[0]}, {shape[1]}\), wanted \(horizon, 8\); {remedy}"):
        check_width(Reply(np.zeros(shape), 0.0, 0.0), contract)
