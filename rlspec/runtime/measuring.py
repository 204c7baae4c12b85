"""Which recipe a measurement goes by, and where its results go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlspec.checkpoint import MANIFEST
from rlspec.errors import ConfigError

if TYPE_CHECKING:
    from rlspec.config.rlvr_schema import Recipe
    from rlspec.config.vla_schema import VlaRecipe


def is_robot_policy(folder: str) -> bool:
    """Whether a recipe for robots wrote the weights."""
    from rlspec.config.kinds import is_robotic

    stored = Path(folder) / "recipe.yaml"
    return stored.is_file() and is_robotic(str(stored))


def stored_vla_recipe(weights: str) -> VlaRecipe | None:
    """The recipe that a robot's policy was trained by, if it is one of ours."""
    from rlspec.config.load import load_vla_recipe

    return load_vla_recipe([f"recipe={Path(weights) / 'recipe.yaml'}"]) if is_robot_policy(weights) else None


def simulation_recipe(weights: str, overrides: Sequence[str], *, env: str | None) -> VlaRecipe:
    """The recipe that the policy was trained by, or any, with the environment and the settings asked for.

    Raises:
        ConfigError: There is no environment, or a value is not allowed.
    """
    from rlspec.config.load import load_vla_recipe
    from rlspec.config.paths import list_group

    stored = Path(weights) / "recipe.yaml" if is_robot_policy(weights) else None
    if stored is None and env is None:
        raise ConfigError(f"env: required; add env=NAME; allowed: {', '.join(list_group('env'))}")
    # Without a recipe of the policy any will do: nothing but `env`, `evaluation` and `device` is read.
    base = f"recipe={stored}" if stored else "recipe=vla_franka"
    recipe = load_vla_recipe([base, *([f"env={env}"] if env else []), *overrides])
    if recipe.env is None:
        raise ConfigError(f"env: {weights} was trained without a simulator; add env=NAME")
    return recipe


def simulation_output(weights: str, env: str, *, named: bool) -> Path:
    """`evaluations/` of the run that wrote the policy; for others a folder below checkpoints/."""
    from rlspec.config.overrides import safe_name

    folder = default_output(weights)
    if folder.parent.parent != Path("checkpoints"):
        return folder.with_name(f"{folder.name}-{env}") if named else folder
    return folder.with_name(f"{env}-{safe_name(folder.name)}")


def evaluation_recipe(folder: str, overrides: Sequence[str], *, data: Sequence[str] | None) -> Recipe:
    """The recipe of the run that wrote the weights, or the profile of any model, with the data asked for."""
    from rlspec.config.load import load_recipe
    from rlspec.config.overrides import DATA_SUFFIXES

    stored = Path(folder) / "recipe.yaml"
    base = [f"recipe={stored}"] if stored.is_file() else ["recipe=grpo_math", f"model={folder}"]
    if data is None:
        return load_recipe([*base, *overrides])
    if len(data) > 1:
        if file := next((name for name in data if name.lower().endswith(DATA_SUFFIXES)), None):
            raise ConfigError(f"data={file}: measured on alone; give one file, or names of recipes/data")
        return load_recipe([*base, f"evaluation.data=[{','.join(data)}]", *overrides])
    recipe = load_recipe([*base, f"data={data[0]}", "evaluation.data=[]", *overrides])
    if recipe.data.path is not None and Path(recipe.data.path).is_file() and recipe.data.test_path is None:
        recipe.data.test_split = recipe.data.split  # a file that was named is measured on as a whole
    return recipe


def default_output(folder: str) -> Path:
    """`evaluations/` of the run that wrote the checkpoint; for other models a folder below checkpoints/."""
    path = Path(folder).absolute()
    if (path / MANIFEST).is_file() and path.parent.name == "checkpoints":
        return path.parent.parent / "evaluations" / path.name
    return Path("checkpoints") / "evaluations" / path.name
