"""The command that gives a run again: the short one where it provably gives the same recipe, else the recipe itself."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from rlspec.errors import UserError
from rlspec.reporting.reading import RunRecord, items, mapping

_PLACE = ("run", "output_dir", "resume")  # where a run lies, not what it is
_WORDS = ("null", "true", "false", "nan", "inf")  # which Hydra reads as something else than text


@dataclass(frozen=True)
class Reproduction:
    """How to run it again.

    Attributes:
        command: A line for the shell; empty where there is no recipe.
        recipe: The resolved recipe as YAML, without where the run lay.
        needs_file: The command reads the recipe from a file recipe.yaml.
    """

    command: str
    recipe: str
    needs_file: bool


def reproduce(run: RunRecord) -> Reproduction:
    """The command for a run."""
    stored = {key: value for key, value in run.recipe.items() if key not in _PLACE}
    if not stored:
        return Reproduction("", "", needs_file=False)
    text = yaml.safe_dump(stored, sort_keys=False, allow_unicode=True, width=100)
    arguments = _remembered(text)
    chosen = arguments or ["recipe=recipe.yaml"]
    return Reproduction(f"python -m rlspec.train {shlex.join(chosen)}", text, needs_file=arguments is None)


@cache
def _remembered(text: str) -> list[str] | None:
    """A watched run's recipe stays as it is."""
    return short_arguments(yaml.safe_load(text))


def short_arguments(stored: Mapping[str, Any]) -> list[str] | None:
    """`recipe=NAME` with the options and values that differ from it, if that gives the same recipe; else None.

    Plugins are never imported for it: a page may be made of a folder that somebody else has sent.
    """
    from rlspec.config.kinds import groups_of
    from rlspec.config.load import load_any_recipe
    from rlspec.config.paths import list_group, list_recipes
    from rlspec.config.rules import list_optimizers

    name = stored.get("recipe")
    if name not in list_recipes() or items(mapping(stored.get("optim")).get("plugins")):
        return None
    try:
        arguments = [f"recipe={name}"]
        plain = load_any_recipe(arguments).model_dump(mode="json")
        for group in groups_of("policy" in stored):
            chosen = mapping(stored.get(group)).get("name")
            known = list_optimizers() if group == "optim" else list_group(group)
            if chosen in known and chosen != mapping(plain.get(group)).get("name"):
                arguments.append(f"{group}={chosen}")
        composed = load_any_recipe(arguments).model_dump(mode="json") if len(arguments) > 1 else plain
        arguments += [f"{key}={_written(value)}" for key, value in _differences(composed, stored)]
        again = load_any_recipe(arguments).model_dump(mode="json")
    except UserError:
        return None
    return arguments if all(again.get(key) == value for key, value in stored.items()) else None


def _differences(base: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in wanted.items():
        if isinstance(value, dict) and value and isinstance(base.get(key), dict) and base[key]:
            found += _differences(base[key], value, f"{prefix}{key}.")
        elif base.get(key) != value or key not in base:
            found.append((f"{prefix}{key}", value))
    return found


def _written(value: Any) -> str:
    """A value in Hydra's grammar."""
    from rlspec.config.overrides import quote

    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, str):
        return value if re.fullmatch(r"[A-Za-z_/][\w./-]*", value) and value not in _WORDS else quote(value)
    return json.dumps(value)
