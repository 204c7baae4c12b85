"""A resolved recipe as YAML that says what each key means."""

from __future__ import annotations

import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlspec.config.messages import section_of
from rlspec.config.passthrough import CONFIG_CLASSES
from rlspec.config.rlvr_schema import Recipe
from rlspec.config.schema import AnyRecipe
from rlspec.config.sources import read_knobs

_WIDTH = 120


def annotated_recipe(recipe: AnyRecipe) -> str:
    """What `dump_recipe` gives, with a comment at every key of the schema, and TRL's own words at its knobs."""
    lines = _lines(recipe, recipe.algorithm, "")
    return "\n".join(lines) + "\n"


def meaning(field: FieldInfo) -> str:
    """What a key means, and the words that it takes; a section's is its docstring's first sentence."""
    section = section_of(field.annotation)
    about = field.description or (cleandoc(section.__doc__ or "").split("\n")[0].rstrip(".") if section else "")
    words = _words(field.annotation)
    if all(word in about for word in words):
        return about
    return f"{about} ({', '.join(words)})"


def _words(annotation: Any) -> list[str]:
    """The words that stand for themselves in a type."""
    if typing.get_origin(annotation) is Literal:
        return [str(word) for word in typing.get_args(annotation)]
    parts = typing.get_args(annotation) if _is_union(annotation) else ()
    return [word for part in parts for word in _words(part)]


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _lines(section: BaseModel, algorithm: str, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _with_comment(f"{indent}{name}:", meaning(field))
            yield from _lines(value, algorithm, indent + "  ")
        elif isinstance(section, Recipe) and name == "trainer":
            yield from _with_comment(f"{indent}{name}:", meaning(field))
            yield from _knobs(value, algorithm, indent + "  ")
        else:
            plain = section.model_dump(mode="json", include={name})
            yield from _entry(plain, meaning(field), indent)


def _knobs(values: Mapping[str, Any], algorithm: str, indent: str) -> Iterator[str]:
    known = read_knobs(CONFIG_CLASSES[algorithm])
    for name, value in values.items():
        yield from _entry({name: value}, known[name].about, indent)


def _entry(plain: dict[str, Any], about: str, indent: str) -> Iterator[str]:
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=_WIDTH - len(indent))
    first, *others = text.rstrip("\n").split("\n")
    inside = bool(others) and not first.endswith(":")  # a text of several lines: a comment would become part of it
    yield from _with_comment(indent + first, about, above=inside)
    yield from (indent + line for line in others)


def _with_comment(line: str, about: str, *, above: bool = False) -> Iterator[str]:
    """Behind the line where there is room, else above it."""
    if about and (above or len(line) + len(about) + 4 > _WIDTH):
        indent = line[: len(line) - len(line.lstrip())]
        yield from (f"{indent}# {part}" for part in textwrap.wrap(about, _WIDTH - len(indent) - 2))
        about = ""
    yield f"{line}  # {about}" if about else line
