"""Judgements become rewards: what could not be judged is left out, and a run without spread is ended with its cause."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from rlspec.display import Display
from rlspec.errors import UserError
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.grading.verdict import Verdict
from rlspec.rlvr.training.rewards import VerifierReward
from rlspec.rlvr.training.spread import GROUPS_ALIKE, SpreadGuard
from rlspec.rlvr.training.trainers import SpectralGRPOTrainer
from rlspec.rlvr.verifiers.answers import MathVerifier
from rlspec.rlvr.verifiers.verifier import Attempt, Judgement, Verifier

PROBLEMS = [Problem(text, "2", None, None, text) for text in "abc"]


class Pool:
    """Stands in for the grader's processes."""

    def __init__(self, verdicts: list[Verdict]) -> None:
        self.verdicts = verdicts
        self.asked: list[tuple[str, str]] = []

    def grade_many(self, items: list[tuple[str, str]], *, thinking: bool = False) -> list[Verdict]:
        self.asked = items
        return self.verdicts


def math(*verdicts: Verdict) -> VerifierReward:
    return VerifierReward(MathVerifier(Pool(list(verdicts)), thinking=False), PROBLEMS)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_a_grader_failure_is_an_excluded_sample_and_never_a_reward_of_zero() -> None:
    reward = math(Verdict.of("exact", "2", 1), Verdict.of("different", "3", 1), Verdict.of("grader_error"))
    metrics: dict[str, float] = {}
    rewards = reward([[]] * 3, [said(text) for text in "xyz"], rlspec_id=list("abc"), log_metric=metrics.__setitem__)
    assert rewards == [1.0, 0.0, None]
    assert reward.verifier.pool.asked == [("x", "2"), ("y", "2"), ("z", "2")]
    assert metrics == {"grader/box_rate": 2 / 3, "grader/excluded": 1.0, "grader/timeouts": 0.0}


def test_batches_full_of_timeouts_stop_the_run() -> None:
    reward = math(*[Verdict.of("timeout")], *[Verdict.of("exact")] * 4)
    ask = {"prompts": [[]] * 5, "completions": ["x"] * 5, "rlspec_id": ["a"] * 5}
    for _ in range(2):
        reward(**ask)
    with pytest.raises(UserError, match="20% of the answers timed out, 3 batches in a row"):
        reward(**ask)


def test_what_a_tool_said_last_is_not_the_models_answer() -> None:
    reward = math(Verdict.of("no_box"), Verdict.of("exact"))
    tool = {"role": "tool", "name": "calculator", "content": r"\boxed{2}"}
    reward([[]] * 2, [[*said("call"), tool], [*said("call"), tool, *said("it is 2")]], rlspec_id=["a", "b"])
    assert [text for text, _ in reward.verifier.pool.asked] == ["", "it is 2"]


class Fixed(Verifier):
    name = "fixed"

    def __init__(self, score: float, reason: str) -> None:
        self.judgement = Judgement(score, reason)

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        return [self.judgement] * len(attempts)


EVERY = SimpleNamespace(logging_steps=1)


def guard(score: float, reason: str) -> SpreadGuard:
    reward = VerifierReward(Fixed(score, reason), PROBLEMS)
    reward([[]] * 4, ["x"] * 4, rlspec_id=["a"] * 4)
    return SpreadGuard([reward], Display("plain"), 3)


def log(watch: SpreadGuard, *shares: float | None) -> None:
    for share in shares:
        logs = {} if share is None else {"frac_reward_zero_std": share}
        watch.on_log(EVERY, SimpleNamespace(), SimpleNamespace(), logs)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("no_box", r"100% of the answers are no_box .* \\boxed"),
        ("different", "golds of another form"),
        ("no_code", "fenced"),
        ("judge_status_401", "see reward.options.url"),
    ],
)
def test_a_run_without_spread_is_ended_with_its_likely_cause(reason: str, cause: str) -> None:
    watch = guard(0.0, reason)
    log(watch, 1.0, None, 1.0)  # steps without new rollouts do not count
    with pytest.raises(UserError, match=f"in no group of 3 steps did rewards differ.*{cause}"):
        log(watch, 1.0)


