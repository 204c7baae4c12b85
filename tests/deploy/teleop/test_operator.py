"""A human beside a policy, and alone: who is in charge when, and what then moves. In simulated time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from simulated import PERIOD, SimClock, Simulation, simulation

from rlspec.deploy.arm.kinematics import HOME, forward
from rlspec.deploy.teleop.readings import LEADER, DeviceReading, understand
from rlspec.errors import RobotError

START = 100.0  # when simulated time begins
LEAD = np.array([0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])


class Device:
    """Says what a script says, by the seconds since the start."""

    name = "script"
    clock: SimClock

    def __init__(self, script: Callable[[float], dict[str, Any]], events: Callable[[float], dict[str, bool]]) -> None:
        self._script, self._events = script, events

    def read(self) -> DeviceReading:
        now = self.clock.now() - START
        return understand(self._script(now), self._events(now))

    def close(self) -> None:
        pass


def run(
    script: Callable[[float], dict[str, Any]],
    *arguments: str,
    events: Callable[[float], dict[str, bool]] = lambda _: {},
    alone: bool = False,
) -> Simulation:
    made = simulation("teleop=script", "seconds=6", *arguments, device=Device(script, events))
    operator = made.loop.parts.operator
    assert operator is not None
    operator.alone = alone
    made.run()
    return made


def pushing(*spans: tuple[float, float], axis: str = "delta_z", **more: float) -> Callable[[float], dict[str, Any]]:
    def script(now: float) -> dict[str, Any]:
        pressed = any(begin <= now < end for begin, end in spans)
        return {"delta_x": 0.0, "delta_y": 0.0, "delta_z": 0.0, "gripper": 1, axis: float(pressed), **more}

    return script


def leader(joints: Callable[[float], np.ndarray], closure: Callable[[float], float] = lambda _: 0.0) -> Any:
    return lambda now: dict(zip(LEADER, [*joints(now), closure(now)], strict=True))


def targets(made: Simulation, begin: float, end: float) -> np.ndarray:
    lines = [line for line in made.log.lines if begin <= line["time"] - START < end and line["sent"] is not None]
    return np.array([line["sent"] for line in lines])


def taken(made: Simulation) -> list[float]:
    return [round(line["time"] - START, 2) for line in made.log.lines if line["intervention"]]


def test_whoever_moves_the_device_takes_over_and_the_policy_goes_on_from_where_the_arm_then_is() -> None:
    made = run(pushing((2.0, 3.0)))
    outcome = made.loop.outcome
    assert (outcome.takeovers, outcome.end) == (1, "time")
    assert "a human takes over" in made.events() and "the human hands back" in made.events()
    marked = taken(made)
    assert 2.0 <= marked[0] <= 2.0 + 2 * PERIOD and 3.4 <= marked[-1] <= 3.6  # handed back half a second after
    assert len(marked) == outcome.taken
    rising = forward(targets(made, 2.2, 3.0))[0]
    np.testing.assert_allclose(np.diff(rising[:, 2]), 0.15 * PERIOD, atol=2e-3)
    assert np.abs(np.diff(rising[:, :2], axis=0)).max() < 2e-3, "straight up"
    after = targets(made, 4.0, 6.0)
    np.testing.assert_allclose(np.diff(after[:, 0]), 0.4 * PERIOD, atol=1e-6)  # the policy's sweep
    assert np.abs(np.diff(targets(made, 0.0, 6.0), axis=0)).max() < 0.05, "no jump at either end"


def test_what_a_human_did_is_logged_as_asked_for_and_not_as_the_policys() -> None:
    made = run(pushing((2.0, 3.0)))
    lines = [line for line in made.log.lines if line["intervention"] and line["sent"] is not None]
    assert lines and all(line["requested"] is None and line["chunk"] is None for line in lines)
    assert all(line["target"] is not None for line in lines)


def test_the_policy_is_not_asked_while_a_human_drives_and_what_it_answers_then_is_not_carried_out() -> None:
    made = simulation("teleop=script", "seconds=4", device=Device(pushing((1.0, 3.0)), lambda _: {}))
    times: list[float] = []
    plain = made.policy.infer

    def infer(observation: Any) -> Any:
        times.append(made.clock.now() - START)
        return plain(observation)

    made.policy.infer = infer  # type: ignore[method-assign]
    made.run()
    assert not [time for time in times if 1.1 < time < 3.4]
    assert [time for time in times if time > 3.5]


def test_a_policy_that_is_lost_does_not_stop_the_human() -> None:
    made = simulation(
        "teleop=script", "seconds=4", "watchdog.give_up=9", device=Device(pushing((1.0, 3.5)), lambda _: {})
    )
    made.clock.at(START + 2.0, lambda: setattr(made.policy, "killed", True))
    made.run()
    moving = forward(targets(made, 2.2, 3.4))[0]
    assert (np.diff(moving[:, 2]) > 0.005).all()


def test_a_leader_arm_moves_the_arm_by_as_much_as_it_is_moved_wherever_it_lies() -> None:
    def joints(now: float) -> np.ndarray:
        return HOME + 0.5 + LEAD * np.clip(now - 1.0, 0.0, 1.0)

    made = run(leader(joints), alone=True)
    assert np.abs(targets(made, 0.0, 1.0) - HOME).max() < 1e-9, "it lies half a radian off, and nothing jumps"
    np.testing.assert_allclose(targets(made, 5.0, 6.0)[-1], HOME + LEAD, atol=1e-6)


def test_a_leader_arm_that_lies_as_the_arm_does_is_followed_as_it_lies() -> None:
    made = run(leader(lambda _: HOME + 0.05), alone=True)
    np.testing.assert_allclose(targets(made, 3.0, 6.0)[-1], HOME + 0.05, atol=1e-6)


def test_a_leaders_open_hand_does_not_drop_what_the_arm_holds() -> None:
    """At the takeover it lies open; only when it was squeezed and opened again the arm's hand opens."""
    squeezed = lambda now: 1.0 if 4.0 < now < 5.0 else 0.0  # noqa: E731
    script = leader(lambda now: HOME + 0.5 + LEAD * np.clip(now - 1.0, 0.0, 5.0), squeezed)
    made = simulation("teleop=script", "seconds=6", device=Device(script, lambda _: {}))
    made.policy.spoil = lambda actions: np.concatenate([actions[:, :7], np.ones((len(actions), 1))], axis=1)
    made.run()
    orders = [
        (line["time"] - START, line["closure_sent"]) for line in made.log.lines if line["closure_sent"] is not None
    ]
    assert orders[0][1] == 1.0 and orders[0][0] < 1.0
    assert [closure for time, closure in orders if 1.0 < time < 4.9] == []
    assert [closure for time, closure in orders if time > 5.0] == [0.0]


