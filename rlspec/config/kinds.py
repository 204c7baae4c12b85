"""The kinds of recipe: which schema and which groups belong to an algorithm."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rlspec.config.paths import is_recipe_file, recipes_folder

if TYPE_CHECKING:
    from rlspec.config.schema import Recipe
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


def schema_of(algorithm: str | None) -> type[Recipe] | type[VlaRecipe]:
    """The schema of recipes with that algorithm."""
    if algorithm == BC:
        from rlspec.config.vla_schema import VlaRecipe

        return VlaRecipe
    from rlspec.config.schema import Recipe

    return Recipe


def groups_of(algorithm: str | None) -> tuple[str, ...]:
    """The groups that recipes with that algorithm are composed of."""
    return VLA_GROUPS if algorithm == BC else RLVR_GROUPS