@pytest.mark.parametrize("reward", [None, float("nan")])
def test_a_run_in_which_no_answer_is_judged_is_ended_though_trl_logs_spread(reward: float | None) -> None:
    watch = guard(0.0, "not_judged")
    logs = {"frac_reward_zero_std": 0.0, "reward": reward}
    with pytest.raises(UserError, match="100% of the answers are not_judged .* the reward returned None"):
        for _ in range(3):
            watch.on_log(EVERY, SimpleNamespace(), SimpleNamespace(), logs)


def test_steps_count_as_such_where_only_some_are_logged() -> None:
    watch, seldom = guard(0.0, "no_box"), SimpleNamespace(logging_steps=2)
    watch.on_log(seldom, SimpleNamespace(), SimpleNamespace(), {"frac_reward_zero_std": 1.0})
    with pytest.raises(UserError, match="in no group of 3 steps"):
        watch.on_log(seldom, SimpleNamespace(), SimpleNamespace(), {"frac_reward_zero_std": 1.0})


def test_groups_count_where_rewards_are_scaled_by_the_batch() -> None:
    """Groups of 0 and groups of 1 have a spread in the batch, and no advantage."""
    watch, logs = guard(0.0, "no_box"), {"frac_reward_zero_std": 0.0, GROUPS_ALIKE: 1.0}
    with pytest.raises(UserError, match="in no group of 3 steps"):
        for _ in range(3):
            watch.on_log(EVERY, SimpleNamespace(), SimpleNamespace(), logs)


def test_one_group_with_spread_begins_the_count_anew() -> None:
    log(guard(0.0, "no_box"), 1.0, 1.0, 0.9, 1.0, 1.0)


def test_a_solved_data_set_is_said_once_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    log(guard(1.0, "exact"), *[1.0] * 9)
    assert capsys.readouterr().out.count("nothing is left to learn") == 1


def test_a_solved_data_set_whose_full_marks_are_not_1_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Its answers were wrong at first: only those of the last steps decide."""
    watch = guard(2.0, "scored")
    watch.rewards[0].recent_scores.appendleft({0.0, 2.0})
    for _ in range(2):
        watch.rewards[0]([[]] * 4, ["x"] * 4, rlspec_id=["a"] * 4)
    log(watch, 1.0, 1.0, 1.0)
    assert "nothing is left to learn" in capsys.readouterr().out


@pytest.mark.parametrize("before_a_resume", [False, True])
def test_a_run_that_has_learnt_something_goes_on_with_a_warning(
    before_a_resume: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = guard(0.0, "no_box")
    watch.seen = before_a_resume
    log(watch, *([] if before_a_resume else [0.5]), *[1.0] * 9)
    assert capsys.readouterr().out.count("in no group of 3 steps did rewards differ") == 1


def test_a_short_run_that_never_had_spread_says_so_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    watch = guard(0.0, "no_box")
    log(watch, 1.0, 1.0)
    watch.on_train_end(None, SimpleNamespace(), SimpleNamespace())
    assert "nothing was learnt: 100% of the answers are no_box" in capsys.readouterr().out


@pytest.mark.parametrize(("scale", "wanted"), [("batch", [0.5]), ("group", [])])
def test_the_share_of_groups_without_spread_is_logged_where_trl_looks_at_the_batch(
    scale: str, wanted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    earned = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])  # of two groups; totals 1, 1 and 1.5, 0
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda *_: earned)
    trainer = SpectralGRPOTrainer.__new__(SpectralGRPOTrainer)
    trainer.args, trainer.model = SimpleNamespace(scale_rewards=scale), SimpleNamespace(training=True)
    trainer.num_generations, trainer.reward_weights = 2, torch.tensor([1.0, 0.5])
    trainer._metrics = {"train": defaultdict(list)}
    assert torch.equal(trainer._calculate_rewards(), earned)
    assert trainer._metrics["train"][GROUPS_ALIKE] == wanted
