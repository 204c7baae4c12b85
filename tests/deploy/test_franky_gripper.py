"""The Franka hand's thread gives each order to the hand."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rlspec.deploy.robots.franky_gripper import FrankyGripperLane


class Finished:
    def wait(self, seconds: float) -> bool:
        return True


class Hand:
    """franky.Gripper, as far as the thread uses it; half open."""

    max_width = 0.08
    width = 0.04

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.news = threading.Condition()

    def move_async(self, width: float, speed: float) -> Finished:
        return self._take(f"move {width:.2f}")

    def grasp_async(self, *_: float) -> Finished:
        return self._take("grasp")

    def stop(self) -> None:
        self._take("stop")

    def _take(self, order: str) -> Finished:
        with self.news:
            self.orders.append(order)
            self.news.notify_all()
        return Finished()

    def wait_for(self, true: Callable[[list[str]], bool]) -> None:
        with self.news:
            assert self.news.wait_for(lambda: true(self.orders), 10), self.orders


@pytest.mark.parametrize(("closure", "order"), [(0.0, "move 0.08"), (0.5, "move 0.04"), (1.0, "grasp")])
def test_the_same_order_again_is_given_again(closure: float, order: str) -> None:
    hand = Hand()
    lane = FrankyGripperLane(hand)
    lane.grip(closure)
    hand.wait_for(lambda orders: len(orders) == 1)
    lane.grip(closure)
    hand.wait_for(lambda orders: len(orders) == 2)
    lane.close()
    assert hand.orders == [order] * 2
