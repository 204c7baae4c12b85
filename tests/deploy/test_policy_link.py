"""The doctor's words on a link: figures of answers, and chunks that outlast them, by running the scheduler itself."""

from __future__ import annotations

import numpy as np
import pytest

from rlspec.deploy.arm.interfaces import Reply
from rlspec.deploy.link import LinkFigures, chunk_verdict, clock_words, lead
from rlspec.deploy.policy.schedule import Chunk, OpenLoop, Timing


def test_figures_of_answers() -> None:
    times, own = [40.0, 44.0, 40.0, 60.0], [30.0, 30.0, None, 50.0]
    replies = [Reply(np.zeros((1, 8)), server, time) for time, server in zip(times, own, strict=True)]
    figures = LinkFigures.of(replies)
    assert (figures.middle, figures.slowest, figures.jitter, figures.transport) == (42.0, 60.0, 4.0, 10.0)
    assert "an answer takes 42 ms" in figures.words() and "10.0 ms" in figures.words()
    assert LinkFigures.of([Reply(np.zeros((1, 8)), None, 5.0)] * 2).transport is None


def waits(latency_s: float, hz: float, horizon: int, steps: int) -> int:
    """Ticks without an action, after the first chunk, of 400: by the scheduler that deployments use."""
    scheduler = OpenLoop(Timing(1 / hz, steps), 8)
    scheduler.expect(latency_s)
    pending: tuple[float, Chunk] | None = None
    empty, begun = 0, False
    for tick in range(400):
        now = tick / hz
        if pending is not None and pending[0] <= now + 1e-9:
            scheduler.receive(pending[1], now)
            pending = None
        if scheduler.wants():
            pending = (now + latency_s, Chunk(scheduler.request(now), np.zeros((horizon, 8))))
        step = scheduler.next(now)
        begun = begun or step is not None
        empty += begun and step is None
    return empty


@pytest.mark.parametrize("hz", [10.0, 15.0, 20.0])
@pytest.mark.parametrize("latency_ms", [20.0, 90.0, 180.0, 400.0])
def test_chunks_that_the_doctor_calls_long_enough_never_leave_the_arm_without_an_action(
    latency_ms: float, hz: float
) -> None:
    ahead = lead(latency_ms, hz)
    good, words = chunk_verdict(latency_ms, hz, 2 * ahead, ahead)
    assert good and f"chunks of {2 * ahead} actions suffice" in words
    assert waits(latency_ms / 1000, hz, 2 * ahead, ahead) == 0


@pytest.mark.parametrize("latency_ms", [180.0, 400.0, 700.0])
def test_chunks_that_are_far_too_short_make_it_wait_and_the_doctor_says_so(latency_ms: float) -> None:
    short = lead(latency_ms, 15.0) // 2
    good, words = chunk_verdict(latency_ms, 15.0, 2 * short, short)
    assert not good and words.endswith("the arm will wait for it")
    assert waits(latency_ms / 1000, 15.0, 2 * short, short) > 0


def test_answers_that_are_stale_are_no_matter_of_length() -> None:
    assert chunk_verdict(1600.0, 15.0, 100, 50) == (False, "answers are stale when they arrive")


@pytest.mark.parametrize(("there", "told"), [(None, False), (1000.9, False), (1003.0, True), (990.0, True)])
def test_clocks_are_compared_to_whole_seconds(there: float | None, told: bool) -> None:
    assert bool(clock_words(there, 1000.0)) is told
