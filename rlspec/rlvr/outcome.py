"""The end of a run: its summary, its curves, and the lines that say where everything is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rlspec.checkpoint import list_checkpoints, write_json_atomically
from rlspec.config.schema import Recipe
from rlspec.diagnostics.curves import plot_curves
from rlspec.display import Display
from rlspec.run_directory import SUMMARY, RunDirectory
from rlspec.versions import library_versions

Rates = dict[str, Any]  # metrics as JSON, by data set


@dataclass
class Outcome:
    """How a run ended."""

    steps: int
    status: str = "finished"  # finished, interrupted, collapsed
    seconds: float = 0.0  # without imports; of all sessions of a resumed run, as far as they wrote a summary
    before: Rates | None = None
    after: Rates | None = None


def earlier_seconds(run: RunDirectory) -> float:
    """What the sessions before this one took, as far as they ended by themselves."""
    path = run.path / SUMMARY
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0


def write_outcome(outcome: Outcome, recipe: Recipe, run: RunDirectory) -> dict[str, Any]:
    """Write summary.json and curves.png; returns the summary."""
    first = next(iter(outcome.before or outcome.after or {}), recipe.data.name)
    newest = list_checkpoints(run.checkpoints)
    summary = {
        "recipe": recipe.recipe,
        "status": outcome.status,
        "model": recipe.model.name,
        "optim": recipe.optim.name,
        "seed": recipe.seed,
        "steps": outcome.steps,
        "seconds": outcome.seconds,
        "versions": library_versions(),
        "data": first,
        "before": (outcome.before or {}).get(first),
        "after": (outcome.after or {}).get(first),
        "evaluations": {"before": outcome.before, "after": outcome.after},
        "checkpoint": str(newest[-1]) if newest else None,
        "best": str(run.best) if run.best.is_dir() else None,
    }
    write_json_atomically(run.path / SUMMARY, summary)
    title = f"{run.path.name}: {recipe.algorithm}, {recipe.model.name}, {recipe.optim.name}, seed {recipe.seed}"
    plot_curves(run.read_metrics(), run.path / "curves.png", title=title)
    return summary


def show_outcome(summary: dict[str, Any], recipe: Recipe, run: RunDirectory, display: Display) -> None:
    """The last lines of a run: what it reached, where its files are, how to measure it and how to go on."""
    path, show = run.path, display.line
    before, after = summary["before"], summary["after"]
    display.heading(f"{summary['status']} after {summary['steps']} steps and {summary['seconds']:.0f} s")
    if before and after:
        gain = 100 * (after["sampled_pass_at_1"] - before["sampled_pass_at_1"])
        show(
            f"sampled pass@1 on {summary['data']}: {before['sampled_pass_at_1']:.1%} before, "
            f"{after['sampled_pass_at_1']:.1%} after ({gain:+.1f} points)"
        )
    if summary["status"] == "collapsed":
        show(f"best weights: {summary['best'] or 'none were kept (evaluation.every is not set)'}")
    show(f"summary   {path / SUMMARY}")
    show(f"curves    {path / 'curves.png'}")
    show(f"answers   {run.evaluations}")
    show(f"evaluate  python -m rlspec.evaluate checkpoint={path}")
    show(f"resume    python -m rlspec.train resume={path}" + _further(summary, recipe))


def _further(summary: dict[str, Any], recipe: Recipe) -> str:
    """What a finished run needs to go on: a later end."""
    if summary["status"] != "finished":
        return ""
    if recipe.trainer.get("max_steps", -1) > 0:
        return f" trainer.max_steps={2 * summary['steps']}"
    return f" trainer.num_train_epochs={2 * recipe.trainer['num_train_epochs']:g}"
