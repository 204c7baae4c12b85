"""Intervals and pass@k against scipy and against counting."""

from __future__ import annotations

from itertools import combinations

import pytest
from scipy.stats import binomtest, t

from rlspec.intervals import mean_interval, pass_at_k, t_interval, wilson_interval


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (3, 10), (10, 10), (217, 400), (1, 1)])
def test_wilson_interval_agrees_with_scipy(correct: int, total: int) -> None:
    expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_trials_say_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert mean_interval([]) == (0.0, 1.0)


def test_mean_interval_of_single_trials_is_close_to_wilson() -> None:
    values = [1.0] * 217 + [0.0] * 183
    assert mean_interval(values) == pytest.approx(wilson_interval(217, 400), abs=3e-3)


def test_mean_interval_treats_a_problem_as_one_trial_however_often_it_was_sampled() -> None:
    few = mean_interval([0.0, 1.0] * 50)
    assert mean_interval([0.5] * 50 + [0.4, 0.6] * 25)[0] > few[0]
    assert few[1] - few[0] == pytest.approx(2 * 1.96 * 0.5025 / 10, rel=1e-3)


def test_agreeing_scores_do_not_give_an_interval_of_width_zero() -> None:
    low, high = mean_interval([1.0] * 20)
    assert high == 1.0
    assert low < 0.9


@pytest.mark.parametrize("correct", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_counts_subsets(correct: int, k: int) -> None:
    samples = [True] * correct + [False] * (5 - correct)
    subsets = list(combinations(samples, k))
    assert pass_at_k(5, correct, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


@pytest.mark.parametrize("count", [2, 3, 5, 31, 32, 100])
def test_t_interval_agrees_with_scipy(count: int) -> None:
    values = [0.7, 0.9, 0.75, 0.8, 0.4][:count] if count < 6 else [index / 10 for index in range(count)]
    mean = sum(values) / count
    error = (sum((value - mean) ** 2 for value in values) / (count - 1) / count) ** 0.5
    assert t_interval(values) == pytest.approx(t.interval(0.95, count - 1, mean, error), rel=1e-4)


def test_one_seed_says_nothing_about_the_spread() -> None:
    assert t_interval([0.5]) == (float("-inf"), float("inf"))


def test_pass_at_k_refuses_more_draws_than_samples() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        pass_at_k(4, 1, 8)
