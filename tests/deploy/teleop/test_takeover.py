"""What each kind of device asks for, look by look: without a loop, a robot or a clock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import HOME, forward, jacobian, rotation_matrix
from rlspec.deploy.arm.robot_limits import LIMITS
from rlspec.deploy.teleop.readings import DeviceReading
from rlspec.deploy.teleop.takeover import Operator, TakeoverSettings
from rlspec.errors import RobotError

HZ = 15.0
STATE = RobotState(0.0, HOME, np.zeros(7), 0.3, "moving")


class At:
    """A worker that is done at once."""

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except RobotError as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass


def operator(*, alone: bool = True, device: Any = None) -> Operator:
    return Operator(device, At(), LIMITS["fr3"], HZ, TakeoverSettings(), alone=alone)


def asked(human: Operator, reading: DeviceReading, held: np.ndarray = HOME, closure: float = 0.0) -> np.ndarray:
    human.hear(reading, 0.0)
    joints: np.ndarray = human.target(STATE, held, closure).joints
    return joints


def twist(**axes: float) -> DeviceReading:
    names = ("x", "y", "z", "rx", "ry", "rz")
    return DeviceReading(twist=np.array([axes.get(name, 0.0) for name in names]))


def tracked(x: float = 0.0, turn: tuple[float, float, float] = (0, 0, 0), *, holds: bool = True) -> DeviceReading:
    return DeviceReading(place=(np.array([x, 0.0, 0.0]), rotation_matrix(np.array(turn, float))), holds=holds)


def test_a_wish_of_the_hand_outlasts_the_press_until_the_arms_hand_has_taken_it() -> None:
    human = operator()
    human.hear(DeviceReading(twist=np.zeros(6), grip=1.0), 0.0)
    assert human.target(STATE, HOME, 0.0).closure == 1.0
    human.hear(twist(), 0.1)
    assert human.target(STATE, HOME, 0.0).closure == 1.0, "the hand still goes for 0.0: it was busy"
    human.let_go()
    assert human.target(STATE, HOME, 0.0).closure == 0.0, "another has driven in between"


def test_what_was_said_of_the_episode_stays_said() -> None:
    human = operator()
    for verdict in ("", "failure", "", "success"):
        human.hear(DeviceReading(verdict=verdict), 0.0)
    assert human.verdict == "failure"


def test_a_device_that_fails_is_let_go_of_at_once_and_one_that_hangs_after_a_moment() -> None:
    said: list[Any] = [DeviceReading(joints=HOME, holds=True), RobotError("the cable is out")]

    class Device:
        name = "script"

        def read(self) -> DeviceReading:
            if isinstance(said[0], RobotError):
                raise said[0]
            found: DeviceReading = said[0]
            return found

    failing = operator(alone=False, device=Device())
    failing.listen(0.0)
    failing.listen(0.1)
    assert failing.in_charge(0.15)
    said.pop(0)
    failing.listen(0.2)
    failing.listen(0.2)
    assert not failing.in_charge(0.2) and failing.error == "the cable is out"
    hanging = operator(alone=False)
    hanging.hear(DeviceReading(joints=HOME, holds=True), 0.0)
    assert hanging.in_charge(0.5) and not hanging.in_charge(0.51)


@pytest.mark.parametrize(
    ("reading", "takes"),
    [
        (DeviceReading(twist=np.zeros(6)), False),
        (DeviceReading(twist=np.zeros(6), grip=0.0), True),
        (twist(rz=0.1), True),
        (tracked(holds=True), True),
        (DeviceReading(place=tracked().place, grip=1.0, holds=False), False),
    ],
)
def test_who_takes_over_from_a_policy(reading: DeviceReading, *, takes: bool) -> None:
    """A key for the hand counts as a motion; what has a dead man's button takes over by it alone."""
    human = operator(alone=False)
    human.hear(reading, 0.0)
    assert human.in_charge(0.1) is takes


def test_a_phone_may_be_carried_back_while_its_button_is_not_held() -> None:
    human, here = operator(), forward(HOME)[0]
    moved = asked(human, tracked(0.0))
    for reading in (tracked(0.03), tracked(0.03, holds=False), tracked(0.0, holds=False)):
        moved = asked(human, reading, moved)
    np.testing.assert_allclose(forward(moved)[0] - here, [0.03, 0.0, 0.0], atol=1e-3)
    for reading in (tracked(0.0), tracked(0.03)):
        moved = asked(human, reading, moved)
    np.testing.assert_allclose(forward(moved)[0] - here, [0.06, 0.0, 0.0], atol=2e-3)


def test_a_phone_that_had_no_pose_yet_moves_nothing_when_it_gets_one() -> None:
    human = operator()
    still = asked(human, DeviceReading(holds=False))
    np.testing.assert_allclose(asked(human, tracked(0.4), still), HOME, atol=1e-9)


def test_a_tracked_device_that_jumps_pulls_the_hand_by_a_decimetre_at_most() -> None:
    human = operator()
    asked(human, tracked(0.0))
    way = forward(asked(human, tracked(-0.5)))[0] - forward(HOME)[0]
    assert np.linalg.norm(way) == pytest.approx(0.1, abs=0.01)


def test_a_tracked_device_turns_the_hand_by_as_much_as_it_is_turned_however_it_lay() -> None:
    human, lay = operator(), (0.4, -0.2, 0.3)
    np.testing.assert_allclose(asked(human, tracked(turn=lay)), HOME, atol=1e-9)
    more = rotation_matrix(np.array([0.0, 0.0, 0.1]))
    reading = DeviceReading(place=(np.zeros(3), more @ rotation_matrix(np.array(lay))), holds=True)
    np.testing.assert_allclose(forward(asked(human, reading))[1], more @ forward(HOME)[1], atol=1e-3)


def test_a_push_moves_and_a_turn_turns_at_the_speeds_that_were_set() -> None:
    human, (here, rotation) = operator(), forward(HOME)
    place, turned = forward(asked(human, twist(z=1.0, rz=1.0)))
    np.testing.assert_allclose(place - here, [0.0, 0.0, 0.15 / HZ], atol=1e-4)
    np.testing.assert_allclose(turned, rotation_matrix(np.array([0.0, 0.0, 0.8 / HZ])) @ rotation, atol=1e-3)


def test_the_hand_keeps_its_turn_while_it_is_only_pushed() -> None:
    """What the filter or a contact turned it by meanwhile is taken back; what was asked for is not."""
    human, aside = operator(), HOME + [0, 0, 0, 0, 0, 0, 0.05]
    asked(human, twist(x=1.0))
    np.testing.assert_allclose(forward(asked(human, twist(x=1.0), aside))[1], forward(HOME)[1], atol=1e-3)
    turned = asked(human, twist(rz=1.0))
    np.testing.assert_allclose(forward(asked(human, twist(x=1.0), HOME))[1], forward(turned)[1], atol=1e-3)


def test_the_elbow_goes_home_little_by_little_while_the_hand_is_pushed() -> None:
    aside = HOME + 0.3 * np.linalg.svd(jacobian(HOME))[2][-1]  # the redundant direction
    human, held = operator(), aside
    for step in range(60):
        after = asked(human, twist(z=1.0 if step % 2 else -1.0), held)
        assert np.abs(after - held).max() < 0.05
        held = after
    assert np.linalg.norm(held - HOME) < 0.7 * np.linalg.norm(aside - HOME)
