"""What a run is judged by: its score, its curve, and how soon it got there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspec.comparison.plan import Plan
from rlspec.comparison.running import LENGTHS, Kind, Summary
from rlspec.config.values import read_yaml
from rlspec.errors import ConfigError, nearest
from rlspec.run_directory import RECIPE, RunDirectory

SCORES: Mapping[str, str] = {"sampled_pass_at_1": "sampled pass@1", "success_rate": "success"}
"""What a summary measures, in words; the first one that it has is the score, where none is named."""
_NO_SHARES = {"n", "correct", "excluded", "mean_length", "greedy_mean_length"}  # of what a summary measures
_LOWER_IS_BETTER = ("truncation_rate",)
_OF_ROBOTS = ("success_rate", "total", "suites", "tasks")  # or a path into one: tasks.push.success_rate
_OF_LANGUAGE = ("sampled_pass_at_1", "pass_at_1", "pass_at_k", "maj_at_k", "mean_score", "rewards", "box_rate")
LEAST_POINTS = 3  # evaluations, the end among them, that make a curve
Curve = list[tuple[int, float]]  # steps, ascending, and heights


@dataclass(frozen=True)
class RunMeasures:
    """Of one run; scores are shares."""

    score: float | None  # at the end
    before: float | None
    peak: float | None  # of the score's evaluations and the end
    area: float | None  # mean of the score over the planned steps; None: fewer than LEAST_POINTS evaluations
    mean_reward: float | None  # of training, over the planned steps, in the reward's own units
    to_target: int | None  # the first evaluated step, or the end, that reaches it; None: never, or no target
    seconds: float | None
    seconds_per_step: float | None
    metrics: dict[str, float]  # further ones, by name
    problem: str | None = None  # why there is no curve, where there should be one


def score_of(scores: Mapping[str, Any] | None, name: str | None) -> float | None:
    """A score from what a summary measured.

    Raises:
        ConfigError: It measured something, and this is not among it, or no share.
    """
    if not scores:
        return None
    if name is None:
        return next((float(scores[key]) for key in SCORES if key in scores), None)
    value: Any = scores
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if not isinstance(value, int | float):
        known = sorted(key for key, number in scores.items() if isinstance(number, int | float))
        raise ConfigError(f"score={name}: not measured; these are: {', '.join(known)}")
    if not 0 <= value <= 1:
        raise ConfigError(f"score={name}: {value:g} is no share in [0, 1], which a score has to be")
    return float(value)


def check_measured(plan: Plan, recipe: Any, kind: Kind) -> None:
    """Refuse a run that cannot be judged as the plan says, before it is trained.

    Raises:
        ConfigError: naming the key.
    """
    evaluation, robotic, name = recipe.evaluation, hasattr(recipe, "policy"), plan.score or ""
    if name in _NO_SHARES:
        raise ConfigError(f"score={name}: no share in [0, 1], which a score has to be")
    if name in _LOWER_IS_BETTER:
        raise ConfigError(f"score={name}: the lower the better, and a score is the better the higher")
    known = _OF_ROBOTS if robotic else _OF_LANGUAGE
    kind_of_score, _, which = name.partition(".")
    if name and kind_of_score not in known:
        raise ConfigError(f"score={name}: not measured; {nearest(name, known)}")
    if kind == "tune" and not (evaluation.after and (not robotic or recipe.env is not None)):
        raise ConfigError("tune: the tuning runs have no score; set evaluation.after=true" + " and env" * robotic)
    if kind_of_score in ("pass_at_k", "maj_at_k") and which not in {
        str(k) for k in evaluation.k if k <= evaluation.samples
    }:
        k = which or "K"
        raise ConfigError(f"score={kind_of_score}.{k}: needs {k} in evaluation.k and evaluation.samples={k} or more")
    if kind_of_score == "rewards" and (len(recipe.rewards) < 2 or which not in [each.name for each in recipe.rewards]):
        raise ConfigError(f"score={name}: no reward of that name beside another; name one of several: rewards.NAME")
    if plan.kl and kind == "claim" and (robotic or not evaluation.unchanged):
        raise ConfigError(
            "kl=true: needs a language model whose answers are drawn with evaluation.temperature=1 "
            "evaluation.top_p=1 evaluation.top_k=0"
        )


def measure(summary: Summary, folder: Path, score: str | None, target: float | None) -> RunMeasures:
    """Read a run's summary and its metrics."""
    after = score_of(summary.get("after"), score)
    rows = RunDirectory(folder).read_metrics()
    steps = summary.get("steps") or max((int(row["step"]) for row in rows), default=0)
    planned = _planned_steps(folder) if summary["status"] == "collapsed" else steps
    problem = _problem(RunDirectory(folder), rows, steps)
    curve = curve_of(rows, score)
    if after is not None and (curve or not any(key.startswith("eval/") for row in rows for key in row)):
        curve = [*((step, height) for step, height in curve if step < steps), (steps, after)]
    curve = [] if problem else curve
    rewards = [(int(row["step"]), float(row["reward"])) for row in rows if isinstance(row.get("reward"), int | float)]
    step_times = sorted(row["step_time"] for row in rows if row.get("step_time"))
    per_step = step_times[len(step_times) // 2] if step_times else None
    if per_step is None and steps and summary.get("seconds"):
        per_step = summary["seconds"] / steps
    return RunMeasures(
        score=after,
        before=score_of(summary.get("before"), score),
        peak=max((height for _, height in curve), default=None),
        area=mean_over_steps(curve, planned) if len(curve) >= LEAST_POINTS else None,
        mean_reward=None if problem else mean_over_steps(rewards, planned),
        to_target=next((step for step, height in curve if target is not None and height >= target), None),
        seconds=summary.get("seconds"),
        seconds_per_step=per_step,
        metrics=_further(summary, folder),
        problem=problem,
    )


def _problem(run: RunDirectory, rows: Sequence[Mapping[str, Any]], steps: int) -> str | None:
    """Half a curve would be another run's: what is damaged has none."""
    if lost := run.lost_metrics():
        return f"{lost} lines of {run.metrics.name} cannot be read, so that only its end counts"
    if steps and not rows:
        return f"{run.metrics.name} is missing or empty, so that only its end counts"
    return None


def curve_of(rows: Sequence[Mapping[str, Any]], score: str | None) -> Curve:
    """The score's evaluations, also that before training, at step 0."""
    return [(int(row["step"]), height) for row in rows if (height := _evaluated(row, score)) is not None]


def mean_over_steps(curve: Curve, planned: int) -> float | None:
    """Mean in which a height stands for the steps since the one before it, and the last one for all that follow."""
    weighted, before = 0.0, 0
    for step, height in curve:
        weighted += height * (step - before)
        before = step
    total = max(before, planned)
    return (weighted + curve[-1][1] * (total - before)) / total if total and curve else None


def _planned_steps(folder: Path) -> int:
    """By the recipe of a run; 0 where it counts in epochs."""
    path = folder / RECIPE
    recipe = read_yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lengths = (recipe.get(section, {}).get(key) for section, key in LENGTHS)
    return max(0, *(length or 0 for length in lengths))


def _evaluated(row: Mapping[str, Any], score: str | None) -> float | None:
    """The score in a row of metrics: of the first set of problems, or of all tasks together."""
    for key, value in row.items():
        if key.startswith("eval/") and isinstance(value, int | float):
            name = "success_rate" if key == "eval/success" else key.rpartition("/")[2]
            if name == score or (score is None and name in SCORES):
                return float(value)
    return None


def _further(summary: Summary, folder: Path) -> dict[str, float]:
    """pass@k, what other sets of problems lost, and what was measured of the finished run."""
    found: dict[str, float] = {}
    after = summary.get("after") or {}
    found |= {f"pass@{k}": float(value) for k, value in (after.get("pass_at_k") or {}).items()}
    evaluations = summary.get("evaluations") or {}
    before_all, after_all = (evaluations.get(when) or {} for when in ("before", "after"))
    for name in list(after_all)[1:]:  # the first set is the score's own
        old, new = (score_of(each.get(name), None) for each in (before_all, after_all))
        if old is not None and new is not None:
            found[f"forgotten {name}"] = old - new
    path = folder / "measured.json"
    if path.is_file():
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found
