"""Robotiq's hand against a simulated slave that speaks Modbus RTU on a pseudo-terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from robotiq_hand import RobotiqHand

from rlspec.deploy.arm.gripper import GripperDrive, GripperLane, GripperSettings
from rlspec.deploy.robots.robotiq import RobotiqBus, RobotiqGripperLane, RobotiqStatus, activate
from rlspec.errors import RobotError


@pytest.fixture
def hand() -> Iterator[RobotiqHand]:
    made = RobotiqHand()
    yield made
    made.unplug()


@pytest.fixture
def lane(hand: RobotiqHand) -> Iterator[RobotiqGripperLane]:
    made = RobotiqGripperLane(RobotiqBus(hand.port), stroke=(3, 228))
    yield made
    made.close()


def until(true: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(4000):
        if true():
            return
        waiting.wait(0.005)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize(
    ("words", "moving", "held", "position", "problem"),
    [  # the examples of the manual's chapter on Modbus RTU: ready and open; moving; holding; at rest; reset; faults
        ((0xF900, 0x0000, 0x0300), False, False, 3, ""),
        ((0x3900, 0x00FF, 0x0E0A), True, False, 14, ""),
        ((0xB900, 0x00FF, 0xBD00), False, True, 189, ""),
        ((0x7900, 0x0000, 0x4000), False, True, 64, ""),
        ((0x0000, 0x0000, 0x0000), False, False, 0, "lost its activation"),
        ((0x1100, 0x0000, 0x0000), False, False, 0, "lost its activation"),
        ((0xF900, 0x0900, 0x0300), False, False, 3, ""),  # nobody had spoken to it for a second: no fault
        ((0xF900, 0x0A00, 0x0300), False, False, 3, "supply is below"),
        ((0xF900, 0x0200, 0x0300), False, False, 3, "fault 0x02"),
    ],
)
def test_the_registers_mean_what_the_manual_says(
    words: tuple[int, ...], moving: bool, held: bool, position: int, problem: str
) -> None:
    status = RobotiqStatus.of(words)
    assert (status.moving, status.object, status.position) == (moving, held, position)
    assert problem in status.problem and bool(problem) == bool(status.problem)


def test_a_hand_that_is_ready_is_not_activated_again(hand: RobotiqHand) -> None:
    bus = RobotiqBus(hand.port)
    assert activate(bus).ready
    assert activate(bus).ready
    assert hand.activations == 1
    bus.close()


def test_after_an_emergency_stop_the_activation_is_withdrawn_first(hand: RobotiqHand) -> None:
    bus = RobotiqBus(hand.port)
    activate(bus)
    hand.fault = 0x05  # until rACT is 0: setting it again does nothing
    assert not activate(bus).problem
    assert hand.activations == 2
    bus.close()


def test_a_hand_that_does_not_become_ready_is_named(hand: RobotiqHand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand, "_advance", lambda: None)
    with pytest.raises(RobotError, match="is not ready: it has lost its activation"):
        activate(RobotiqBus(hand.port), patience=0.2)


@pytest.mark.parametrize(("closure", "position"), [(0.0, 0), (0.2, 48), (0.5, 116), (1.0, 255)])
def test_closures_are_positions_on_the_stroke(
    lane: RobotiqGripperLane, hand: RobotiqHand, closure: float, position: int
) -> None:
    lane.grip(closure)
    hand.wait_for(lambda hand: bool(hand.orders))
    assert hand.orders == [(position, 107, 0)]  # at DROID's speed and force
    until(lambda: abs(lane.closure - closure) < 1 / 225)


def test_the_stroke_is_measured_with_an_empty_hand(hand: RobotiqHand) -> None:
    hand.least, hand.most = 9, 221
    lane = RobotiqGripperLane(RobotiqBus(hand.port), stroke=None)
    assert lane.stroke == (9, 221)
    lane.grip(1.0)
    until(lambda: lane.closure == 1.0)
    lane.close()


def test_a_stroke_is_not_measured_around_an_object(hand: RobotiqHand) -> None:
    hand.block = 60
    with pytest.raises(RobotError, match=r"closes from 3 to 60 of 255 only: empty it, or give robot.gripper_stroke"):
        RobotiqGripperLane(RobotiqBus(hand.port), stroke=None)


def test_speed_and_force_are_shares_of_a_byte(hand: RobotiqHand) -> None:
    lane = RobotiqGripperLane(RobotiqBus(hand.port), speed=1.0, force=0.5)
    lane.grip(1.0)
    hand.wait_for(lambda hand: hand.orders == [(255, 255, 128)])
    lane.close()


def test_what_it_holds_is_seen_and_it_stays_half_closed(lane: RobotiqGripperLane, hand: RobotiqHand) -> None:
    hand.block = 116
    lane.grip(1.0)
    until(lambda: lane.status.object)
    assert lane.closure == pytest.approx((116 - 3) / 225)
    assert not lane.error


def test_the_same_order_again_is_given_again(lane: RobotiqGripperLane, hand: RobotiqHand) -> None:
    for count in (1, 2):
        lane.grip(1.0)
        hand.wait_for(lambda hand, count=count: len(hand.orders) == count)


def test_an_order_that_was_dropped_is_never_sent(lane: RobotiqGripperLane, hand: RobotiqHand) -> None:
    with hand.news:  # the hand does not answer meanwhile, so the thread cannot have sent it
        lane.grip(1.0)
        lane.drop()
    lane.grip(0.5)
    hand.wait_for(lambda hand: bool(hand.orders))
    assert hand.orders[-1][0] == 116


@pytest.mark.parametrize("start", [0.0, 0.49, 0.6])
@pytest.mark.parametrize("wanted", [0.0, 1.0])
def test_the_first_decision_reaches_the_hand_wherever_it_stands_and_again_after_a_stop(
    lane: RobotiqGripperLane, hand: RobotiqHand, start: float, wanted: float
) -> None:
    hand.position = round(3 + 225 * start)
    decisions = GripperLane(GripperSettings())

    class Now:
        def submit(self, work: Callable[[], object]) -> object:
            work()
            return type("Done", (), {"done": lambda _: True, "result": lambda _: None})()

    drive = GripperDrive(decisions, lane.grip, Now())  # type: ignore[arg-type]
    assert drive.drive(wanted, 1.0) == wanted
    hand.wait_for(lambda hand: len(hand.orders) == 1)
    assert drive.drive(wanted, 2.0) is None
    decisions.restart()  # what the loop does after each stop
    assert drive.drive(wanted, 3.0) == wanted
    hand.wait_for(lambda hand: len(hand.orders) == 2)
    assert {order[0] for order in hand.orders} == {255 * int(wanted)}


def test_one_lost_answer_is_no_lost_cable(lane: RobotiqGripperLane, hand: RobotiqHand) -> None:
    before = hand.orders.copy()
    hand.mute = 1
    lane.grip(1.0)
    hand.wait_for(lambda hand: len(hand.orders) > len(before))
    until(lambda: lane.closure == 1.0)
    assert not lane.error


def test_a_lost_cable_is_an_error_of_the_hand_with_the_remedy(lane: RobotiqGripperLane, hand: RobotiqHand) -> None:
    hand.unplug()
    until(lambda: bool(lane.error))
    assert lane.error.startswith(f"gripper: the Robotiq hand at {hand.port} does not answer") or "cannot be opened" in (
        lane.error
    )
    assert "check its cable" in lane.error


def test_a_supply_that_was_interrupted_is_no_silence(lane: RobotiqGripperLane, hand: RobotiqHand) -> None:
    hand.lose_power()
    until(lambda: bool(lane.error))
    assert "lost its activation: its supply was interrupted" in lane.error
    assert hand.activations == 1  # activating opens the hand, which may hold something


def test_a_port_that_is_not_there_is_one_line() -> None:
    with pytest.raises(RobotError, match="no Robotiq hand at /dev/ttyNone: the port cannot be opened; check its cable"):
        RobotiqBus("/dev/ttyNone").read()


def test_read_only_neither_activates_nor_moves(hand: RobotiqHand) -> None:
    lane = RobotiqGripperLane(RobotiqBus(hand.port), stroke=None, read_only=True)
    until(lambda: bool(lane.error))
    assert not hand.orders and not hand.activations
    lane.close()


def test_a_hand_whose_driver_fails_in_an_unknown_way_says_so_and_goes_on(
    lane: RobotiqGripperLane, hand: RobotiqHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that nobody had foreseen once ended the hand's thread in silence."""
    read = lane._bus.read
    monkeypatch.setattr(lane._bus, "read", lambda: {}["status"])
    until(lambda: lane.error == "gripper: KeyError: 'status'")
    monkeypatch.setattr(lane._bus, "read", read)
    lane.grip(1.0)
    hand.wait_for(lambda hand: bool(hand.orders) and hand.orders[-1][0] == 255)
    until(lambda: lane.error == "")
