"""Each fault on its own, in simulated time: the arm stands soon, the log tells, and nothing of it is missing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from simulated import PERIOD, Simulation, fresh_ticks, simulation

from rlspec.deploy.arm.interfaces import RobotState

SOON = 0.3  # seconds from fault to standstill
FAULT = 102.0  # moves since 100


def check_log(run: Simulation) -> None:
    ticks = [line["tick"] for line in run.log.lines]
    assert ticks == sorted(set(ticks))
    assert len(ticks) == run.loop.outcome.ticks
    assert all(line["state"] is not None for line in run.log.lines)


def test_nothing_goes_wrong() -> None:
    run = simulation("seconds=3")
    outcome = run.run()
    assert (outcome.end, outcome.exit_code, outcome.stops, outcome.missed) == ("time", 0, 0, 0)
    assert outcome.fresh >= 43
    assert outcome.standstill is not None
    assert outcome.standstill < SOON
    check_log(run)


def test_server_killed() -> None:
    run = simulation("seconds=20", "watchdog.give_up=2")
    run.clock.at(FAULT, lambda: setattr(run.policy, "killed", True))
    outcome = run.run()
    assert (outcome.end, outcome.exit_code) == ("fault", 1)
    assert "the session was lost" in outcome.reason
    assert run.standstill_after(FAULT) < SOON
    assert run.clock.time < FAULT + 2.5
    check_log(run)


def test_server_comes_back() -> None:
    run = simulation("seconds=5")
    run.clock.at(FAULT, lambda: setattr(run.policy, "killed", True))
    run.clock.at(FAULT + 1, lambda: setattr(run.policy, "killed", False))
    outcome = run.run()
    assert (outcome.end, outcome.stops) == ("time", 1)
    assert run.standstill_after(FAULT, FAULT + 1) < SOON
    assert "moves again" in run.events()
    assert [line for line in fresh_ticks(run.log.lines) if line["time"] > FAULT + 1]


def stop_server(run: Simulation) -> None:
    run.clock.at(FAULT, lambda: setattr(run.policy, "killed", True))
    run.clock.at(FAULT + 0.5, lambda: setattr(run.policy, "killed", False))


def stop_camera(run: Simulation) -> None:
    run.clock.at(FAULT, lambda: setattr(run.robot, "stalled_at", FAULT))
    run.clock.at(FAULT + 0.5, lambda: setattr(run.robot, "stalled_at", None))


def push(run: Simulation) -> None:
    run.clock.at(FAULT, run.robot.reflex)


FAULTS, CLOSURES, STARTS = [stop_server, stop_camera, push], [0.0, 1.0], [0.0, 0.49, 0.6]
SPANNING = {
    (fault, closure, STARTS[(i + j) % 3]) for i, fault in enumerate(FAULTS) for j, closure in enumerate(CLOSURES)
}
"""By default every fault meets every closure, and each of those every start."""


@pytest.mark.parametrize(
    ("fault", "closure", "start"),
    [
        pytest.param(*case, marks=[] if case in SPANNING else [pytest.mark.slow])
        for case in product(FAULTS, CLOSURES, STARTS)
    ],
)
def test_the_hand_is_commanded_at_the_start_and_again_when_the_arm_moves_again(
    fault: Callable[[Simulation], None], closure: float, start: float
) -> None:
    run = simulation("seconds=5", camera=True)
    run.robot.grip(start)
    run.policy.spoil = lambda actions: np.concatenate([actions[:, :7], np.full((len(actions), 1), closure)], 1)
    fault(run)
    outcome = run.run()
    sent = [line for line in run.log.lines if line.get("closure_sent") is not None]
    assert [line["closure_sent"] for line in sent] == [closure] * 2
    assert sent[0] is fresh_ticks(run.log.lines)[0]
    assert "moves again" in sent[1]["event"]
    assert outcome.resumed == 1
    assert "moved again once" in "\n".join(outcome.lines())
    assert run.robot.read().closure == closure


def test_what_the_warm_up_takes_is_no_fault() -> None:
    run = simulation("seconds=3", "watchdog.give_up=2")
    run.clock.sleep_until(run.clock.now() + 40)  # a server that compiles
    assert run.run().end == "time"
    assert run.loop.outcome.fresh > 40


@pytest.mark.parametrize("scheduler", ["open_loop", "ensemble", "rtc"])
def test_server_hangs(scheduler: str) -> None:
    run = simulation("seconds=20", "watchdog.give_up=2", f"scheduler={scheduler}")
    run.clock.at(FAULT, lambda: setattr(run.policy, "latency", math.inf))
    outcome = run.run()
    assert (outcome.end, outcome.exit_code) == ("fault", 1)
    last = fresh_ticks(run.log.lines)[-1]["time"]
    assert last - FAULT < 17 * PERIOD  # what was planned before is carried out
    assert run.standstill_after(last) < SOON
    phases = [line["phase"] for line in run.log.lines if line["time"] > last]
    assert phases[:4] == ["hold", "hold", "stop", "stop"]
    check_log(run)


def test_answers_are_slow_and_of_uneven_age() -> None:
    run = simulation("seconds=10")
    generator = np.random.default_rng(0)
    for step in range(200):
        run.clock.at(100 + 0.05 * step, lambda: setattr(run.policy, "latency", generator.uniform(0.02, 0.7)))
    outcome = run.run()
    assert outcome.end == "time"
    assert outcome.stops >= 1  # 0.7 s are longer than eight actions
    check_log(run)
    # Consumption is counted: within a chunk indices rise by one, and a chunk starts where the old one was left.
    ticks = fresh_ticks(run.log.lines)
    consumed = {line["tick"]: count for count, line in enumerate(ticks)}
    for before, after in zip(ticks, ticks[1:], strict=False):
        if after["chunk"] == before["chunk"]:
            assert after["index"] == before["index"] + 1
        else:
            observed = after["time"] - after["action_age_ms"] / 1e3
            past = sum(1 for line in ticks if observed - 1e-6 <= line["time"] < after["time"] - 1e-6)
            assert after["index"] == past
    assert len(consumed) == len(ticks)


def test_slower_than_a_chunk_still_moves() -> None:
    """DROID's users see 0.5 to 1 s: the arm waits for each chunk, and carries out all of it."""
    run = simulation("seconds=12", "schedule.n_action_steps=8", horizon=8)
    run.policy.latency = 0.9
    outcome = run.run()
    assert outcome.end == "time"
    assert outcome.fresh > 50


