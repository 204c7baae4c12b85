"""Which action of which chunk: counted by hand, tick by tick."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rlspec.deploy.policy.schedule import (
    SCHEDULERS,
    Chunk,
    Ensemble,
    OpenLoop,
    RealTimeChunking,
    Request,
    Scheduler,
    Timing,
)

PERIOD = 0.1


def timing(**more: Any) -> Timing:
    return Timing(**{"period": PERIOD, "n_action_steps": 4, **more})


def chunk(request: Request, start: float = 0.0, horizon: int = 8) -> Chunk:
    """Actions (start + i, start + i, gripper i)."""
    rows = start + np.arange(horizon, dtype=float)
    return Chunk(request, np.stack([rows, rows, np.arange(horizon)], 1))


def play(scheduler: Scheduler, ticks: int, latency: int) -> list[tuple[int, int, int] | None]:
    """(tick, chunk, index) of every tick, with answers after `latency` ticks."""
    waiting: list[tuple[int, Request]] = []
    found: list[tuple[int, int, int] | None] = []
    for tick in range(ticks):
        now = tick * PERIOD
        for due, request in [item for item in waiting if item[0] <= tick]:
            assert scheduler.receive(chunk(request), now) == ""
            waiting.remove((due, request))
        if scheduler.wants():
            waiting.append((tick + latency, scheduler.request(now)))
        step = scheduler.next(now)
        found.append(None if step is None else (tick, step.chunk, step.index))
    return found


def test_open_loop_without_latency_takes_the_first_actions_of_each_chunk() -> None:
    found = play(OpenLoop(timing(margin=0), 3), 9, latency=1)
    # One tick without an action at first; later chunks were asked for one tick ahead, so they start at their second.
    assert found == [None, *((1 + i, 0, i) for i in range(4)), *((5 + i, 1, 1 + i) for i in range(4))]


def test_open_loop_never_starves_once_it_knows_the_latency() -> None:
    for latency in (1, 2, 3):
        found = play(OpenLoop(timing(), 3), 40, latency)
        assert None not in found[latency + 8 :]


def test_open_loop_skips_what_was_carried_out_while_the_policy_thought() -> None:
    found = play(OpenLoop(timing(margin=0), 3), 30, latency=3)
    starts = [
        after for before, after in zip(found, found[1:], strict=False) if after and before and after[1] != before[1]
    ]
    assert {index for _, _, index in starts} == {3}


def test_a_robot_that_stood_starts_at_the_first_action() -> None:
    """lerobot#4454: actions were discarded by latency although the robot had not moved on."""
    found = play(OpenLoop(timing(overlap=False), 3), 14, latency=3)
    assert found == [None] * 3 + [(3, 0, 0), (4, 0, 1), (5, 0, 2), (6, 0, 3)] + [None] * 3 + [
        (10, 1, 0),
        (11, 1, 1),
        (12, 1, 2),
        (13, 1, 3),
    ]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_bad_answers_are_dropped(name: str) -> None:
    scheduler = SCHEDULERS[name](timing(), 3)
    first, second = scheduler.request(0.0), scheduler.request(0.1)
    assert scheduler.receive(chunk(second), 0.2) == ""
    assert "out of order, after 1" in scheduler.receive(chunk(first), 0.2)
    third = scheduler.request(0.3)
    assert "stale, 2.00 s old" in scheduler.receive(chunk(third), 2.3)
    nan = Chunk(scheduler.request(3.0), np.full((8, 3), np.nan))
    assert "not finite" in scheduler.receive(nan, 3.1)
    assert "shape (8, 2)" in scheduler.receive(Chunk(scheduler.request(3.0), np.zeros((8, 2))), 3.1)
    assert "shape (0, 3)" in scheduler.receive(Chunk(scheduler.request(3.0), np.zeros((0, 3))), 3.1)
    request = scheduler.request(3.0)
    scheduler.clear()
    assert "the robot stopped since" in scheduler.receive(chunk(request), 3.1)
    assert scheduler.next(3.1) is None
    assert scheduler.wants()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_answer_whose_actions_are_past_is_dropped(name: str) -> None:
    scheduler = SCHEDULERS[name](timing(n_action_steps=8), 3)
    scheduler.receive(chunk(scheduler.request(0.0), horizon=8), 0.0)
    late = scheduler.request(0.0)
    for tick in range(4):
        assert scheduler.next(tick * PERIOD) is not None
    assert "its 4 actions are past" in scheduler.receive(chunk(late, horizon=4), 0.4)


