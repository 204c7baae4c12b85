"""One line per mistake: the dotted key, the value, what is allowed, the nearest name."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rlspec.config.paths import show
from rlspec.config.rlvr_schema import ONE, SEVERAL, Recipe
from rlspec.config.schema import Key, key_of
from rlspec.config.synonyms import same_meaning
from rlspec.errors import ConfigError, nearest

MOST_LINES = 5
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_ALTERNATIVE = re.compile(rf"{ONE}|{SEVERAL}|bool|int|float|str|none|[a-z-]+\[.*\]")  # pydantic's
Root = type[BaseModel]  # the schema of a kind of recipe
_LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def join_lines(lines: Sequence[str]) -> str:
    """At most five lines, each mistake once."""
    distinct = list(dict.fromkeys(lines))
    hidden = len(distinct) - MOST_LINES
    return "\n".join(distinct[:MOST_LINES] + ([f"... and {hidden} more"] if hidden > 0 else []))


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section behind `Section`, `Section | None` or `list[Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (section_of(argument) for argument in typing.get_args(annotation))
    return next((section for section in found if section is not None), None)


def find_field(path: Sequence[str | int], root: Root = Recipe) -> tuple[list[str], FieldInfo | None]:
    """Follow a path through a schema as far as it goes.

    Returns:
        The part of the path that exists (positions in lists and names in mappings of sections included), and its last
        field (None for an empty path).
    """
    return _follow(path, root)[:2]


def _follow(path: Sequence[str | int], root: Root) -> tuple[list[str], FieldInfo | None, type[BaseModel] | None]:
    """As `find_field`, and the section in which the next part has to be; None where there is none."""
    known: list[str] = []
    field: FieldInfo | None = None
    section: type[BaseModel] | None = root
    entered = False  # the last part is a position or a name in what the field holds
    for part in path:
        named = None if field is None or entered else _sections_by_name(field.annotation)
        if named or (field is not None and not entered and _is_list(field) and str(part).isdigit()):
            known.append(str(part))
            section, entered = named or section, True
            continue
        if section is None or isinstance(part, int) or part not in section.model_fields:
            break
        field, entered = section.model_fields[part], False
        known.append(part)
        section = None if _sections_by_name(field.annotation) else section_of(field.annotation)
    return known, field, section


def _values_of(annotation: Any) -> Any:
    """What the values of a `dict` are, alone or among other types; None where there is no `dict`."""
    parts = map(_bare, (annotation, *typing.get_args(annotation)))
    return next((typing.get_args(part)[1] for part in parts if typing.get_origin(part) is dict), None)


def _sections_by_name(annotation: Any) -> type[BaseModel] | None:
    """The section behind `dict[str, Section]`."""
    return section_of(_values_of(annotation))


def describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a field may hold, in words."""
    annotation = _bare(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        limits = [item for each in arguments[1:] for item in getattr(each, "metadata", [each])]
        return describe(arguments[0], limits)
    if origin is Literal:
        words = ", ".join(show(value) for value in arguments)
    elif origin in (typing.Union, types.UnionType):
        words = " or ".join(describe(argument) for argument in arguments)
    elif origin is list:
        words = f"a list, each {describe(arguments[0])}"
    elif origin is tuple:
        words = f"a list of {len(arguments)}, each {describe(arguments[0])}"
    elif section_of(annotation) is not None or origin is dict:
        words = "a mapping"
    else:
        words = _WORDS.get(annotation, str(annotation))
    signs = [
        f"{sign} {_plain(getattr(item, name))}"
        for item in metadata
        for name, sign in _LIMITS.items()
        if hasattr(item, name)
    ]
    if not signs:
        return words
    number, null, _ = words.partition(" or null")
    return f"{number} {' and '.join(signs)}{null}"


def _plain(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _choices(annotation: Any) -> list[str]:
    """The words that a field may hold."""
    if typing.get_origin(annotation) is Literal:
        return [value for value in typing.get_args(annotation) if isinstance(value, str)]
    return [word for argument in typing.get_args(annotation) for word in _choices(argument)]


@cache
def leaves(section: Root = Recipe, prefix: str = "") -> tuple[str, ...]:
    """All dotted keys of a recipe that hold a value; ROLE and the like stand for names that one chooses."""
    names: list[str] = []
    for name, field in section.model_fields.items():
        inner, by_name = section_of(field.annotation), _sections_by_name(field.annotation)
        if by_name:
            names += leaves(by_name, f"{prefix}{name}.{name.rstrip('s').upper()}.")
        elif inner is not None and typing.get_origin(_bare(field.annotation)) is not list:
            names += leaves(inner, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return tuple(names)


def unknown_key(path: Sequence[str], value: Any = None, root: Root = Recipe, *, typed: Collection[str] = ()) -> str:
    """The line for a key that the schema does not have.

    Near is, in this order: a key of the same meaning, the same leaf elsewhere, a key of similar spelling.

    Args:
        path: The key's parts.
        value: As it was given.
        root: The schema.
        typed: The keys as a command line has them, where they are not those of the schema.
    """
    known, field, section = _follow(path, root)
    key = ".".join(str(part) for part in path)
    given = "" if value is None else f"={show(value)}"
    typed = {*typed, *(name.partition(".")[0] for name in typed)}
    beside = section.model_fields if section is not None and len(known) == len(path) - 1 > 0 else ()
    alike = same_meaning(
        key,
        lambda other: bool({other, f"--{other}"} & typed) if typed else holds(other, root),
        beside=beside,
    )
    alike = [f"--{name}" if f"--{name}" in typed else name for name in alike]
    elsewhere = [leaf for leaf in leaves(root) if leaf.rpartition(".")[2] == path[-1] and leaf != key]
    if section is None and not alike:
        holder = ".".join(known)
        return f"{key}: unknown key; {holder} is no mapping but {describe(field.annotation) if field else 'a value'}"
    if alike:
        hint = f"did you mean {' or '.join(alike)}?"
    elif elsewhere and len(elsewhere) <= 3:
        hint = f"did you mean {' or '.join(elsewhere)}?"
    elif not known and typed:
        hint = nearest(str(path[0]).lstrip("-"), {name.partition(".")[0] for name in typed})
    else:
        assert section is not None
        hint = nearest(str(path[len(known)]), section.model_fields)
    return f"{key}{given}: unknown key; {hint}"


def holds(key: str, root: Root) -> bool:
    """Whether a schema has a key, or a free mapping for it."""
    path = key.split(".")
    known, field = find_field(path, root)
    return len(known) == len(path) or (field is not None and len(known) + 1 == len(path) and _is_free(field))


def explain(error: ValidationError, root: Root = Recipe) -> list[str]:
    """Pydantic's errors as lines; the alternatives of a union become one."""
    lines: dict[str, str] = {}
    for location, item in _located(error):
        if item["type"] == "extra_forbidden":
            lines[".".join(map(str, location))] = unknown_key([str(part) for part in location], item["input"], root)
            continue
        known, field = find_field(location, root)
        key = ".".join(known)
        if item["type"] == "value_error":  # of a validator: what is wrong with a value, or a whole line
            said = item["ctx"]["error"]
            whole = not key or isinstance(said, ConfigError)
            lines.setdefault(key, str(said) if whole else f"{key}={show(item['input'])}: {said}")
        elif item["type"] == "missing" and not isinstance(location[-1], int):
            lines.setdefault(key, f"{key}: required; {_wanted(key, field)}")
        elif item["type"] == "missing":  # an element of a list of fixed length
            lines.setdefault(".".join(known[:-1]), f"{'.'.join(known[:-1])}: {_allowed(field)}")
        elif field is not None and _is_free(field) and len(location) > len(known):  # a value in a mapping
            within = ".".join(map(str, location))
            lines.setdefault(
                within, f"{within}={show(item['input'])}: must be {describe(_values_of(field.annotation))}"
            )
        else:
            lines.setdefault(key, f"{key}={show(item['input'])}: {_allowed(field, item['input'])}")
    return list(lines.values())


def _located(error: ValidationError) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Each error and its key, without the names of a union's alternatives; of these the one that fits best."""
    errors = error.errors(include_url=False)
    keys = [tuple(part for part in item["loc"] if not _ALTERNATIVE.fullmatch(str(part))) for item in errors]
    for key, item in zip(keys, errors, strict=True):
        deeper = any(len(other) > len(key) and other[: len(key)] == key for other in keys)
        if not (deeper and len(key) < len(item["loc"])):
            yield key, item


def _wanted(key: str, field: FieldInfo | None) -> str:
    about: Key | None = None if field is None else key_of(field)
    return f"add {key}={about.value}, {about.about}" if about and about.value else _allowed(field)


def _allowed(field: FieldInfo | None, given: Any = None) -> str:
    if field is None:
        return "not allowed"
    words = f"must be {describe(field.annotation, field.metadata)}"
    close = nearest(given, _choices(field.annotation), most=0) if isinstance(given, str) else ""
    return f"{words}; {close}" if close.startswith("did you mean") else words


def wrong_override(key: str, scalars: Sequence[Any], root: Root = Recipe) -> str | None:
    """The line for an override of a key that does not exist, or with a value of the wrong type.

    Args:
        key: dotted.
        scalars: the value, or nothing where it cannot be told yet.
        root: the schema of this kind of recipe.
    """
    path = key.split(".")
    known, field = find_field(path, root)
    if len(known) < len(path):
        return None if field is not None and _is_free(field) else unknown_key(path, root=root)
    position = next((index for index, part in enumerate(path) if part.isdigit()), None)
    if position is not None:
        return _inside_list(key, path[:position], path[position + 1 :], scalars)
    if not scalars or takes_text(key, root) or _accepts(key, scalars[0], root):
        return None
    words = f"{key}={show(scalars[0])}: {_allowed(field)}"
    namesakes = [leaf for leaf in leaves(root) if leaf.startswith(f"{path[0]}.") and leaf.endswith(f".{path[-1]}")]
    fitting = [leaf for leaf in namesakes if leaf != key and _accepts(leaf, scalars[0], root)]
    return f"{words}; did you mean {' or '.join(fitting)}?" if fitting else words


def _accepts(key: str, value: Any, root: Root) -> bool:
    """The schema's own verdict on one value; what is in a mapping without a schema is not judged."""
    *above, name = key.split(".")
    holder = _follow(above, root)[2]
    if holder is None:
        return True
    try:
        holder.__pydantic_validator__.validate_assignment(holder.model_construct(), name, value)
    except ValidationError:
        return False
    return True


def _inside_list(key: str, holder: Sequence[str], rest: Sequence[str], scalars: Sequence[Any]) -> str:
    given = f"={show(scalars[0])}" if scalars else ""
    element = f"{{{'.'.join(rest)}: ...}}" if rest else "..."
    return f"{key}{given}: one element of a list cannot be set alone; give all of it: {'.'.join(holder)}=[{element}]"


def takes_text(key: str, root: Root = Recipe) -> bool:
    """Whether a key holds text: then what a command line assigns is text, whatever it looks like."""
    known, field = find_field(key.split("."), root)
    return field is not None and len(known) == key.count(".") + 1 and field.annotation in (str, str | None)


def _is_free(field: FieldInfo) -> bool:
    return _has_origin(field, dict)


def _is_list(field: FieldInfo) -> bool:
    return _has_origin(field, list, tuple)


def _has_origin(field: FieldInfo, *origins: type) -> bool:
    parts = (field.annotation, *typing.get_args(field.annotation))
    return any(typing.get_origin(_bare(part)) in origins for part in parts)


def _bare(annotation: Any) -> Any:
    """A type without its metadata."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