def test_camera_stalls() -> None:
    run = simulation("seconds=20", "watchdog.give_up=1", camera=True)
    run.clock.at(FAULT, lambda: setattr(run.robot, "stalled_at", FAULT))
    outcome = run.run()
    assert (outcome.end, outcome.exit_code) == ("fault", 1)
    assert "camera wrist_left stalls" in run.events()
    assert run.standstill_after(FAULT) < SOON
    assert "wrist_left" in outcome.reason
    check_log(run)


def test_camera_comes_back() -> None:
    run = simulation("seconds=6", camera=True)
    run.clock.at(FAULT, lambda: setattr(run.robot, "stalled_at", FAULT))
    run.clock.at(FAULT + 1, lambda: setattr(run.robot, "stalled_at", None))
    assert run.run().end == "time"
    asked = run.policy.asked[-1]
    assert asked["observation/wrist_image_left"].shape == (90, 160, 3)
    assert "moves again" in run.events()


def test_reflex_is_recovered() -> None:
    run = simulation("seconds=5")
    run.clock.at(FAULT, run.robot.reflex)
    outcome = run.run()
    assert (outcome.end, outcome.recoveries) == ("time", 1)
    assert run.standstill_after(FAULT, FAULT + 0.25) < SOON
    assert "recovered" in run.events()
    assert fresh_ticks(run.log.lines)[-1]["time"] > FAULT + 1


def test_reflexes_without_end_end_the_run() -> None:
    run = simulation("seconds=20")
    for second in range(8):
        run.clock.at(FAULT + second, run.robot.reflex)
    outcome = run.run()
    assert (outcome.end, outcome.exit_code, outcome.recoveries) == ("fault", 1, 3)
    assert "reflex" in outcome.reason
    check_log(run)


def test_recovery_hangs() -> None:
    run = simulation("seconds=5")
    run.recover_seconds[0] = math.inf
    run.clock.at(FAULT, run.robot.reflex)
    outcome = run.run()
    assert outcome.ticks > 70  # the loop goes on
    assert not [line for line in fresh_ticks(run.log.lines) if line["time"] > FAULT + PERIOD]