def test_ensemble_has_acts_weights_and_the_newest_gripper() -> None:
    scheduler = Ensemble(timing(decay=0.5), 3)
    oldest = chunk(scheduler.request(0.0), start=10.0)
    scheduler.receive(oldest, 0.0)
    scheduler.next(0.0)
    scheduler.receive(chunk(scheduler.request(0.1), start=20.0), 0.1)
    scheduler.next(0.1)
    scheduler.receive(chunk(scheduler.request(0.2), start=30.0), 0.2)
    step = scheduler.next(0.2)
    assert step is not None
    # ACT: w_i = exp(-m i), i = 0 for the oldest prediction of this tick.
    weights = [1.0, math.exp(-0.5), math.exp(-1.0)]
    expected = (12.0 * weights[0] + 21.0 * weights[1] + 30.0 * weights[2]) / sum(weights)
    assert step.action[:2] == pytest.approx([expected, expected])
    assert step.action[2] == 0.0  # the newest chunk's first action
    assert (step.chunk, step.index) == (2, 0)


def test_angles_are_averaged_the_short_way() -> None:
    scheduler = Ensemble(timing(decay=0.0), 2, angles=(0,))
    for angle in (math.pi - 0.1, -math.pi + 0.1):
        request = scheduler.request(0.0)
        scheduler.receive(Chunk(request, np.array([[angle, 0.0]])), 0.0)
    step = scheduler.next(0.0)
    assert step is not None
    assert abs(step.action[0]) == pytest.approx(math.pi)


def test_real_time_chunking_switches_at_once_and_fades() -> None:
    scheduler = RealTimeChunking(timing(blend=3), 3)
    scheduler.receive(chunk(scheduler.request(0.0)), 0.0)
    for tick in range(2):
        scheduler.next(tick * PERIOD)
    request = scheduler.request(0.2)
    assert request.prefix[:, 0].tolist() == [2, 3, 4, 5, 6, 7]
    scheduler.next(0.2)
    scheduler.next(0.3)
    scheduler.receive(chunk(request, start=100.0), 0.4)
    found = [scheduler.next(0.4 + i * PERIOD) for i in range(5)]
    assert all(step is not None for step in found)
    # Two actions were carried out since: index 2 on. Old plan 4, 5, 6; new plan 102, 103, 104; shares 1/4, 2/4, 3/4.
    values = [step.action[0] for step in found if step]
    assert values == pytest.approx([4 + 98 / 4, 5 + 98 / 2, 6 + 98 * 3 / 4, 105, 106])
    assert [step.action[2] for step in found if step] == [2, 3, 4, 5, 6]  # the gripper does not fade
    assert [step.index for step in found if step] == [2, 3, 4, 5, 6]


def test_real_time_chunking_runs_without_gaps() -> None:
    for latency in (1, 2, 3):
        found = play(RealTimeChunking(timing(), 3), 60, latency)
        assert None not in found[latency:], latency


def test_a_chunk_that_waited_too_long_is_not_begun() -> None:
    scheduler = OpenLoop(timing(stale=0.5, n_action_steps=8), 3)
    scheduler.receive(chunk(scheduler.request(0.0), horizon=8), 0.0)
    scheduler.next(0.0)
    scheduler.receive(chunk(scheduler.request(0.0), start=50.0), 0.1)
    for tick in range(1, 8):
        scheduler.next(tick * PERIOD)
    assert scheduler.next(0.8) is None


def test_latency_is_the_slowest_of_the_last() -> None:
    scheduler = OpenLoop(timing(), 3)
    scheduler.expect(0.25)
    assert scheduler.delay() == 3
    for _ in range(16):
        scheduler.receive(chunk(scheduler.request(0.0)), 0.1)
    assert scheduler.delay() == 1
