r"""Left sides of `=` and `\in` that only name the answer: `x`, `x_1`, `f(x)`, `P(A)`, `AB`, `\angle ABC`, a text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlspec.rlvr.grading.normalize import spell

_ANGLES = frozenset((r"\angle", r"\measuredangle", r"\triangle"))
_IN_CALL = frozenset((",", "|", "'", r"\cap", r"\cup", r"\mid"))
_AROUND = {"|": "|", "[": "]"}
_LONGEST = 16  # tokens
MAX_POINTS = 4
_COORDINATES = frozenset((("x",), ("y",), ("z",)))
# What turns the meaning of the value behind it round.
_NEGATION = re.compile(
    r"\\(?:not|neg|lnot|nexists|n(?:sim|cong|less|gtr|leq\w*|geq\w*|mid|parallel|prec\w*|succ\w*|subset\w*|supset\w*))\Z"
    r"|\\text\{.*(?:\b(?:not|never|cannot|neither|nor|except|unequal)\b|n['’]t\b)",
    re.IGNORECASE | re.DOTALL,
)


def is_name(tokens: Sequence[str]) -> bool:
    """Whether tokens are a name, which says nothing about the value beside it."""
    if not tokens or len(tokens) > _LONGEST or any(map(_NEGATION.match, tokens)) or r"\infty" in tokens:
        return False
    if tuple(tokens) == (r"\pi",):  # `\pi\approx 3.14` is no answer 3.14
        return False
    if tokens[0].startswith("\\text{"):
        return len(tokens) == 1 or _is_index(tokens[1:])
    if tokens[0] == "m" and tokens[1:2] and tokens[1] in _ANGLES:
        tokens = tokens[1:]
    if tokens[0] in _ANGLES:
        return _are_points(tokens[1:], fewest=1)
    if tokens[0] == r"\overline" and tokens[1:2] == ("{",) and tokens[-1] == "}":
        return _are_points(tokens[2:-1])
    if tokens[0] in _AROUND and tokens[-1] == _AROUND[tokens[0]]:
        return _are_points(tokens[1:-1])
    ratio = len(tokens) > 1 and all(token == ":" for token in tokens[1::2]) and all(map(is_letter, tokens[::2]))
    if ratio or _are_points(tokens):
        return True
    return is_letter(tokens[0]) and (len(tokens) == 1 or _is_index(tokens[1:]) or _is_call(tokens[1:]))


def is_letter(token: str) -> bool:
    """Whether a token is one letter, Latin or a command."""
    return (token.isalpha() and token.isascii()) or (token[:1] == "\\" and token[1:].isalpha())


def _are_points(tokens: Sequence[str], fewest: int = 2) -> bool:
    points = fewest <= len(tokens) <= MAX_POINTS
    return points and all(len(token) == 1 and token.isascii() and token.isupper() for token in tokens)


def _is_index(tokens: Sequence[str]) -> bool:
    r"""`_{12}`, `_{\text{max}}`, a prime."""
    if all(token == "'" for token in tokens):
        return True
    index = tokens[2:-1]
    plain = all((token.isascii() and token.isalnum()) or token[:1] == "\\" for token in index)
    return tuple(tokens[:2]) == ("_", "{") and tokens[-1] == "}" and bool(index) and plain


def _is_call(tokens: Sequence[str]) -> bool:
    r"""`(x)`, `(2)`, `(A|B)`, `^{-1}(x)`, `'(x)`."""
    if tuple(tokens[:4]) == ("^", "{", "-", "1") and tokens[4:5] == ("}",):
        tokens = tokens[5:]
    while tokens and tokens[0] == "'":
        tokens = tokens[1:]
    inner = tokens[1:-1]
    return (
        len(tokens) > 2
        and (tokens[0], tokens[-1]) == ("(", ")")
        and all((token.isascii() and token.isalnum()) or is_letter(token) or token in _IN_CALL for token in inner)
    )


def order_of(names: Sequence[Sequence[str]]) -> list[int]:
    """The order in which unnamed values are given: that of coordinates for `x`, `y`, `z`, else as written."""
    if all(tuple(name) in _COORDINATES for name in names):
        return sorted(range(len(names)), key=lambda i: spell(list(names[i])))
    return list(range(len(names)))
