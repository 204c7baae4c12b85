"""The end of a run: its summary, its curves, and the lines that say where everything is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rlspec.checkpoint import list_checkpoints, read_manifest, write_json_atomically
from rlspec.config.vla_schema import VlaRecipe
from rlspec.diagnostics.curves import plot_curves
from rlspec.display import Display
from rlspec.run_directory import SUMMARY, RunDirectory
from rlspec.versions import library_versions
from rlspec.vla.training.evaluations import SCORE


@dataclass
class Outcome:
    """How a run ended."""

    steps: int
    status: str  # finished, interrupted
    seconds: float = 0.0  # without imports; of all sessions of a resumed run, as far as they wrote a summary
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


def earlier_seconds(run: RunDirectory) -> float:
    """What the sessions before this one took, as far as they ended by themselves."""
    path = run.path / SUMMARY
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0


def write_outcome(outcome: Outcome, recipe: VlaRecipe, run: RunDirectory) -> dict[str, Any]:
    """Write summary.json and curves.png; returns the summary."""
    newest = list_checkpoints(run.checkpoints)
    best = read_manifest(run.best) if run.best.is_dir() else None
    summary = {
        "recipe": recipe.recipe,
        "status": outcome.status,
        "policy": recipe.policy.name,
        "optim": recipe.optim.name,
        "seed": recipe.seed,
        "steps": outcome.steps,
        "seconds": outcome.seconds,
        "versions": library_versions(),
        "data": recipe.dataset.name,
        "env": recipe.env.name if recipe.env else None,
        "loss": _last_loss(run),
        "before": outcome.before,
        "after": outcome.after,
        "evaluations": {"before": outcome.before, "after": outcome.after},
        "checkpoint": str(newest[-1]) if newest else None,
        "best": str(run.best) if best else None,
        "best_step": best["step"] if best else None,
        "best_success_rate": best[SCORE] if best else None,
    }
    write_json_atomically(run.path / SUMMARY, summary)
    title = f"{run.path.name}: {recipe.policy.name}, {recipe.optim.name}, seed {recipe.seed}"
    plot_curves(run.read_metrics(), run.path / "curves.png", title=title)
    return summary


def _last_loss(run: RunDirectory) -> float | None:
    losses = [row["loss"] for row in run.read_metrics() if isinstance(row.get("loss"), float)]
    return losses[-1] if losses else None


def show_outcome(summary: dict[str, Any], run: RunDirectory, display: Display) -> None:
    """The last lines of a run: what it reached, where its files are, how to measure it and how to go on."""
    path, show = run.path, display.line
    display.heading(f"{summary['status']} after {summary['steps']} steps and {summary['seconds']:.0f} s")
    for label in ("before", "after"):
        if summary[label]:
            show(f"success {label}: {summary[label][SCORE]:.1%}{_interval(summary[label])}")
    if summary["best"]:
        show(f"best      {summary['best']} (step {summary['best_step']}, {summary['best_success_rate']:.1%})")
    show(f"weights   {summary['checkpoint']}")
    show(f"summary   {path / SUMMARY}")
    show(f"curves    {path / 'curves.png'}")
    if run.evaluations.is_dir():
        show(f"episodes  {run.evaluations}")
    show(f"evaluate  python -m rlspec.evaluate checkpoint={path}")
    further = f" training.steps={2 * summary['steps']}" if summary["status"] == "finished" else ""
    show(f"resume    python -m rlspec.train resume={path}{further}")


def _interval(result: dict[str, Any]) -> str:
    low, high = result["total"]["ci95"]
    return f" (95% interval {low:.1%} to {high:.1%})"
