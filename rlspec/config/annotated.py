"""A recipe, or the settings of a command, as YAML that says what each key means."""

from __future__ import annotations

import textwrap
import typing
from collections.abc import Collection, Iterator, Mapping
from inspect import cleandoc
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from rlspec.config.messages import section_of
from rlspec.config.passthrough import CONFIG_CLASSES
from rlspec.config.rlvr_schema import Recipe
from rlspec.config.schema import AnyRecipe, documented, key_of
from rlspec.config.sources import Knob, read_knobs

_WIDTH = 120


def annotated_recipe(recipe: AnyRecipe) -> str:
    """What `dump_recipe` gives, with a comment at every key of the schema, and TRL's own words at its knobs."""
    knobs = read_knobs(CONFIG_CLASSES[recipe.algorithm]) if isinstance(recipe, Recipe) else {}
    return annotated(recipe, knobs)


def annotated(settings: BaseModel, knobs: Mapping[str, Knob] | None = None, *, without: Collection[str] = ()) -> str:
    """A section as YAML; `knobs` are what a mapping `trainer` in it may hold, `without` keys that are left out."""
    return "\n".join(_lines(settings, knobs or {}, "", without)) + "\n"


def meaning(section: type[BaseModel], name: str) -> str:
    """What a key means, and the words that it takes.

    Its field's description says so, else the docstring of its section, else, of a section, its own first sentence.
    """
    field = section.model_fields[name]
    own, key = section_of(field.annotation), key_of(field)
    about = field.description or (key.about if key else documented(section).get(name, ""))
    if not about and own is not None:
        about = cleandoc(own.__doc__ or "").split("\n")[0].rstrip(".")
    words = _words(field.annotation)
    if all(word in about for word in words):
        return about
    return f"{about} ({', '.join(words)})".strip()


def _words(annotation: Any) -> list[str]:
    """The words that stand for themselves in a type, or in a list of it."""
    if typing.get_origin(annotation) is Literal:
        return [str(word) for word in typing.get_args(annotation)]
    return [word for part in typing.get_args(annotation) for word in _words(part)]


def _lines(section: BaseModel, knobs: Mapping[str, Knob], indent: str, without: Collection[str] = ()) -> Iterator[str]:
    for name in (each for each in type(section).model_fields if each not in without):
        value, about = getattr(section, name), meaning(type(section), name)
        if isinstance(value, BaseModel):
            yield from _with_comment(f"{indent}{name}:", about)
            yield from _lines(value, knobs, indent + "  ")
        elif name == "trainer" and knobs:
            yield from _with_comment(f"{indent}{name}:", about)
            for knob, setting in value.items():
                yield from _entry({knob: setting}, knobs[knob].about, indent + "  ")
        else:
            yield from _entry(section.model_dump(mode="json", include={name}), about, indent)


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
