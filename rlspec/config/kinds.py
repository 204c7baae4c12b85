"""The kinds of recipe: which schema and which groups belong to language models and to robots' policies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rlspec.config.paths import is_recipe_file, recipes_folder

if TYPE_CHECKING:
    from rlspec.config.rlvr_schema import Recipe
    from rlspec.config.vla_schema import VlaRecipe

BC = "bc"
ALGORITHMS = ("grpo", "gmpo", "sft", BC)
RLVR_GROUPS = ("data", "reward", "optim", "model")  # in the order in which Hydra merges them
VLA_GROUPS = ("env", "dataset", "optim", "policy")


def algorithm_of(recipe: str) -> str | None:
    """Read the algorithm off a recipe's file, without a YAML parser; None where there is none that is known."""
    path = Path(recipe) if is_recipe_file(recipe) else recipes_folder() / f"{recipe}.yaml"
    text = path.read_text(encoding="utf-8", errors="replace")
    match = re.search(rf"^algorithm: *({'|'.join(ALGORITHMS)})\b", text, re.MULTILINE)
    return match[1] if match else None


def is_robotic(recipe: str) -> bool:
    """Whether a recipe's file is of a robot's policy: `grpo` is an algorithm of both kinds."""
    path = Path(recipe) if is_recipe_file(recipe) else recipes_folder() / f"{recipe}.yaml"
    text = path.read_text(encoding="utf-8", errors="replace")
    return algorithm_of(recipe) == BC or re.search(r"^(?:  - )?policy:", text, re.MULTILINE) is not None


def schema_of(robotic: bool) -> type[Recipe] | type[VlaRecipe]:
    """The schema of recipes of a kind."""
    if robotic:
        from rlspec.config.vla_schema import VlaRecipe

        return VlaRecipe
    from rlspec.config.rlvr_schema import Recipe

    return Recipe


def groups_of(robotic: bool) -> tuple[str, ...]:
    """The groups that recipes of a kind are composed of."""
    return VLA_GROUPS if robotic else RLVR_GROUPS
