"""Reward functions of the user's in TRL's signature, as they stand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from rlspec.errors import ConfigError, UserError
from rlspec.rlvr.verifiers.foreign import finished, judgement_of, named
from rlspec.rlvr.verifiers.verifier import Attempt, Judgement, Verifier

RewardFunction = Callable[..., Any]  # list[float | None], or an awaitable of one


class FunctionVerifier(Verifier):
    """Calls the function as TRL does: prompts, completions, completion ids, every column of the data set by its name.

    In an evaluation there is no `trainer_state`, and what `log_extra` and `log_metric` are told is dropped.

    Raises:
        ConfigError: The function does not take what it is given.
    """

    def __init__(self, function: RewardFunction, options: Mapping[str, Any]) -> None:
        self.function = function
        self.options = dict(options)
        self.name = str(getattr(function, "__name__", type(function).__name__))
        if not _takes_all(function):
            raise ConfigError(f"reward {self.name}: is given more than it asks for; let it take **kwargs")

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        """What the function returns; None is `not_judged`.

        Raises:
            UserError: It returned something else than one number or None per completion.
        """
        if not attempts:
            return []
        told = _outside(attempts) if surroundings is None else surroundings
        arguments = {**_columns(attempts), **told, **self.options}
        with named(f"reward {self.name}"):
            scores = self.function(
                prompts=[list(attempt.prompt) for attempt in attempts],
                completions=[list(attempt.messages) for attempt in attempts],
                completion_ids=[list(attempt.tokens) for attempt in attempts],
                **arguments,
            )
            scores = finished(scores)
        return [judgement_of(score, f"reward {self.name}") for score in self._checked(scores, len(attempts))]

    def _checked(self, scores: Any, wanted: int) -> Sequence[Any]:
        try:
            found = None if isinstance(scores, str | bytes | Mapping | Set) else list(scores)
        except TypeError:
            found = None
        if found is None:
            raise UserError(f"reward {self.name}: returned {type(scores).__name__}, not a list of numbers")
        if len(found) != wanted:
            raise UserError(f"reward {self.name}: returned {len(found)} rewards for {wanted} completions")
        return found


def _takes_all(function: RewardFunction) -> bool:
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    except (ValueError, TypeError):  # compiled code tells no signature
        return True
    return any(each.kind is each.VAR_KEYWORD for each in parameters)


def _columns(attempts: Sequence[Attempt]) -> dict[str, list[Any]]:
    """Every column that a row has, as a list; rows without it give None. Generated problems have no table."""
    rows = [attempt.problem.columns or _generated(attempt) for attempt in attempts]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names if name not in _TAKEN}


_TAKEN = ("prompts", "completions", "completion_ids", "prompt", "completion")


def _generated(attempt: Attempt) -> dict[str, Any]:
    problem = attempt.problem
    return {"problem": problem.problem, "answer": problem.answer, "solution": problem.solution}


def _outside(attempts: Sequence[Attempt]) -> dict[str, Any]:
    told: dict[str, Any] = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
    environments = [attempt.environment for attempt in attempts]
    return told if environments[0] is None else {**told, "environments": environments}
