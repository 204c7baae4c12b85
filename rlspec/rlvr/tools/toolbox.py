"""From a recipe to what a policy may call: tools, and environments whose methods are tools."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException
from trl.chat_template_utils import (
    add_response_schema,
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    supports_tool_calling,
)

from rlspec.config.functions import is_function
from rlspec.config.rlvr_schema import Recipe
from rlspec.errors import ConfigError, DataError
from rlspec.hub import one_line
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.tools.calculator import calculator
from rlspec.rlvr.user_code import load_callable

Tool = Callable[..., Any]
Environment = Any
"""An object with `reset(**row)`, whose other public methods are tools; `get_reward()` where it judges by itself."""

_BUILT_IN: Mapping[str, Tool] = {"calculator": calculator}
_OWN = ("reset", "get_reward")  # of an environment's methods, those that are no tools


@dataclass(frozen=True)
class Toolbox:
    """What a policy may call.

    Attributes:
        tools: functions for every problem.
        factories: of environments, by the name in a row's column `environment`; under None: the one for all problems.
        most_calls: turns with calls in one answer; None: as many as fit into its length.
    """

    tools: Sequence[Tool] = ()
    factories: Mapping[str | None, Callable[[], Environment]] = field(default_factory=dict)
    most_calls: int | None = None

    def __bool__(self) -> bool:
        return bool(self.tools or self.factories)

    @property
    def environment_factory(self) -> Any:
        """The factories as TRL takes them."""
        if not self.factories:
            return None
        return dict(self.factories) if self.environment_is_chosen else self.factories[None]

    @property
    def environment_is_chosen(self) -> bool:
        """Whether each row names its environment."""
        return bool(self.factories) and None not in self.factories

    @cached_property
    def probes(self) -> dict[str | None, Environment]:
        """An environment of each kind, to see what it offers."""
        return {name: factory() for name, factory in self.factories.items()}

    def kind(self, problem: Problem) -> str | None:
        """Which environment a problem is for.

        Raises:
            DataError: Its row names none of those that there are.
        """
        if not self.environment_is_chosen:
            return None
        name = problem.columns.get("environment")
        if name not in self.factories:
            raise DataError(
                f"problem {problem.problem[:40]!r}: its column `environment` holds {name!r}; the recipe's are "
                f"{', '.join(map(str, self.factories))}"
            )
        return str(name)

    def offered(self, problem: Problem) -> list[Tool]:
        """The tools that stand in a problem's prompt."""
        return [*self.tools, *(methods(self.probes[self.kind(problem)]) if self.factories else ())]

    def every_tool(self) -> list[Tool]:
        """Those of all problems."""
        return [*self.tools, *(each for probe in self.probes.values() for each in methods(probe))]

    @property
    def judges(self) -> bool:
        """Whether an environment says what an answer is worth."""
        return any(hasattr(type(probe), "get_reward") for probe in self.probes.values())


def methods(environment: Environment) -> list[Tool]:
    """An environment's tools, as TRL finds them: public methods of its class."""
    members = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    return [getattr(environment, name) for name, _ in members if name not in _OWN and not name.startswith("_")]


def build_toolbox(recipe: Recipe) -> Toolbox:
    """The recipe's, loaded and looked at.

    Raises:
        ConfigError: Something cannot be called by a model, in one line.
    """
    given = recipe.environment
    named: dict[str | None, str] = {}
    if isinstance(given, str):
        named[None] = given
    for kind, place in given.items() if isinstance(given, dict) else ():
        named[kind] = place
    box = Toolbox(
        [_BUILT_IN[name] if not is_function(name) else load_callable(name, "tools") for name in recipe.tools],
        {name: load_callable(place, "environment") for name, place in named.items()},
        recipe.trainer.get("max_tool_calling_iterations"),
    )
    for name, probe in box.probes.items():
        if not inspect.isfunction(getattr(type(probe), "reset", None)):
            raise ConfigError(f"environment={named[name]}: has no method reset, which begins an answer")
    for tool in box.every_tool():
        _check_described(tool)
    names = [tool.__name__ for tool in box.tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"tools: two of them are called {twice}; a model could not tell them apart")
    asked = any(reward.name == "environment" for reward in recipe.rewards)
    if box.judges and not asked and recipe.algorithm != "sft":
        raise ConfigError(
            f"environment={given}: has a get_reward, which no reward asks for; add reward=environment, or rename it"
        )
    if asked and not box.judges:
        raise ConfigError("reward=environment: no environment of the recipe has a method get_reward")
    return box


def _linear(schema: dict[str, Any]) -> dict[str, Any]:
    """TRL's pattern for a thought, which takes the square of an answer's length where the thought has no end."""
    pattern = schema.get("x-regex", "").replace("(?:<think>", r"(?:(?=[\s\S]*</think>)<think>", 1)
    return {**schema, "x-regex": pattern} if "x-regex" in schema else schema


def _check_described(tool: Tool) -> None:
    """A chat template describes a tool by its type hints and docstring."""
    try:
        get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException, ValueError, TypeError) as error:
        raise ConfigError(
            f"tools: {tool.__name__} cannot be described to a model: {one_line(error)}; it needs type hints, and a "
            "docstring with its purpose and a section `Args:`"
        ) from None


def teach_calls(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Let a tokenizer read calls off an answer, and write conversations whose beginnings stay as they were.

    Raises:
        ConfigError: Its chat template has no calls, or TRL does not know how they look.
    """
    if not supports_tool_calling(tokenizer):
        raise ConfigError(f"tools: the chat template of {model} knows no calls; choose a model that was taught some")
    try:
        if getattr(tokenizer, "response_schema", None) is None:
            add_response_schema(tokenizer)
            tokenizer.response_schema = _linear(tokenizer.response_schema)
        if not is_chat_template_prefix_preserving(tokenizer):
            tokenizer.chat_template = get_training_chat_template(tokenizer)
    except ValueError as error:
        raise ConfigError(f"tools: calls cannot be read off the answers of {model}: {one_line(error)}") from error
