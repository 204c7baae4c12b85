"""The gripper's lane: hysteresis, patience, and a hand that does not answer."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Any

import pytest

from rlspec.deploy.arm.gripper import GripperDrive, GripperLane, GripperSettings
from rlspec.errors import RobotError


def decisions(wanted: list[float], settings: GripperSettings, period: float = 0.1) -> list[float | None]:
    lane = GripperLane(settings)
    return [lane.decide(value, index * period) for index, value in enumerate(wanted)]


@pytest.mark.parametrize("wanted", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("binary", [True, False])
def test_the_first_decision_is_a_command_wherever_the_hand_stands(wanted: float, *, binary: bool) -> None:
    lane = GripperLane(GripperSettings(binary=binary))
    assert lane.decide(wanted, 0.0) == (round(wanted) if binary else wanted)
    assert lane.decide(wanted, 5.0) is None


@pytest.mark.parametrize("wanted", [0.0, 1.0])
def test_the_first_decision_after_a_restart_is_a_command_at_once(wanted: float) -> None:
    lane = GripperLane(GripperSettings())
    assert lane.decide(wanted, 0.0) == wanted
    assert lane.decide(wanted, 0.1) is None
    lane.restart()
    assert lane.decide(wanted, 0.2) == wanted


def test_between_the_thresholds_a_restarted_hand_gets_its_last_command_again() -> None:
    lane = GripperLane(GripperSettings())
    lane.decide(1.0, 0.0)
    lane.restart()
    assert lane.decide(0.5, 0.1) == 1.0


def test_noise_about_the_middle_moves_nothing() -> None:
    assert decisions([0.45, 0.55, 0.41, 0.59] * 5, GripperSettings()) == [None] * 20


def test_opens_and_closes_fully() -> None:
    settings = GripperSettings(dwell=0.0)
    assert decisions([0.3, 0.7, 0.5, 0.7, 0.3, 0.5], settings) == [0.0, 1.0, None, None, 0.0, None]


def test_keeps_its_mind_for_a_while() -> None:
    found = decisions([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], GripperSettings(dwell=0.35))
    assert found == [1.0, None, None, None, 0.0, None]


def test_closure_itself_with_a_rate() -> None:
    settings = GripperSettings(binary=False, interval=0.25, deadband=0.05)
    found = decisions([0.04, 0.1, 0.2, 0.3, 0.4, 1.7], settings)
    assert found == [0.04, None, None, 0.3, None, None]
    assert decisions([0.0, 0.0, 0.0, 0.0, 7.0], settings)[-1] == 1.0


class Hand:
    """Answers when told to."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.job: Future[Any] = Future()

    def submit(self, work: Any) -> Future[Any]:
        work()
        self.job = Future()
        return self.job

    def close(self) -> None:
        pass


def test_a_busy_hand_gets_no_second_command_and_then_the_newest() -> None:
    hand = Hand()
    lane = GripperLane(GripperSettings(dwell=0.0, timeout=1.0))
    drive = GripperDrive(lane, hand.asked.append, hand)
    assert drive.drive(1.0, 0.0) == 1.0
    assert drive.drive(0.0, 0.5) is None
    assert drive.problem(0.9) == ""
    assert "not taken its command for 1.1 s" in drive.problem(1.1)
    hand.job.set_result(None)
    assert drive.problem(1.2) == ""
    assert drive.drive(0.0, 1.3) == 0.0
    assert hand.asked == [1.0, 0.0]
    hand.job.set_exception(RobotError("no hand"))
    assert drive.problem(1.4) == "gripper: no hand"


def test_a_hand_that_is_wrong_for_long_ends_the_run_though_nothing_is_asked_of_it() -> None:
    wrong = [""]
    drive = GripperDrive(GripperLane(GripperSettings(timeout=1.0)), lambda _: None, Hand(), lambda: wrong[0])
    assert drive.problem(0.0) == ""
    wrong[0] = "gripper: its cable"
    assert drive.problem(0.1) == drive.problem(1.0) == ""
    wrong[0] = ""
    assert drive.problem(1.05) == ""
    wrong[0] = "gripper: its cable"
    assert drive.problem(1.2) == drive.problem(2.1) == ""
    assert drive.problem(2.3) == "gripper: its cable"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("wanted", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_command(wanted: float, *, binary: bool) -> None:
    lane = GripperLane(GripperSettings(binary=binary, dwell=0.0, interval=0.0))
    assert lane.decide(1.0, 0.0) == 1.0
    assert lane.decide(wanted, 1.0) is None
    assert lane.decide(0.0, 2.0) == 0.0
