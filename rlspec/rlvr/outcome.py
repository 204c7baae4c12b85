"""What a run of a language model says of its outcome."""

from __future__ import annotations

from rlspec.config.schema import Recipe
from rlspec.run_directory import RunDirectory
from rlspec.runtime.outcome import Ending, RunOutcome


def describe_ending(outcome: RunOutcome, recipe: Recipe, directory: RunDirectory) -> Ending:
    """Rates on the first data set, and the override that makes a run longer."""
    first = next(iter(outcome.before or outcome.after or {}), recipe.data.name)
    before, after = (outcome.before or {}).get(first), (outcome.after or {}).get(first)
    lines = []
    if before and after:
        rates = before["sampled_pass_at_1"], after["sampled_pass_at_1"]
        gain = f"{rates[0]:.1%} before, {rates[1]:.1%} after ({100 * (rates[1] - rates[0]):+.1f} points)"
        lines.append(f"sampled pass@1 on {first}: {gain}")
    if outcome.status == "collapsed":
        kept = directory.best if directory.best.is_dir() else "none were kept (evaluation.every is not set)"
        lines.append(f"best weights: {kept}")
    if recipe.trainer.get("max_steps", -1) > 0:
        further = f"trainer.max_steps={2 * outcome.steps}"
    else:
        further = f"trainer.num_train_epochs={2 * recipe.trainer['num_train_epochs']:g}"
    return Ending(
        subject=f"{recipe.algorithm}, {recipe.model.name}",
        entries={"model": recipe.model.name, "data": first, "before": before, "after": after},
        lines=lines,
        evaluations="answers",
        further=further,
    )
