"""The usage of a command, off its schema."""

from __future__ import annotations

import textwrap
import typing
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from rlspec.config.command import CommandLine, is_flag
from rlspec.config.messages import find_field, section_of
from rlspec.config.paths import show
from rlspec.config.schema import key_of

_WIDTH = 120
_LABEL = 28  # longer labels stand on a line of their own
_VALUES = {int: "N", float: "X", bool: "true|false", str: "TEXT", Path: "PATH"}


def usage(schema: type[CommandLine]) -> str:
    """Synopsis, the schema's docstring, a line per key, and what the schema adds."""
    lines = [f"python -m rlspec.{schema.command} {each}".rstrip() for each in schema.synopsis]
    text = ["usage: " + "\n       ".join(lines), "", textwrap.indent(cleandoc(schema.__doc__ or ""), "  "), ""]
    rows = list(_rows(schema))
    width = max((len(label) for label, _ in rows if len(label) <= _LABEL), default=0)
    for label, about in rows:
        if not about:
            text += ["", f"{label}:"]
            continue
        column = f"  {label:{width}}  "
        wrapped = textwrap.wrap(about, _WIDTH - width - 4, break_long_words=False, break_on_hyphens=False)
        if len(label) > width:
            text.append(f"  {label}")
            column = " " * (width + 4)
        text.append(column + wrapped[0])
        text += [" " * (width + 4) + line for line in wrapped[1:]]
    return "\n".join([*text, *([schema.more()] if schema.more() else []), ""])


def _rows(schema: type[CommandLine]) -> Iterator[tuple[str, str]]:
    """Label and description; a heading has none."""
    prefixes = {mapping: key for key, mapping in schema.below.items()}
    shorter = {full: short for short, full in schema.short.items()}
    group = ""
    for name, field in schema.model_fields.items():
        key, section = key_of(field), section_of(field.annotation)
        if key is not None and key.group and key.group != group:
            group = key.group
            yield group, ""
        if key is not None:
            yield (
                _label(prefixes.get(name, shorter.get(name, name)), field, is_prefix=name in prefixes),
                _about(key.about, field),
            )
        for short, full in schema.short.items():
            inner = find_field(full.split("."), schema)[1] if full.startswith(f"{name}.") else None
            if inner is not None and (about := key_of(inner)):
                yield _label(short, inner), _about(about.about, inner)
        if section is not None:
            yield f"{name}.KEY", ", ".join(section.model_fields)


def _label(name: str, field: FieldInfo, *, is_prefix: bool = False) -> str:
    key = key_of(field)
    if is_flag(field):
        return f"--{name}"
    value = (key and key.value) or _placeholder(field.annotation)
    return f"{name}.{value}" if is_prefix else f"{name}={value}"


def _placeholder(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    found = (_placeholder(argument) for argument in typing.get_args(annotation) if argument is not type(None))
    return _VALUES.get(annotation) or next(found, "VALUE")


def _about(about: str, field: FieldInfo) -> str:
    default = field.default
    if field.is_required() or default is None or default is False or default in ("", (), []) or "default" in about:
        return about
    if isinstance(default, dict):
        return about
    words = ",".join(map(str, default)) if isinstance(default, list | tuple) else show(default)
    return f"{about} (default {words})"