def test_gripper_blocks() -> None:
    run = simulation("seconds=20", "gripper.timeout=1")
    run.grip_seconds[0] = math.inf
    run.policy.spoil = lambda actions: np.concatenate([actions[:, :7], np.ones((len(actions), 1))], 1)
    outcome = run.run()
    assert (outcome.end, outcome.exit_code) == ("fault", 1)
    assert "gripper: it has not taken its command for 1" in outcome.reason
    ended = next(line["time"] for line in run.log.lines if "gripper" in line["event"])
    assert run.standstill_after(ended) < SOON
    assert max(outcome.late) < 0.01
    check_log(run)


def test_wall_clock_jumps() -> None:
    run = simulation("seconds=4")
    run.clock.at(FAULT, lambda: setattr(run.clock, "wall_offset", 0.0))
    outcome = run.run()
    assert (outcome.end, outcome.stops) == ("time", 0)
    assert "the wall clock jumped by -1000000000.0 s" in run.events()


def test_process_is_suspended() -> None:
    run = simulation("seconds=6")
    run.clock.at(FAULT, lambda: setattr(run.clock, "time", FAULT + 2))
    outcome = run.run()
    assert outcome.missed >= 28
    assert "late" in run.events()
    assert "moves again" in run.events()
    assert outcome.end == "time"
    suspended = [line for line in run.log.lines if line["late_ms"] > 1000]
    assert [line["phase"] for line in suspended] == ["stop"]
    assert np.abs(suspended[0]["state"]["velocities"]).max() == 0  # its command expired


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9])
def test_nonsense_is_not_carried_out(value: float) -> None:
    run = simulation("seconds=20", "watchdog.give_up=2")
    run.clock.at(FAULT, lambda: setattr(run.policy, "spoil", lambda actions: np.full_like(actions, value)))
    outcome = run.run()
    assert (outcome.end, outcome.exit_code) == ("fault", 1)
    last = fresh_ticks(run.log.lines)[-1]["time"]
    assert last - FAULT < 9 * PERIOD
    assert run.standstill_after(last) < SOON
    assert "not finite" in outcome.reason if not math.isfinite(value) else "units" in run.events()


@pytest.mark.parametrize("spoiled", [1e9, 40.0, 0.3, 0.0])
def test_no_reason_changes_more_actions_than_there_were(spoiled: float) -> None:
    """Refused actions are not carried out, and two parts may give the same reason: shares once reached 1400%."""
    run = simulation("seconds=4", "watchdog.give_up=3", "gripper.binary=false")
    run.clock.at(FAULT - 1.5, lambda: setattr(run.policy, "spoil", lambda actions: actions + spoiled))
    outcome = run.run()
    asked = [line for line in run.log.lines if line["requested"] is not None]
    assert outcome.asked == len(asked) >= outcome.fresh
    assert all(count <= len(asked) for count in outcome.changed.values())
    assert all(len(set(line["reasons"])) == len(line["reasons"]) for line in run.log.lines)
    shares = re.findall(r"([\d.]+)%", "\n".join(outcome.lines()))
    assert bool(shares) == bool(spoiled)
    assert all(0 < float(share) <= 100 for share in shares)


@pytest.mark.parametrize(("pace", "tells"), [(0.18, True), (0.9, True), (1.0, False), (1.3, True), (None, False)])
def test_a_robot_whose_clock_is_not_ours_is_told(pace: float | None, *, tells: bool) -> None:
    run = simulation("seconds=6")
    if pace is not None:
        run.robot.robot_time = 7.0
        for tick in range(1500):
            run.clock.at(
                100 + 0.004 * tick, lambda tick=tick: setattr(run.robot, "robot_time", 7 + pace * 0.004 * tick)
            )
    outcome = run.run()
    words = f"the robot's clock runs at {pace:.2f} of real time" if pace else "of real time"
    assert (words in run.events()) is tells
    assert (words in "\n".join(outcome.lines())) is tells
    assert outcome.footer()["pace"] == (None if pace is None else pytest.approx(pace, rel=0.01))


def test_wrong_width() -> None:
    run = simulation("seconds=20", "watchdog.give_up=1")
    run.policy.spoil = lambda actions: actions[:, :7]
    outcome = run.run()
    assert outcome.exit_code == 1
    assert "shape (16, 7), not (H, 8)" in run.events()
    assert "shape (16, 7), not (H, 8)" in outcome.reason
    assert not fresh_ticks(run.log.lines)


def test_disk_full() -> None:
    run = simulation("seconds=20")
    run.clock.at(FAULT, lambda: setattr(run.log, "error", "ticks.jsonl: No space left on device"))
    outcome = run.run()
    assert (outcome.end, outcome.exit_code) == ("fault", 1)
    assert "No space left" in outcome.reason
    assert run.standstill_after(FAULT) < SOON


