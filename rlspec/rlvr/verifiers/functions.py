"""Reward functions of the user's in TRL's signature, as they stand."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlspec.errors import ConfigError, UserError, nearest
from rlspec.rlvr.verifiers.verifier import Attempt, Judgement, Verifier

RewardFunction = Callable[..., Any]  # list[float | None], or an awaitable of one


def load_function(name: str) -> RewardFunction:
    """The function behind `module:function` or `file.py:function`; the current folder counts as a place of modules.

    Raises:
        ConfigError: There is none, or its module fails.
    """
    place, _, attribute = name.rpartition(":")
    given = f"reward.name={name}"
    if os.getcwd() not in sys.path:  # an installed command has its own folder there instead
        sys.path.append(os.getcwd())
    try:
        found: Any = _import_file(Path(place).expanduser()) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever a user's module raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{given}: {place} cannot be imported ({reason})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{given}: {place} has no {attribute}; {nearest(part, vars(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{given}: not a function but {type(found).__name__}")
    return found


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import would, for dataclasses and pickling
    spec.loader.exec_module(module)
    return module


class FunctionVerifier(Verifier):
    """Calls the function as TRL does: prompts, completions, completion ids, every column of the data set by its name.

    In an evaluation there is no `trainer_state`, and what `log_extra` and `log_metric` are told is dropped.
    """

    def __init__(self, function: RewardFunction, options: Mapping[str, Any]) -> None:
        self.function = function
        self.options = dict(options)
        self.name = str(getattr(function, "__name__", type(function).__name__))

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        """What the function returns; None is `not_judged`.

        Raises:
            UserError: It returned something else than one number or None per completion.
        """
        if not attempts:
            return []
        arguments = {**_columns(attempts), **(_outside() if surroundings is None else surroundings), **self.options}
        scores = self.function(
            prompts=[list(attempt.prompt) for attempt in attempts],
            completions=[list(attempt.messages) for attempt in attempts],
            completion_ids=[list(attempt.tokens) for attempt in attempts],
            **arguments,
        )
        if inspect.isawaitable(scores):
            scores = asyncio.run(_finish(scores))
        return [self._judgement(score) for score in self._checked(scores, len(attempts))]

    def _checked(self, scores: Any, wanted: int) -> Sequence[Any]:
        try:
            found = list(scores)
        except TypeError:
            raise UserError(f"reward {self.name}: returned {type(scores).__name__}, not a list of numbers") from None
        if len(found) != wanted:
            raise UserError(f"reward {self.name}: returned {len(found)} rewards for {wanted} completions")
        return found

    def _judgement(self, score: Any) -> Judgement:
        if score is None:
            return Judgement(None, "not_judged")
        try:
            value = float(score)
        except (TypeError, ValueError):
            raise UserError(f"reward {self.name}: returned {score!r}, not a number or None") from None
        if value != value:  # TRL's word for None
            return Judgement(None, "not_judged")
        return Judgement(value, f"score_{value:g}" if value in (0.0, 1.0) else "scored")


async def _finish(awaitable: Any) -> Any:
    return await awaitable


def _columns(attempts: Sequence[Attempt]) -> dict[str, list[Any]]:
    """Every column that a row has, as a list; rows without it give None. Generated problems have no table."""
    rows = [attempt.problem.columns or _generated(attempt) for attempt in attempts]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names if name not in _TAKEN}


_TAKEN = ("prompts", "completions", "completion_ids", "prompt", "completion")


def _generated(attempt: Attempt) -> dict[str, Any]:
    problem = attempt.problem
    return {"problem": problem.problem, "answer": problem.answer, "solution": problem.solution}


def _outside() -> dict[str, Any]:
    return {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
