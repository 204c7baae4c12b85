"""Which tools a recipe may name, and when they make sense. No code of the user's is run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from rlspec.config.extras import not_installed
from rlspec.config.functions import is_function, missing_function
from rlspec.config.rlvr_schema import Recipe
from rlspec.errors import nearest

TOOLS = ("calculator",)  # built in, see rlspec.rlvr.tools


def tool_use(recipe: Recipe) -> Iterator[str]:
    """Tools and environments are there, and something can be learnt with them."""
    for name in recipe.tools:
        if is_function(name):
            yield from missing_function(name, f"tools={name}")
        elif name not in TOOLS:
            yield f"tools={name}: unknown; {nearest(name, TOOLS)}; or your own, module:function"
    environment = recipe.environment
    places = environment.values() if isinstance(environment, dict) else [environment] if environment else []
    for place in places:
        if is_function(place):
            yield from missing_function(place, f"environment={place}")
        else:
            yield f"environment={place}: must be module:Class or file.py:Class"
    if (recipe.tools or environment) and importlib.util.find_spec("jmespath") is None:
        yield f"tools: {not_installed('jmespath', 'train')} (it reads calls off an answer)"
    yield from _without_effect(recipe)


def _without_effect(recipe: Recipe) -> Iterator[str]:
    calls = recipe.tools or recipe.environment
    if "max_tool_calling_iterations" in recipe.trainer and not calls:
        given = recipe.trainer["max_tool_calling_iterations"]
        yield f"trainer.max_tool_calling_iterations={given}: has no effect without tools or environment"
    if recipe.algorithm == "sft" and recipe.environment:
        yield f"environment={recipe.environment}: algorithm sft imitates and calls nothing; remove it"
    if recipe.corruption is not None and recipe.corruption.call and "calculator" not in recipe.tools:
        yield f"corruption.call={recipe.corruption.call:g}: asks the calculator; add tools=calculator"
    if "environment" in [reward.name for reward in recipe.rewards] and not recipe.environment:
        yield "reward=environment: there is none; add environment=module:Class"
