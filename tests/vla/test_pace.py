"""The time that is left, where workers start first."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from rlspec.vla.evaluation.campaign import _Progress
from rlspec.vla.pace import Pace


@pytest.mark.parametrize("start", [0.0, 60.0])
def test_an_evaluation_tells_the_time_left_by_the_speed_without_the_start(start: float) -> None:
    now, lines, true = 0.0, list[str](), list[float]()
    progress = _Progress("before", 100, lines.append, lambda: now)
    now = start
    for done in range(1, 101):
        now += 2.5
        before = len(lines)
        progress.count(SimpleNamespace(success=True))  # type: ignore[arg-type]
        true += [2.5 * (100 - done)] * (len(lines) - before)
    said = [re.search(r"about (\d+) s left", line) for line in lines]
    assert sum(found is not None for found in said) > 5
    for found, left in zip(said, true, strict=True):
        assert found is None or float(found[1]) == pytest.approx(left, abs=1.0)


def test_nobody_can_say_before_a_few_are_done() -> None:
    pace = Pace(lambda: 1.0)
    pace.count()
    assert pace.speed is None and pace.left(10) is None
