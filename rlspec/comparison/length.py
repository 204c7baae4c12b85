"""How long an arm trains where arms shall have as many samples, or as much time, as each other."""

from __future__ import annotations

from typing import Any

from rlspec.comparison.plan import Plan
from rlspec.config.load import load_any_recipe
from rlspec.errors import ConfigError


def same_samples(plan: Plan, arm: str) -> tuple[str, ...]:
    """Steps with which an arm takes as many samples as the first one takes by its recipe."""
    first = next(iter(plan.arms))
    wanted = _steps(_recipe(plan, first)) * _samples(_recipe(plan, first))
    recipe = _recipe(plan, arm)
    return _override(recipe, wanted / _samples(recipe))


def same_seconds(plan: Plan, arm: str, ratio: float) -> tuple[str, ...]:
    """Steps with which an arm takes as long as the baseline, whose steps take `ratio` times as long as its own."""
    recipe = _recipe(plan, arm)
    return _override(recipe, _steps(recipe) * ratio)


def _recipe(plan: Plan, arm: str) -> Any:
    return load_any_recipe(plan.arguments(arm, seed=plan.seeds[0], lr=None))


def _steps(recipe: Any) -> int:
    if hasattr(recipe, "training"):
        return int(recipe.training.steps)
    if recipe.trainer.get("max_steps", -1) <= 0:
        raise ConfigError("equal: arms are counted in steps; set trainer.max_steps instead of epochs")
    return int(recipe.trainer["max_steps"])


def _samples(recipe: Any) -> int:
    """Of one step: answers, demonstrations' frames, or episodes."""
    if getattr(recipe, "policy", None) is not None and recipe.algorithm == "grpo":
        return int(recipe.grpo.groups_per_step * recipe.grpo.group_size)
    if hasattr(recipe, "training"):
        return int(recipe.training.batch_size * recipe.training.gradient_accumulation)
    return int(recipe.batch.prompts_per_step * recipe.batch.samples_per_prompt)


def _override(recipe: Any, steps: float) -> tuple[str, ...]:
    key = "training.steps" if hasattr(recipe, "training") else "trainer.max_steps"
    return (f"{key}={max(1, round(steps))}",)
