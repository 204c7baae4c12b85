"""The collapse guard, and the line that a step shows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from rlspec.config.schema import Guard
from rlspec.display import Display, format_step
from rlspec.errors import UserError
from rlspec.rlvr.callbacks import CollapseGuard
from rlspec.rlvr.grading.verdict import Verdict
from rlspec.rlvr.rewards import MathReward


def guard(rewards: Sequence[float] = ()) -> CollapseGuard:
    return CollapseGuard(Guard(window=3, fraction=0.5, patience=4), Display("plain", quiet=True), rewards)


def collapse_step(rewards: list[float], watch: CollapseGuard) -> int | None:
    return next((step for step, reward in enumerate(rewards) if watch.observe(reward)), None)


def test_a_collapsed_reward_is_noticed_after_the_patience_and_not_before() -> None:
    rewards = [0.8] * 6 + [0.1] * 10
    # The mean over three falls below 0.4 with the second low reward, step 7; the fourth such step is 10.
    assert collapse_step(rewards, guard()) == 10


def test_noise_and_a_slow_start_are_no_collapse() -> None:
    assert collapse_step([0.0] * 20 + [0.8, 0.2, 0.8] * 10, guard()) is None


def test_a_resumed_guard_knows_the_best_before_and_has_its_patience_again() -> None:
    rewards = [0.8] * 6 + [0.1] * 10
    assert collapse_step(rewards[11:], guard(rewards[:11])) == 3


def test_a_step_that_the_grader_could_not_judge_neither_counts_nor_clears() -> None:
    rewards = [0.8] * 6 + [0.1] * 3 + [math.nan] + [0.1] * 10
    assert collapse_step(rewards, guard()) == 11


class Pool:
    """Stands in for the grader's processes."""

    timeout_share = 0.2

    def __init__(self, verdicts: list[Verdict], tripped: bool = False) -> None:
        self.verdicts = verdicts
        self.tripped = tripped
        self.asked: list[tuple[str, str]] = []

    def grade_many(self, items: list[tuple[str, str]], *, thinking: bool = False) -> list[Verdict]:
        self.asked = items
        return self.verdicts


def test_a_grader_failure_is_an_excluded_sample_and_never_a_reward_of_zero() -> None:
    pool = Pool([Verdict.of("exact", "2", 1), Verdict.of("different", "3", 1), Verdict.of("grader_error")])
    metrics: dict[str, float] = {}
    messages = [[{"role": "assistant", "content": text}] for text in "abc"]
    rewards = MathReward(pool)([], messages, ["2", "2", "2"], log_metric=metrics.__setitem__)
    assert rewards == [1.0, 0.0, None]
    assert pool.asked == [("a", "2"), ("b", "2"), ("c", "2")]
    assert metrics == {"grader/box_rate": 2 / 3, "grader/excluded": 1.0, "grader/timeouts": 0.0}


def test_batches_full_of_timeouts_stop_the_run() -> None:
    reward = MathReward(Pool([Verdict.of("timeout")], tripped=True))
    for _ in range(2):
        reward([], ["x"], ["2"])
    with pytest.raises(UserError, match="20% of the answers timed out, 3 batches in a row"):
        reward([], ["x"], ["2"])


def test_a_step_shows_reward_lengths_and_what_probes_say() -> None:
    row = {"step": 7, "reward": 0.53125, "loss": -0.01, "completions/clipped_ratio": 0.02}
    assert format_step(row, 60, "gated 25%") == "step  7/60  reward 0.531  loss -0.0100  truncated 2%  gated 25%"
