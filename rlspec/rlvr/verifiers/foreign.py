"""Scores that code of the user's gives."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlspec.errors import UserError
from rlspec.rlvr.user_code import finish
from rlspec.rlvr.verifiers.verifier import Judgement


@contextmanager
def named(who: str) -> Iterator[None]:
    """A file that code of the user's cannot read or write is its own, and none of the run's.

    Raises:
        UserError: With its name, in one line.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{who}: " + " ".join(f"{type(error).__name__}: {error}".split())) from error


def finished(value: Any) -> Any:
    """What an asynchronous function gives in the end; any other value as it is."""
    return finish(value) if inspect.isawaitable(value) else value


def judgement_of(score: Any, who: str) -> Judgement:
    """A number from code of the user's.

    Raises:
        UserError: It is none, and not None either.
    """
    if score is None:
        return Judgement(None, "not_judged")
    try:
        value = float(score)
    except (TypeError, ValueError):
        raise UserError(f"{who}: returned {score!r}, not a number or None") from None
    if value != value:  # TRL's word for None
        return Judgement(None, "not_judged")
    if math.isinf(value):
        raise UserError(f"{who}: returned {value}, which leaves no number in its group; return a finite one, or None")
    return Judgement(value, f"score_{value:g}" if value in (0.0, 1.0) else "scored")
