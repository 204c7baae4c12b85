"""The collapse guard, and the line that a step shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from rlspec.config.schema import Guard
from rlspec.display import Display, format_step
from rlspec.rlvr.callbacks import CollapseGuard, reward_panel, tool_panel


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


def falling(start: float, end: float, steps: int = 30) -> list[float]:
    return [start + (end - start) * step / (steps - 1) for step in range(steps)]


@pytest.mark.parametrize(
    ("rewards", "collapses"),
    [
        ([-85.0, -83.0, -88.0] * 10, False),
        (falling(-100, -1), False),
        ([-0.4, -0.5] * 15, False),
        ([-0.8, -0.9] * 5 + [0.05, -0.05] * 10, False),  # of -1 and 1: a fraction of 0.05 is nothing
        ([-1.0] * 5 + [0.8] * 10 + [-0.9] * 10, True),
        (falling(-1, -2) + [0.5] * 5 + [-1.9] * 10, True),
        ([0.8] * 6 + falling(-1, -50, 10), True),
    ],
)
def test_a_reward_below_0_has_collapsed_only_where_it_falls_far_from_a_best_above_0(
    rewards: list[float], collapses: bool
) -> None:
    assert (collapse_step(rewards, guard()) is not None) == collapses


def test_that_nothing_is_watched_below_0_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    watch, control = guard(), SimpleNamespace()
    watch.display = Display("plain")
    for _ in range(14):
        watch.on_log(None, SimpleNamespace(global_step=1), control, {"reward": -85.0})  # type: ignore[arg-type]
    assert not watch.collapsed and capsys.readouterr().out.count("no collapse is looked for") == 1


def test_a_step_shows_reward_lengths_and_what_probes_say() -> None:
    row = {"step": 7, "reward": 0.53125, "loss": -0.01, "completions/clipped_ratio": 0.02}
    assert format_step(row, 60, "gated 25%") == "step  7/60  reward 0.531  loss -0.0100  truncated 2%  gated 25%"


def test_several_rewards_are_shown_each_with_mean_and_spread() -> None:
    one = {"rewards/math/mean": 0.5, "rewards/math/std": 0.25}
    assert reward_panel(one) == ""
    assert reward_panel({**one, "rewards/format/mean": 1.0, "rewards/format/std": 0.0}) == (
        "math 0.50±0.25  format 1.00±0.00"
    )


def test_calls_are_shown_with_the_share_that_failed_and_nothing_where_there_are_no_tools() -> None:
    assert tool_panel({"loss": 0.1}) == ""
    logs = {"tools/call_frequency": 0.625, "tools/failure_frequency": 0.25}
    assert tool_panel(logs) == "calls 0.62 per answer, 25% failed"
