"""Intervals, paired differences and corrections against scipy and plain loops."""

from __future__ import annotations

import numpy
import pytest
from scipy import stats

from rlspec.comparison.estimates import bootstrap_interval, estimate, holm, paired_differences


def test_the_bootstrap_agrees_with_scipys() -> None:
    values = numpy.random.default_rng(3).normal(0.7, 0.1, size=12).tolist()
    theirs = stats.bootstrap([values], numpy.mean, method="percentile", n_resamples=20_000, random_state=1)
    ours = bootstrap_interval(values)
    assert ours == pytest.approx(theirs.confidence_interval, abs=2e-3)
    assert bootstrap_interval(values) == ours
    assert bootstrap_interval([0.5]) is None and bootstrap_interval([1.0, 1.0, 1.0]) is None


def test_paired_differences_are_scipys_paired_t_test() -> None:
    arms = {"a": {0: 0.50, 1: 0.55, 2: 0.61}, "b": {0: 0.60, 1: 0.62, 2: 0.75, 9: 0.1}, "c": {0: 0.5, 1: 0.55, 2: 0.61}}
    found = paired_differences(arms, "a")
    theirs = stats.ttest_rel([0.60, 0.62, 0.75], [0.50, 0.55, 0.61])
    assert found["b"].n == 3 and found["b"].p == pytest.approx(theirs.pvalue)
    assert (found["b"].low, found["b"].high) == pytest.approx(theirs.confidence_interval(), abs=1e-3)
    assert found["b"].p_holm == pytest.approx(2 * theirs.pvalue)
    assert (found["c"].mean, found["c"].low, found["c"].p, found["c"].p_holm) == (0.0, None, None, None)
    assert "a" not in found


def test_equal_differences_are_no_estimate_of_the_spread() -> None:
    found = paired_differences({"a": {0: 0.5, 1: 0.52, 2: 0.6}, "b": {0: 0.52, 1: 0.54, 2: 0.62}}, "a")["b"]
    assert (found.n, found.mean) == (3, pytest.approx(0.02))
    assert (found.low, found.high, found.p, found.p_holm) == (None, None, None, None)


def test_the_correction_is_for_all_arms_of_the_plan() -> None:
    arms = {"a": {0: 0.50, 1: 0.55, 2: 0.61}, "b": {0: 0.60, 1: 0.62, 2: 0.75}}
    found = paired_differences(arms, "a", planned=5)["b"]
    assert found.p is not None and found.p_holm == pytest.approx(5 * found.p)
    assert holm([0.01, 0.02], number=4) == pytest.approx([0.04, 0.06])


def test_holm_is_a_step_down_bonferroni() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_without_runs_there_is_no_estimate() -> None:
    assert estimate([], 0.0) is None
    one = estimate([0.5], 0.0)
    assert one is not None and one.low is None and one.student is None
