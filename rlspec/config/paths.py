"""Where recipes and shipped files lie, and what is in them. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from rlspec.errors import CheckpointError, ConfigError, nearest

SHIPPED = ("checkpoints", "recipes")  # folders of the source checkout
GROUPS = ("data", "dataset", "env", "model", "optim", "policy", "reward")


@cache
def recipes_folder() -> Path:
    """The installed package `rlspec_recipes`, which is `recipes/` in a source checkout.

    Raises:
        ConfigError: rlspec is not installed.
    """
    spec = importlib.util.find_spec("rlspec_recipes")  # a top-level package: found without importing it
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the recipes are not installed (package rlspec_recipes): run through `uv run`, or pip install"
        )
    return Path(spec.origin).parent


def initial_folder(init: str) -> Path:
    """The folder that `model.init` names, a run's or a model's.

    Raises:
        CheckpointError: There is none.
    """
    folder = resolve_path(init)
    if not folder.is_dir():
        made_by = [name for name in list_recipes() if folder.name.startswith(f"{name}-")]  # as runs are named
        remedy = f"make it first: python -m rlspec.train recipe={made_by[0]}" if made_by else "name a run, or a folder"
        raise CheckpointError(f"model.init: no folder {init}; {remedy}")
    return folder


def resolve_path(path: str | Path) -> Path:
    """A file or folder named in a recipe: relative to the current folder or, for what ships, to where rlspec lies.

    The result need not exist.
    """
    given = Path(path).expanduser()
    if given.is_absolute() or given.exists() or given.parts[0] not in SHIPPED:
        return given
    root = recipes_folder().parent  # of a source checkout, or site-packages, where the folders bear their import names
    return next((found for found in (root / given, root / f"rlspec_{given}") if found.exists()), given)


def is_recipe_file(name: str) -> bool:
    """Whether `recipe=name` means a resolved recipe's file and not a name."""
    return name.endswith((".yaml", ".yml"))


def list_recipes() -> list[str]:
    """Names for `recipe=`."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def list_group(group: str) -> list[str]:
    """Names for `model=`, `data=`, `optim=` and so on.

    Raises:
        ConfigError: There is no such group.
    """
    if group not in GROUPS:
        raise ConfigError(f"unknown group {group}; {nearest(group, GROUPS)}")
    return sorted(path.stem for path in (recipes_folder() / group).glob("[!_]*.yaml"))


def list_robots() -> list[str]:
    """Names for `robot=`."""
    return sorted(path.stem for path in (recipes_folder() / "robot").glob("*.yaml"))


def headline(recipe: str, group: str = "") -> str:
    """First comment line of a recipe, or of an option of a group."""
    first = (recipes_folder() / group / f"{recipe}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ")


def show(value: Any) -> str:
    """A value as a user would write it, shortened."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
