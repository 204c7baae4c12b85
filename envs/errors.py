"""Errors of environments that a user can mend; wrong arguments are plain ValueErrors."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class EnvironmentUnavailable(RuntimeError):
    """Something outside the program is missing (renderer, assets, package): the message names it and the remedy."""


def nearest(name: str, known: Iterable[str]) -> str:
    """What a mistaken name could have meant, as the end of a message."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"


def check_keywords(given: Mapping[str, Any], *makers: Callable[..., Any], where: str) -> None:
    """Whether keywords are parameters of one of the makers.

    Raises:
        ValueError: One is not; `where` says what does not have it.
    """
    parameters = (each for maker in makers for each in inspect.signature(maker).parameters.values())
    known = {each.name: None for each in parameters if each.kind is not each.VAR_KEYWORD}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name}={value!r}: {where} has no such option; {nearest(name, known)}")