def test_a_key_closes_the_hand_and_the_next_one_opens_it() -> None:
    presses = {1: 0, 3: 2}
    script = lambda now: {"delta_x": 0.0, "delta_y": 0.0, "delta_z": 0.0, "gripper": presses.get(int(now), 1)}  # noqa: E731
    made = run(script, alone=True)
    assert [line["closure_sent"] for line in made.log.lines if line["closure_sent"] is not None][-2:] == [1.0, 0.0]


def test_who_drives_alone_finds_the_arm_where_they_left_it() -> None:
    made = run(pushing((1.0, 2.0)), alone=True)
    still = targets(made, 2.5, 6.0)
    assert np.ptp(still, axis=0).max() == 0.0
    assert made.loop.outcome.takeovers == 0 and not taken(made), "nobody was there to take over from"


@pytest.mark.parametrize(("said", "end"), [("success", "success"), ("terminate_episode", "failure")])
def test_a_button_ends_the_run(said: str, end: str) -> None:
    made = run(pushing(), alone=True, events=lambda now: {said: now > 1.0})
    assert made.loop.outcome.end == end and 1.0 <= made.log.lines[-1]["time"] - START < 1.5


def test_a_device_that_falls_silent_stops_who_drives_alone_and_hands_back_beside_a_policy() -> None:
    def broken(now: float) -> dict[str, Any]:
        if now > 2.0:
            raise RobotError("teleop=script: the cable is out")
        return pushing((0.0, 9.0))(now)

    made = run(broken, alone=True)
    assert (made.loop.outcome.end, made.loop.outcome.reason) == (
        "fault",
        "teleop=script: the cable is out",
    )
    assert 4.0 <= made.log.lines[-1]["time"] - START < 5.5
    beside = run(broken)
    assert beside.loop.outcome.end == "time" and max(taken(beside)) < 2.7
    np.testing.assert_allclose(np.diff(targets(beside, 4.0, 6.0)[:, 0]), 0.4 * PERIOD, atol=1e-6)


def test_a_device_that_hangs_does_not_hold_up_a_tick() -> None:
    made = simulation("teleop=script", "seconds=6", device=Device(pushing((0.0, 9.0)), lambda _: {}))
    operator = made.loop.parts.operator
    assert operator is not None
    operator.alone = True

    class Hanging:
        def submit(self, work: Callable[[], Any]) -> Any:
            return self

        def done(self) -> bool:
            return False

    operator._worker = Hanging()  # type: ignore[assignment]
    made.run()
    assert (made.loop.outcome.reason, made.loop.outcome.missed) == ("teleop=script: it does not answer", 0)


def test_hostile_devices_move_nothing_beyond_what_the_filter_allows() -> None:
    """Whatever a device says, steps are the filter's: here 0.2 rad a tick, and the model's velocities."""
    random = np.random.default_rng(0)
    made = run(leader(lambda _: HOME + random.normal(0.0, 2.0, 7)), alone=True)
    sent = targets(made, 0.0, 6.0)
    assert len(sent) > 20
    assert (np.abs(np.diff(sent, axis=0)) <= np.minimum(0.2, made.robot.limits.velocity * PERIOD) + 1e-9).all()
