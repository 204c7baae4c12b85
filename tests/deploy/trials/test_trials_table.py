"""What may be concluded: intervals and tests against independent ones, and a stopping rule that keeps its promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rlspec.deploy.trials.table import (
    TrialResult,
    is_decided,
    mcnemar,
    pair_up,
    sign_evidence,
    stopping_rule,
    table_lines,
    threshold,
)


def results(policy: str, credits: list[float], task: str = "one") -> list[TrialResult]:
    return [TrialResult(policy, task, scene, credit) for scene, credit in enumerate(credits)]


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 1), (3, 3), (0, 9), (20, 6)])
def test_mcnemar_is_the_binomial_test(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected)


def test_a_thousand_scenes_are_not_too_many() -> None:
    assert mcnemar(600, 424) == pytest.approx(stats.binomtest(600, 1024).pvalue)
    assert sign_evidence(600, 424) == pytest.approx(153999.16374485)  # by mpmath
    assert sign_evidence(2000, 0) == float("inf")


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 1), (3, 3), (0, 9)])
def test_the_evidence_is_the_likelihood_under_a_uniform_share_over_that_under_a_half(wins: int, losses: int) -> None:
    shares = (np.arange(200_000) + 0.5) / 200_000
    mixture = np.mean(shares**wins * (1 - shares) ** losses)
    assert sign_evidence(wins, losses) == pytest.approx(mixture * 2.0 ** (wins + losses), rel=1e-6)


def test_two_equal_policies_are_told_apart_by_chance_less_often_than_stated() -> None:
    """Looked at after every one of 60 scenes, in 4000 series."""
    wins = np.cumsum(np.random.default_rng(0).integers(0, 2, (4000, 60)), axis=1)
    crossed = [
        any(sign_evidence(int(won), n - int(won)) >= threshold(2) for n, won in enumerate(row, 1)) for row in wins
    ]
    assert np.mean(crossed) < 0.05
    assert np.mean(crossed) > 0.005, "the rule is not idle either"


def test_pairs_are_made_on_the_scenes_that_both_have_tried() -> None:
    pair = pair_up([*results("a", [1, 1, 0.5, 0, 1]), *results("b", [0, 1, 1, 0])], ["a", "b"])[0]
    assert (pair.scenes, pair.only_first, pair.only_second) == (4, 1, 1)
    assert pair.credit[0] == pytest.approx(0.5 / 4)
    expected = stats.t.interval(0.95, 3, 0.125, stats.sem([1, 0, -0.5, 0]))
    assert pair.credit[1] == pytest.approx(expected, rel=1e-3)


def test_a_series_is_decided_when_every_pair_is() -> None:
    clear = [*results("a", [1.0] * 12), *results("b", [0.0] * 12)]
    assert is_decided(clear, ["a", "b"])
    assert not is_decided([*results("a", [1.0] * 5), *results("b", [0.0] * 5)], ["a", "b"])
    assert not is_decided([*clear, *results("c", [0.0] * 12)], ["a", "b", "c"])
    assert not is_decided(results("a", [1.0] * 12), ["a"])


def test_the_table_counts_partial_credit_as_no_success() -> None:
    lines = table_lines(results("a", [1.0, 0.5, 0.0, 1.0]), ["a"], ["one"])
    low, high = stats.binomtest(2, 4).proportion_ci(method="wilson")
    assert lines[2] == f"| a | one | 4 | 2 (50%) | {low:.0%} to {high:.0%} | 0.62 | 0 | 0 |"
    assert len(lines) == 3, "one policy has no pair"


def test_the_rule_says_its_figures() -> None:
    assert "ends after 30 trials" in stopping_rule(3, 30, early=False)
    assert "evidence of every pair has reached 60 " in stopping_rule(3, 30, early=True)
    assert math.comb(3, 2) / 0.05 == threshold(3)
