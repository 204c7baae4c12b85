"""What a run is judged by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlspec.comparison.length import same_samples, same_seconds
from rlspec.comparison.measures import RunMeasures, check_measured, curve_of, mean_over_steps, measure, score_of
from rlspec.comparison.plan import plan_of_values
from rlspec.config.load import load_recipe, load_vla_recipe
from rlspec.errors import ConfigError


def judged(tmp_path: Path, rows: list[dict[str, float]], after: float, target: float, **more: Any) -> RunMeasures:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"status": "finished", "after": {"sampled_pass_at_1": after}, "seconds": 1.0, **more}
    return measure(summary, tmp_path, None, target)


def test_the_training_reward_is_no_score(tmp_path: Path) -> None:
    rows = [{"step": step, "reward": 1.5} for step in range(1, 11)]
    rows.append({"step": 5, "eval/x/sampled_pass_at_1": 0.3})
    found = judged(tmp_path, rows, 0.45, 0.5, steps=10)
    assert (found.to_target, found.peak, found.area, found.mean_reward) == (None, 0.45, None, 1.5)


def test_the_end_is_a_point_of_the_curve_and_points_count_by_their_steps(tmp_path: Path) -> None:
    rows = [{"step": s, "eval/x/sampled_pass_at_1": v} for s, v in ((100, 0.1), (200, 0.2), (210, 0.9))]
    found = judged(tmp_path, rows, 0.95, 0.93, steps=300)
    assert (found.to_target, found.peak, found.mean_reward) == (300, 0.95, None)
    assert found.area == pytest.approx((100 * 0.1 + 100 * 0.2 + 10 * 0.9 + 90 * 0.95) / 300)


@pytest.mark.parametrize("recipe", ["trainer: {max_steps: 80}", "training: {steps: 80}"])
def test_a_collapsed_run_stays_where_it_fell_until_its_planned_end(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    rows = [{"step": s, "reward": 1.0 if s < 8 else 0.0, "eval/x/sampled_pass_at_1": 0.8} for s in range(1, 9)]
    found = judged(tmp_path, rows, 0.0, 0.9, steps=8, status="collapsed")
    assert found.area == pytest.approx(7 * 0.8 / 80) and found.mean_reward == pytest.approx(7 / 80)
    assert mean_over_steps([], 80) is None


def test_the_first_set_of_problems_is_the_curve() -> None:
    rows = [
        {
            "step": step,
            "reward": 1.0,
            "eval/a/pass_at_1": 0.9,
            "eval/a/pass_at_k.8": 0.95,
            "eval/a/sampled_pass_at_1": step / 100,
            "eval/b/sampled_pass_at_1": 0.0,
        }
        for step in (20, 40, 60)
    ]
    assert curve_of(rows, None) == [(20, 0.2), (40, 0.4), (60, 0.6)]
    assert curve_of(rows, "pass_at_1") == [(20, 0.9), (40, 0.9), (60, 0.9)]
    assert curve_of(rows, "pass_at_k.8") == [(20, 0.95), (40, 0.95), (60, 0.95)]
    robots = [{"step": step, "eval/success": 0.5, "eval/pick/success": 0.1} for step in (1, 2, 3)]
    assert curve_of(robots, None) == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_peak_area_and_time_to_a_target(tmp_path: Path) -> None:
    rows = [
        {"step": step, "eval/success": value, "step_time": 2.0} for step, value in ((10, 0.2), (20, 0.8), (30, 0.5))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "measured.json").write_text('{"KL per answer": 0.3}')
    evaluations = {
        "before": {"own": {"sampled_pass_at_1": 0.4}, "other": {"sampled_pass_at_1": 0.9}},
        "after": {"own": {"sampled_pass_at_1": 0.6}, "other": {"sampled_pass_at_1": 0.7}},
    }
    after = {"success_rate": 0.5, "pass_at_k": {"8": 0.9}}
    summary = {
        "status": "finished",
        "steps": 30,
        "seconds": 99.0,
        "before": None,
        "after": after,
        "evaluations": evaluations,
    }
    found = measure(summary, tmp_path, None, 0.75)
    assert (found.score, found.before, found.peak, found.to_target) == (0.5, None, 0.8, 20)
    assert found.area == pytest.approx(0.5) and found.seconds_per_step == 2.0
    assert found.metrics == {"pass@8": 0.9, "forgotten other": pytest.approx(0.2), "KL per answer": 0.3}
    other = measure(summary, tmp_path, "pass_at_k.8", 0.75)  # whose evaluations in between nobody kept
    assert (other.score, other.to_target, other.peak, other.area) == (0.9, None, None, None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 30, "loss": 1.0}\n')
    alone = measure(summary, tmp_path, None, 0.5)  # nothing was evaluated but the end
    assert (alone.to_target, alone.peak, alone.problem) == (30, 0.5, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "metrics.jsonl is missing or empty"),
        ("", "metrics.jsonl is missing or empty"),
        (
            '{"step": 10, "eval/success": 0.9, "reward": 1}\n{"step": 20, "ev\n{"step": 30, "reward": 1}\n',
            "1 lines of metrics.jsonl",
        ),
        ('[]\n7\n{"step": 30, "reward": 1}\n', "2 lines of metrics.jsonl"),
        ('{"step": 10, "eval/success": 0.9, "reward": 1}\n{"step": 20, "ev', None),
    ],
)
def test_half_a_curve_is_none(text: str | None, problem: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    found = measure({"status": "finished", "steps": 30, "after": {"success_rate": 0.5}}, tmp_path, None, 0.5)
    assert found.score == 0.5
    if problem is None:
        assert (found.problem, found.peak, found.to_target, found.mean_reward) == (None, 0.9, 10, 1.0)
    else:
        assert found.problem is not None and found.problem.startswith(problem)
        assert (found.peak, found.to_target, found.area, found.mean_reward) == (None, None, None, None)


@pytest.mark.parametrize(
    ("score", "words"),
    [
        ("sampled_pas_at_1", "not measured; did you mean sampled_pass_at_1"),
        ("foo", "not measured"),
        ("success_rate", "not measured"),
        ("truncation_rate", "the lower the better"),
        ("mean_length", "no share"),
        ("maj_at_k.16", "needs 16 in evaluation.k"),
        ("rewards.math", "no reward of that name beside another"),
    ],
)
def test_a_score_that_nobody_measures_is_refused_before_training(score: str, words: str) -> None:
    recipe, plan = load_recipe(["recipe=debug_grpo"]), plan_of_values(["recipe=debug_grpo", "seed=0"], score=score)
    with pytest.raises(ConfigError, match=f"score={score}: {words}"):
        check_measured(plan, recipe, "claim")
    with pytest.raises(ConfigError, match="score=pass_at_k.K: needs K in evaluation.k"):
        check_measured(plan_of_values(["recipe=debug_grpo", "seed=0"], score="pass_at_k"), recipe, "claim")
    several = load_recipe(["recipe=debug_grpo", "reward=[{name: math, weight: 1}, {name: format, weight: 0.1}]"])
    for known in ("sampled_pass_at_1", "pass_at_1", "box_rate", f"maj_at_k.{recipe.evaluation.k[0]}", "rewards.math"):
        check_measured(plan_of_values(["recipe=debug_grpo", "seed=0"], score=known), several, "claim")
    robot = load_vla_recipe(["recipe=vla_franka"])
    for known in ("success_rate", "tasks.pick_place.success_rate", "suites.franka.success_rate"):
        check_measured(plan_of_values(["recipe=vla_franka", "seed=0"], score=known), robot, "claim")


def test_a_score_that_was_not_measured_names_those_that_were() -> None:
    with pytest.raises(ConfigError, match=r"score=accuracy: not measured; these are: n, success_rate"):
        score_of({"success_rate": 0.5, "n": 3}, "accuracy")
    with pytest.raises(ConfigError, match=r"score=mean_length: 212 is no share in \[0, 1\]"):
        score_of({"mean_length": 212.0}, "mean_length")
    assert score_of(None, "accuracy") is None
    assert score_of({"pass_at_k": {"8": 0.9}}, "pass_at_k.8") == 0.9


def test_arms_are_made_equally_long() -> None:
    plan = plan_of_values(["recipe=grpo_math", "batch.prompts_per_step=16,32", "trainer.max_steps=80"])
    small, large = plan.arms
    assert same_samples(plan, small) == ("trainer.max_steps=80",)
    assert same_samples(plan, large) == ("trainer.max_steps=40",)
    assert same_seconds(plan, small, 0.5) == ("trainer.max_steps=40",)
    robots = plan_of_values(["recipe=vla_franka", "training.gradient_accumulation=1,2", "training.steps=100"])
    assert same_samples(robots, list(robots.arms)[1]) == ("training.steps=50",)
    reinforced = plan_of_values(["recipe=vla_grpo_franka", "grpo.group_size=4,8", "training.steps=100"])
    assert same_samples(reinforced, list(reinforced.arms)[1]) == ("training.steps=50",)