def test_estop_is_for_good() -> None:
    run = simulation("seconds=20")
    run.clock.at(FAULT, lambda: run.gate.latch("e-stop: called"))
    outcome = run.run()
    assert (outcome.end, outcome.exit_code, outcome.reason) == ("user", 130, "e-stop: called")
    assert run.standstill_after(FAULT) < PERIOD + 0.15
    assert not [line for line in fresh_ticks(run.log.lines) if line["time"] > FAULT]


def test_estop_from_another_thread_stops_at_once() -> None:
    run = simulation("seconds=20")
    run.clock.at(FAULT, lambda: run.gate.trip("e-stop: key ' '"))
    run.run()
    assert run.standstill_after(FAULT) < 0.1


def test_connection_to_the_robot_is_lost() -> None:
    from rlspec.errors import RobotError

    run = simulation("seconds=20")
    intact = run.robot.read

    def fail() -> None:
        raise RobotError("the controller does not answer")

    run.clock.robot = None
    run.clock.at(FAULT, lambda: setattr(run.loop.parts.robot, "read", fail))
    outcome = run.loop.run()
    assert (outcome.end, outcome.reason) == ("fault", "the controller does not answer")
    assert run.log.lines[-1]["state"] is None
    del intact


def test_somebody_stops_the_robot() -> None:
    run = simulation("seconds=20")
    run.clock.at(FAULT, run.robot.stop)
    outcome = run.run()
    assert (outcome.end, outcome.exit_code) == ("fault", 1)
    assert "somebody stopped the robot" in outcome.reason


def test_a_bug_stops_the_robot() -> None:
    run = simulation("seconds=20")
    run.clock.at(FAULT, lambda: setattr(run.policy, "spoil", lambda actions: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        run.run()
    assert run.gate.tripped
    run.clock.sleep_until(run.clock.time + 0.5)
    assert run.clock.trace[-1][1] == 0


def test_shadow_sends_nothing() -> None:
    run = simulation("seconds=2")
    object.__setattr__(run.loop.parts, "muted", True)
    run.gate._muted = True
    outcome = run.run()
    assert max(speed for _, speed in run.clock.trace) == 0
    assert outcome.fresh > 25
    assert "moves again" not in run.events()
    assert all(line["sent"] is None for line in run.log.lines)
    would = [line["would_send"] for line in run.log.lines if "would_send" in line]
    assert len(would) == outcome.fresh
    assert np.abs(would[0] - run.robot.read().joints).max() > 0


def test_slow_start() -> None:
    fast, slow = (simulation("seconds=2", *more, speed=1.2) for more in ((), ("slow_start.seconds=4",)))
    fast.run()
    slow.run()
    assert max(speed for _, speed in fast.clock.trace) > 1.1
    limit = slow.robot.limits.velocity[0]
    for time, speed in slow.clock.trace:
        assert speed <= limit * (0.2 + 0.8 * (time - 100) / 4) + 1e-6
    assert max(speed for time, speed in slow.clock.trace if time < 100.5) > 0.15 * limit
    assert slow.log.lines[5]["phase"] == "start"


@pytest.mark.parametrize("start", ["slow_start.seconds=0", "slow_start.seconds=3"])
def test_a_slow_start_does_not_go_where_a_start_may_not(start: str) -> None:
    """Its first part of the way is near, wherever the way leads."""
    run = simulation("seconds=6", start)
    run.policy.spoil = lambda actions: np.concatenate([np.full((len(actions), 1), 1.5), actions[:, 1:]], 1)
    outcome = run.run()
    assert (outcome.end, outcome.fresh) == ("fault", 0)
    assert "first_action_jump" in outcome.reason
    assert max(speed for _, speed in run.clock.trace) == 0


@pytest.mark.parametrize("moving", [True, False])
def test_the_user_stop_ends_the_run_and_is_never_recovered_from(moving: bool) -> None:
    run = simulation("seconds=3")
    read = run.robot.read
    when = FAULT if moving else 0.0  # it moves from 100 on

    def pressed() -> RobotState:
        state = read()
        return replace(state, mode="user_stopped", error="pressed") if run.clock.now() >= when else state

    run.robot.read = pressed  # type: ignore[method-assign]
    outcome = run.run()
    assert (outcome.end, outcome.recoveries) == ("user", 0)
    assert "user stop: pressed" in outcome.reason
    assert (outcome.fresh > 0) is moving
