"""Rules across the sections of a recipe, one function each: it yields a line per violation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rlspec.config.schema import Recipe

Rule = Callable[[Recipe], Iterator[str]]
def broken_rules(recipe: Recipe) -> list[str]:
    return []
