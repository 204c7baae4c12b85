"""The collapse guard, and the line that a step shows."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from rlspec.config.load import load_recipe
from rlspec.config.rlvr_schema import Evaluation, Guard
from rlspec.display import Display, format_step
from rlspec.rlvr.evaluation.accuracy import AccuracyMetrics
from rlspec.rlvr.evaluation.evaluator import HeldOutEvaluations
from rlspec.rlvr.training.arguments import common_arguments
from rlspec.rlvr.training.callbacks import CollapseGuard, events_after, reward_panel, tool_panel
from rlspec.run_directory import RunDirectory


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


def test_steps_that_are_taken_again_are_drawn_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    killed = SummaryWriter(str(tmp_path))
    for step in range(1, 6):
        killed.add_scalar("loss", 0.0, step)
    killed.close()
    resumed = events_after(3, tmp_path).tb_writer
    for step in (4, 5):
        resumed.add_scalar("loss", 1.0, step)
    resumed.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]


def test_a_run_goes_on_in_weights_and_biases_and_others_of_its_name_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []
    for folder in ("a/run", "a/run", "b/run"):
        monkeypatch.setattr(os, "environ", {key: os.environ[key] for key in os.environ if "WANDB" not in key})
        checkpoints = tmp_path / folder / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        recipe = load_recipe(["recipe=debug_grpo", "report.wandb=true"])
        common_arguments(recipe, checkpoints=checkpoints, device="cpu", steps=1)
        assert os.environ["WANDB_RESUME"] == "allow"
        ids.append(os.environ["WANDB_RUN_ID"])
    assert ids[0] == ids[1] != ids[2] and ids[0].startswith("run-")
    os.environ["WANDB_RUN_ID"] = "of-an-agent"
    common_arguments(recipe, checkpoints=checkpoints, device="cpu", steps=1)
    assert os.environ["WANDB_RUN_ID"] == "of-an-agent"
    (tmp_path / "b/run/tracker_id").unlink()  # trained anew in its place
    assert RunDirectory(tmp_path / "b/run").tracker_id != ids[2]


def test_an_evaluations_pass_at_k_is_in_the_metrics(tmp_path: Path) -> None:
    metrics = AccuracyMetrics(
        8, 4, 0.5, (0.2, 0.8), 0.4, (0.2, 0.6), pass_at_k={8: 0.9}, pass_at_k_ci95={8: (0.7, 1.0)}
    )
    run = MagicMock(directory=RunDirectory(tmp_path))
    evaluator = MagicMock(verifier=MagicMock(describe=lambda _: ([], [])))
    evaluations = HeldOutEvaluations(Evaluation(), evaluator, MagicMock(), MagicMock(), run, None)
    evaluations._record({"sums": metrics}, "step 5", 5)
    (row,) = RunDirectory(tmp_path).read_metrics()
    assert row["eval/sums/pass_at_k.8"] == 0.9
