"""Lines: thinned, smoothed and averaged as a plain loop does it."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from rlspec.reporting.drawing import draw_lines
from rlspec.reporting.series import MOST_POINTS, Line, StepNumbers, over_seeds, running_mean, smoothed, thinned


def test_numbers_that_are_none_are_left_out() -> None:
    values = [1.0, None, math.nan, math.inf, True, "3", 4]
    metrics = StepNumbers([{"step": step, "loss": value} for step, value in enumerate(values)])
    steps, found = metrics.points("loss")
    assert steps.tolist() == [0, 6] and found.tolist() == [1.0, 4.0]
    assert metrics.points("absent")[0].shape == (0,)


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 9_999])
def test_a_thinned_line_is_the_mean_of_its_parts(count: int) -> None:
    steps = np.arange(1.0, count + 1)
    values = np.random.default_rng(0).normal(size=count)
    line = thinned("x", steps, values)
    assert len(line.steps) == min(count, MOST_POINTS)
    parts = np.array_split(values, len(line.values)) if count % MOST_POINTS == 0 or count <= MOST_POINTS else None
    if parts is not None:
        assert np.allclose(line.values, [part.mean() for part in parts])
    sizes = np.diff([*np.searchsorted(steps, line.steps - (line.steps[0] - 1)), count])
    assert sizes.max() <= math.ceil(count / MOST_POINTS) + 1
    assert line.values.mean() == pytest.approx(values.mean(), abs=0.02)


def test_a_running_mean_is_that_of_a_loop() -> None:
    values = np.random.default_rng(1).normal(size=50)
    for window in (1, 4, 5):
        before, after = window // 2, (window - 1) // 2
        loop = [values[max(0, k - before) : k + after + 1].mean() for k in range(50)]
        assert np.allclose(running_mean(values, window), loop)


def test_a_smoothed_line_lies_in_its_band_and_the_band_in_the_values() -> None:
    values = np.random.default_rng(2).uniform(size=400)
    line = smoothed("x", np.arange(400.0), values)
    assert line.low is not None and line.high is not None
    assert (line.low <= line.values).all() and (line.values <= line.high).all()
    assert line.low.min() >= values.min() and line.high.max() <= values.max()
    assert smoothed("x", np.arange(3.0), np.ones(3)).low is None


def test_seeds_are_averaged_and_one_that_stopped_counts_up_to_its_end() -> None:
    long = (np.arange(1.0, 11), np.full(10, 2.0))
    short = (np.arange(1.0, 6), np.full(5, 4.0))
    line = over_seeds("x", [short, long])
    assert line is not None and line.low is not None and line.high is not None
    assert line.values.tolist() == [3.0] * 5 + [2.0] * 5
    assert line.low.tolist() == [2.0] * 10 and line.high.tolist() == [4.0] * 5 + [2.0] * 5
    assert over_seeds("x", [(np.empty(0), np.empty(0))]) is None
    alone = over_seeds("x", [long])
    assert alone is not None and alone.low is None


def test_a_heat_maps_columns_are_means_over_steps_with_gaps_where_nothing_was_recorded() -> None:
    rows = [{"step": step, "a": float(step), **({"b": 1.0} if step > 5 else {})} for step in range(1, 11)]
    steps, values = StepNumbers(rows).over_time(["a", "b"], most=2)
    assert steps.tolist() == [5, 10]
    assert values[0].tolist() == [3.0, 8.0]
    assert math.isnan(values[1][0]) and values[1][1] == 1.0


def test_rates_on_a_logarithmic_axis_are_not_printed_over_one_another() -> None:
    rates = [np.array([2e-4, 4e-4, 8e-4, 1.6e-3]), np.array([1e-3, 2e-3, 4e-3])]
    lines = [Line(f"arm {index}", steps, np.ones(len(steps))) for index, steps in enumerate(rates)]
    chart = draw_lines("score, by rate", lines, log_x=True)
    assert chart is not None
    printed = re.findall(r">(0\.\d+)<", chart.svg)
    assert [rate for rate in printed if rate.startswith("0.00")] == ["0.0002", "0.0004", "0.0008", "0.0016", "0.004"]
