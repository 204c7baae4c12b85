r"""Intervals behind other words: `x<3`, `0<x\le 1`, `x<1 or x>3`, `x\neq 3`, `\mathbb{R}` as intervals and unions."""

from __future__ import annotations

from rlspec.rlvr.grading.forms import Form
from rlspec.rlvr.grading.names import is_name
from rlspec.rlvr.grading.plain import plain_number

REALS = (r"\mathbb", "{", "R", "}")
_INFINITY = Form("scalar", (r"\infty",))
_MINUS_INFINITY = Form("scalar", ("-", r"\infty"))
_BRACKET = {"<": "()", r"\leq": "[]"}


def region(form: Form) -> Form | None:
    """The form as an interval (`tuple`) or a union of intervals and sets; None if it is neither."""
    if form.kind == "relation":
        pieces = _pieces(form)
    elif form.kind == "list" and form.mark:
        pieces = _joined(form)
    elif form.kind == "union":
        pieces = [region(item) or item for item in form.items]
    elif form.kind == "tuple" and len(form.items) == 2 and form.mark[0] in "([" and form.mark[1] in ")]":
        return _interval(form.mark[0], *form.items, form.mark[1])
    elif form.kind == "scalar" and form.tokens[:4] == REALS:
        pieces = _reals(form.tokens[4:])
    else:
        return None
    if not pieces:
        return None
    return pieces[0] if len(pieces) == 1 else Form("union", items=tuple(pieces))


def _interval(opening: str, low: Form, high: Form, closing: str) -> Form:
    """An interval; infinite ends are open however they are written."""
    return Form(
        "tuple",
        items=(low, high),
        mark=("(" if low == _MINUS_INFINITY else opening) + (")" if high == _INFINITY else closing),
    )


def _bounds(form: Form) -> tuple[tuple[str, ...], Form | None, str, Form | None, str] | None:
    """Name, lower bound with its bracket, upper bound with its bracket, of a relation with one lone name."""
    names = [i for i, item in enumerate(form.items) if item.kind in ("scalar", "word") and is_name(item.tokens)]
    signs = form.mark.split()
    if len(names) != 1 or not set(signs) <= set(_BRACKET):
        return None
    (i,) = names
    if len(form.items) == 3 and i != 1:
        return None
    low = form.items[i - 1] if i else None
    high = form.items[i + 1] if i + 1 < len(form.items) else None
    opening = _BRACKET[signs[i - 1]][0] if i else "("
    closing = _BRACKET[signs[i]][1] if high is not None else ")"
    return form.items[i].tokens, low, opening, high, closing


def _pieces(form: Form) -> list[Form]:
    if form.mark == r"\neq" and is_name(form.items[0].tokens):
        return _without(form.items[1])
    bounds = _bounds(form)
    if bounds is None:
        return []
    _, low, opening, high, closing = bounds
    if low is not None and high is not None and not _ascending(low, high):
        return []
    return [_interval(opening, low or _MINUS_INFINITY, high or _INFINITY, closing)]


def _without(point: Form) -> list[Form]:
    return [_interval("(", _MINUS_INFINITY, point, ")"), _interval("(", point, _INFINITY, ")")]


def _ascending(low: Form, high: Form) -> bool:
    values = [plain_number(bound.text) for bound in (low, high)]
    return values[0] is None or values[1] is None or values[0] < values[1]


def _joined(form: Form) -> list[Form]:
    """`or` unites relations on one name, `and` makes one interval of a lower and an upper bound."""
    found = [_bounds(item) if item.kind == "relation" else None for item in form.items]
    bounds = [bound for bound in found if bound is not None]
    if len(bounds) != len(found) or len({bound[0] for bound in bounds}) != 1:
        return []
    if form.mark == "or":
        parts = [_pieces(item) for item in form.items]
        return [piece for part in parts for piece in part] if all(parts) else []
    if form.mark != "and" or len(bounds) != 2:
        return []
    one, other = bounds if bounds[0][1] is not None else bounds[::-1]
    if one[1] is None or one[3] is not None or other[3] is None or other[1] is not None:
        return []  # not one lower and one upper bound
    return [_interval(one[2], one[1], other[3], other[4])] if _ascending(one[1], other[3]) else []


def _reals(rest: tuple[str, ...]) -> list[Form]:
    r"""All reals, `\mathbb{R}^+`, or all without one point."""
    if not rest:
        return [_interval("(", _MINUS_INFINITY, _INFINITY, ")")]
    if rest == ("^", "{", "+", "}"):
        return [_interval("(", Form("scalar", ("0",)), _INFINITY, ")")]
    inner = rest[2:-1]
    if rest[0] in (r"\setminus", r"\backslash", "-", "\\") and rest[1:2] == (r"\{",) and rest[-1] == r"\}":
        return _without(Form("scalar", inner)) if inner and "," not in inner else []
    return []
