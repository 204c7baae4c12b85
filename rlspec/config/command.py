"""A command line is a schema: its fields are the keys, their metadata the usage, its rules the mistakes."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import AfterValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from rlspec.config.messages import explain, find_field, join_lines, leaves, unknown_key
from rlspec.config.rlvr_schema import Recipe
from rlspec.config.schema import Section, key_of
from rlspec.config.synonyms import same_meaning
from rlspec.config.values import read_value
from rlspec.errors import ConfigError, nearest


def one_of(names: Callable[[], Iterable[str]]) -> AfterValidator:
    """Metadata of a text that must be one of names which are known only at run time."""

    def check(value: str | None) -> str | None:
        known = list(names())
        if value is not None and value not in known:
            raise ValueError(f"unknown; {nearest(value, known)}")
        return value

    return AfterValidator(check)


class CommandLine(Section):
    """What a command can be told.

    A validator of a field says what is wrong with its value; one of the whole, or a ConfigError, says the whole line.
    """

    model_config = ConfigDict(validate_default=False)  # they are in their own types, not in JSON's

    command: ClassVar[str]  # as in `python -m rlspec.COMMAND`
    synopsis: ClassVar[tuple[str, ...]]  # what may follow it, one line each
    example: ClassVar[str]  # a setting, for who writes something else
    extra: ClassVar[str] = ""  # that it needs, where the one of its first missing package is another
    short: ClassVar[Mapping[str, str]] = {}  # short key -> dotted key
    below: ClassVar[Mapping[str, str]] = {}  # K -> the mapping that takes what is given as K.ANYTHING
    positional: ClassVar[str] = ""  # key of what is given without one
    recipe: ClassVar[bool] = False  # other keys are a recipe's: the field `overrides` takes them as they are

    @classmethod
    def more(cls) -> str:
        """What the usage says below the keys."""
        return ""

    @classmethod
    def full_key(cls, key: str) -> str:
        """The dotted key that a key of the command line stands for."""
        head, dot, rest = key.partition(".")
        if dot and head in cls.below:
            return f"{cls.below[head]}.{rest}"
        return cls.short.get(key, key)

    @classmethod
    def typed_keys(cls) -> list[str]:
        """All keys, as they are typed."""
        hidden = {"overrides", *cls.below.values(), *cls.short.values()}
        plain = [*(key for key in leaves(cls) if key not in hidden), *cls.short]
        flags = {key for key in plain if (field := cls.model_fields.get(cls.full_key(key))) and is_flag(field)}
        return [*(f"--{key}" if key in flags else key for key in plain), *(f"{key}.KEY" for key in cls.below)]

    @classmethod
    def near(cls, key: str) -> str:
        """The end of a message about a key that it does not have."""
        return _unknown(cls, key, None).partition("unknown key; ")[2]

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Self:
        """The settings of a command line; of two equal keys the last one counts.

        Raises:
            ConfigError: One line per mistake, at most five.
        """
        return cls._read(arguments, {})

    @classmethod
    def _read(cls, arguments: Sequence[str], tree: dict[str, Any]) -> Self:
        for given in arguments:
            argument = given.encode("utf-8", "replace").decode()  # bytes that are no text cannot pass through JSON
            key, value = cls._split(argument)
            full = cls.full_key(key)
            if cls.recipe and full.partition(".")[0] not in cls.model_fields:
                cls._refuse_synonym(argument, key)
                tree.setdefault("overrides", []).append(argument)
            elif "=" not in argument and key == cls.positional and _is_list(cls.model_fields[key].annotation):
                tree.setdefault(key, []).append(value)  # as it is, commas and all
            else:
                _assign(tree, cls, key, value)
        return cls.checked(tree)

    @classmethod
    def _refuse_synonym(cls, argument: str, key: str) -> None:
        """A word that no recipe has may stand for one of the command's own keys; others the recipe's reader judges."""
        from rlspec.config.vla_schema import VlaRecipe

        own = {typed.lstrip("-"): typed for typed in cls.typed_keys()}
        alike = same_meaning(key, own.__contains__)
        if alike and not {key.partition(".")[0].lstrip("+~"), key} & {*Recipe.model_fields, *VlaRecipe.model_fields}:
            raise ConfigError(f"{argument}: unknown key; did you mean {' or '.join(own[name] for name in alike)}?")

    @classmethod
    def checked(cls, tree: Mapping[str, Any]) -> Self:
        """Settings from a mapping.

        Raises:
            ConfigError: One line per mistake, at most five.
        """
        try:
            # Through JSON, where a list may become a tuple and text a path although the schema is strict.
            return cls.model_validate_json(json.dumps(tree, default=str))
        except ValidationError as error:
            raise ConfigError(join_lines(explain(error, cls))) from None

    @classmethod
    def _split(cls, argument: str) -> tuple[str, str]:
        key, equals, value = argument.partition("=")
        name = key.lstrip("-").replace("-", "_")
        if key.startswith("-"):
            if equals:
                raise ConfigError(f"{argument}: write it without dashes: {name}={value}")
            field = cls.model_fields.get(cls.full_key(name))
            if field is None or field.annotation is not bool:
                raise ConfigError(_unknown(cls, key, None) + (_of_a_recipe(name) if cls.recipe else ""))
            return name, "true"
        if not equals and cls.positional:
            return cls.positional, argument
        # A recipe's overrides may delete a key: `~KEY`. Its own reader judges them.
        if not equals and not (cls.recipe and argument.startswith("~")):
            raise ConfigError(f"{argument!r} is no setting: write key=value, for example {cls.example}")
        return key, value


def is_flag(field: FieldInfo) -> bool:
    """Whether a key is written `--key`: it is false, and has no words for its values."""
    about = key_of(field)
    return field.annotation is bool and field.default is False and about is not None and not about.value


def _unknown(schema: type[CommandLine], key: str, value: str | None) -> str:
    return unknown_key(key.split("."), value, schema, typed=schema.typed_keys())


def _of_a_recipe(name: str) -> str:
    """What else a word with dashes may have meant on a command line with a recipe."""
    if name in ("m", "multirun"):
        return "; several values are compared: python -m rlspec.compare recipe=NAME seed=0,1"
    return f"; a recipe's keys have no dashes: {name}=VALUE"


def _assign(tree: dict[str, Any], schema: type[CommandLine], key: str, text: str) -> None:
    """Put a value where the schema has it; the rest of a key below a mapping is one name, dots and all."""
    path = schema.full_key(key).split(".")
    known, field = find_field(path, schema)
    annotation = None if field is None else field.annotation
    if len(known) < len(path):
        if typing.get_origin(annotation) is not dict or not all(path):
            raise ConfigError(_unknown(schema, key, text))
        path = [*known, ".".join(path[len(known) :])]
        annotation = typing.get_args(annotation)[1]
    kinds = _kinds(annotation)
    about = None if field is None else key_of(field)
    if text == "" and not (about and about.empty) and getattr(field, "default", None) != "":
        raise ConfigError(f"{key}=: no value; leave it out, or give one")
    node = tree
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(_unknown(schema, key, text))
    node[path[-1]] = _value(text, kinds, is_list=_is_list(annotation))


def _value(text: str, kinds: set[type], *, is_list: bool) -> Any:
    """The text in the type that the field has; commas separate the items of a list."""
    if is_list:
        words = bool(kinds & {str, Path})
        if text.startswith("[") or not (words or "," in text):
            value = read_value(text)
            return [value] if list in kinds and type(value) in kinds & {int, float} else value
        return [item if words else read_value(item) for item in text.split(",")]
    if kinds <= {str, Path, type(None)} and not (text == "null" and type(None) in kinds):
        return text  # whatever it looks like
    return read_value(text)


def _is_list(annotation: Any) -> bool:
    """Whether a field holds a list and nothing else, but perhaps null."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return all(_is_list(part) for part in typing.get_args(annotation) if part is not type(None))
    return typing.get_origin(annotation) in (list, tuple)


def _kinds(annotation: Any) -> set[type]:
    """The classes that an annotation is made of; a choice of words is text."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return {type(value) for value in typing.get_args(annotation)}
    if origin is None:
        return {annotation} if isinstance(annotation, type) else set()
    inner = {kind for argument in typing.get_args(annotation) for kind in _kinds(argument)}
    return inner if origin in (typing.Union, types.UnionType, typing.Annotated) else {origin, *inner}
