"""Which rewards there are, and what each can be told. Nothing heavy is imported, and no code of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, ValidationError

from rlspec.config.functions import is_function, missing_function
from rlspec.config.messages import explain
from rlspec.config.rlvr_schema import Reward
from rlspec.config.schema import Section
from rlspec.errors import nearest

Place = Literal["boxed", "boxed_word", "answer_tag", "hashes", "last_number"]


class MathOptions(Section):
    r"""Equality with the gold, as mathematics."""

    extract: list[Place] = Field(["boxed"], min_length=1)  # the first place that has an answer counts


class LastNumberOptions(Section):
    """Equality of the last number with the gold."""

    extract: list[Literal["last_number"]] = ["last_number"]


class ChoiceOptions(Section):
    """A letter of a multiple choice."""

    letters: str = Field("ABCDEFGHIJ", min_length=2)
    first: Literal[0, 1] | None = None  # the first choice's number where golds are numbers


class RegexOptions(Section):
    """A regular expression that the answer part must match."""

    pattern: str = Field(min_length=1)  # a group called `answer` has to be the gold
    ignore_case: bool = False
    timeout: float = Field(1.0, gt=0, le=10)  # seconds for one completion


class FormatOptions(Section):
    """The shape of a completion."""

    style: Literal["think", "think_answer", "answer_tag", "boxed"] = "think"


class LengthOptions(Section):
    """DAPO's soft limit: 0 up to limit - tolerance tokens, -1 from limit on, a straight line between."""

    limit: int = Field(ge=1)
    tolerance: int = Field(0, ge=0)


class PythonOptions(Section):
    """Programs that have to pass tests, in a sandbox."""

    timeout: float = Field(10.0, gt=0, le=120)  # seconds for all tests of one completion
    memory_mb: int = Field(512, ge=64)
    output_kb: int = Field(64, ge=1)  # of standard output, per test
    files_kb: int = Field(1024, ge=0)  # of all files together
    tests: int = Field(50, ge=1)  # at most so many of a problem's
    partial: bool = False  # the share of tests that pass, and not all or nothing
    weaker: bool = False  # run although this machine cannot hold every limit


class JudgeOptions(Section):
    """A model behind an endpoint that speaks OpenAI's chat completions."""

    url: str = Field(min_length=8)  # as far as /v1
    model: str = Field(min_length=1)
    key_variable: str | None = None  # environment variable that holds the key
    instruction: str | None = None  # the rubric; None: correctness beside the gold
    timeout: float = Field(60.0, gt=0)  # seconds for one answer
    retries: int = Field(3, ge=0)
    workers: int = Field(8, ge=1)  # requests at once
    cache: str | None = None  # a file; None: in the user's cache folder
    max_tokens: int = Field(512, ge=1)


class EnvironmentOptions(Section):
    """What the environment itself says in `get_reward`."""


OPTIONS: dict[str, type[Section]] = {
    "math": MathOptions,
    "last_number": LastNumberOptions,
    "choice": ChoiceOptions,
    "regex": RegexOptions,
    "format": FormatOptions,
    "length": LengthOptions,
    "python": PythonOptions,
    "judge": JudgeOptions,
    "environment": EnvironmentOptions,
}


def reward_options(reward: Reward) -> Any:
    """The checked options of a reward of rlspec's; the keyword arguments of a function."""
    if is_function(reward.name):
        return dict(reward.options)
    return OPTIONS[reward.name].model_validate(reward.options)


def is_text_option(key: str) -> bool:
    """Whether a dotted key of a recipe is an option that takes any text, as a regular expression is."""
    parent, _, name = key.rpartition(".")
    fields = [options.model_fields[name].annotation for options in OPTIONS.values() if name in options.model_fields]
    return parent == "reward.options" and bool(fields) and all(kind in (str, str | None) for kind in fields)


def check_reward(reward: Reward, key: str) -> Iterator[str]:
    """One line per mistake in one reward."""
    if is_function(reward.name):
        yield from missing_function(reward.name, f"{key}.name={reward.name}")
    elif reward.name not in OPTIONS:
        yield f"{key}.name={reward.name}: unknown; {nearest(reward.name, OPTIONS)}; or your own, module:function"
    else:
        try:
            options = reward_options(reward)
        except ValidationError as error:
            yield from (f"{key}.options.{line}" for line in explain(error, OPTIONS[reward.name]))
        else:
            yield from _contradictions(options, key)


def _contradictions(options: Section, key: str) -> Iterator[str]:
    if isinstance(options, LengthOptions) and options.tolerance > options.limit:
        yield f"{key}.options.tolerance={options.tolerance}: must be at most limit={options.limit}"
    if isinstance(options, JudgeOptions) and not options.url.startswith(("http://", "https://")):
        yield f"{key}.options.url={options.url}: must begin with http:// or https://"
    if isinstance(options, ChoiceOptions) and len(set(options.letters.upper())) < len(options.letters):
        yield f"{key}.options.letters={options.letters}: each letter once"
    if isinstance(options, RegexOptions):
        try:
            _compile(options.pattern)
        except ValueError as error:
            yield f"{key}.options.pattern={options.pattern}: no regular expression: {error}"


def _compile(pattern: str) -> None:
    import regex  # takes what `re` does, and gives up in time

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(str(error)) from None
