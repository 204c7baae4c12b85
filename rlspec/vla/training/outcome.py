"""What a run of a robot's policy says of its outcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlspec.checkpoint import list_checkpoints, read_manifest
from rlspec.config.vla_schema import Dataset, Policy, VlaRecipe
from rlspec.run_directory import RunDirectory
from rlspec.runtime.card import CardRow, Origin, Proportion
from rlspec.runtime.outcome import Ending, RunOutcome
from rlspec.vla.training.evaluations import SCORE


def describe_ending(outcome: RunOutcome, recipe: VlaRecipe, directory: RunDirectory) -> Ending:
    """Success rates, the best and the last weights, and the override that makes a run longer."""
    env = recipe.env.name if recipe.env else None
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
            "env": env,
            "loss": losses[-1] if losses else None,
            **measured,
            "best_step": best["step"] if best else None,
            "best_success_rate": best[SCORE] if best else None,
        },
        lines=lines,
        evaluations="episodes",
        further="evaluation.stop_at_success=null" if _early(outcome, recipe) else f"training.steps={2 * outcome.steps}",
        origin=_origin(recipe.policy, recipe.dataset, env),
        measured=list(_measured(outcome, env or "")),
    )


def _early(outcome: RunOutcome, recipe: VlaRecipe) -> bool:
    return outcome.status == "finished" and outcome.steps < recipe.training.steps


def _origin(policy: Policy, data: Dataset, env: str | None) -> Origin:
    return Origin(
        library="lerobot",
        task="robotics",
        base=policy.path,
        revision=None,
        data=f"`{data.name}`" + (f" in `{env}`" if env else ""),
        datasets=[data.repo_id] if data.repo_id is not None else [],
        load=f"import rlspec.vla.policies  # which knows {policy.type}\n"
        "from lerobot.policies.factory import get_policy_class\n\n"
        f'policy = get_policy_class("{policy.type}").from_pretrained(FOLDER)',
    )


def _measured(outcome: RunOutcome, env: str) -> Iterator[CardRow]:
    before, after = _rates(outcome.before), _rates(outcome.after)
    for task in dict.fromkeys([*before, *after]):
        yield CardRow(f"success, {task}", env, before.get(task), after.get(task))


def _rates(result: dict[str, Any] | None) -> dict[str, Proportion]:
    if result is None:
        return {}
    each = {**result["tasks"], "all tasks": result["total"]} if len(result["tasks"]) > 1 else result["tasks"]
    return {task: Proportion(rate[SCORE], *rate["ci95"]) for task, rate in each.items()}


def _success(result: dict[str, Any]) -> str:
    low, high = result["total"]["ci95"]
    return f"{result[SCORE]:.1%} (95% interval {low:.1%} to {high:.1%})"
