"""What a run of a robot's policy says of its outcome."""

from __future__ import annotations

from typing import Any

from rlspec.checkpoint import list_checkpoints, read_manifest
from rlspec.config.vla_schema import VlaRecipe
from rlspec.run_directory import RunDirectory
from rlspec.runtime.outcome import Ending, RunOutcome
from rlspec.vla.training.evaluations import SCORE


def describe_ending(outcome: RunOutcome, recipe: VlaRecipe, directory: RunDirectory) -> Ending:
    """Success rates, the best and the last weights, and the override that makes a run longer."""
    best = read_manifest(directory.best) if directory.best.is_dir() else None
    losses = [row["loss"] for row in directory.read_metrics() if isinstance(row.get("loss"), float)]
    newest = list_checkpoints(directory.checkpoints)
    measured = {"before": outcome.before, "after": outcome.after}
    lines = [f"success {label}: {_success(result)}" for label, result in measured.items() if result]
    if best:
        lines.append(f"best      {directory.best} (step {best['step']}, {best[SCORE]:.1%})")
    lines.append(f"weights   {newest[-1] if newest else None}")
    return Ending(
        subject=recipe.policy.name,
        entries={
            "policy": recipe.policy.name,
            "data": recipe.dataset.name,
            "env": recipe.env.name if recipe.env else None,
            "loss": losses[-1] if losses else None,
            **measured,
            "best_step": best["step"] if best else None,
            "best_success_rate": best[SCORE] if best else None,
        },
        lines=lines,
        evaluations="episodes",
        further=f"training.steps={2 * outcome.steps}",
    )


def _success(result: dict[str, Any]) -> str:
    low, high = result["total"]["ci95"]
    return f"{result[SCORE]:.1%} (95% interval {low:.1%} to {high:.1%})"
