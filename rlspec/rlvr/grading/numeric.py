"""Two expressions at sample points, in many digits: what differs there is not equal. Imports mpmath."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import mpmath

from rlspec.rlvr.grading.expression import Node, symbols_of
from rlspec.rlvr.grading.question import Question

MAX_SIGNED = 5  # variables whose signs are tried in every combination
REAL_SIZES = (0, 3, 6)  # of real sample points: see `_size`

Point = dict[str, Any]
"""Variable -> its value."""


class Undefined(ArithmeticError):
    """The expression has no value at this point."""


def numerically_alike(question: Question, digits: int, agree: int) -> bool | None:
    """False: they differ at a point. True: they agree at two points or more. None: too few points are defined."""
    names = sorted(symbols_of(question.answer) | symbols_of(question.gold))
    if symbols_of(question.answer) != symbols_of(question.gold) and question.up_to_factor:
        return False
    defined = 0
    ratio: Any = None
    with mpmath.workdps(digits):
        for k in range(5 if names else 1):
            point = {name: _coordinate(k, i) for i, name in enumerate(names)}
            try:
                one, other = value(question.answer, point), value(question.gold, point)
            except Undefined:
                continue
            if question.up_to_factor:
                if not other or not one:
                    return False
                ratio = one / other if ratio is None else ratio
                other = other * ratio
            if not _close(one, other, agree):
                if max(abs(one), abs(other)) < mpmath.mpf(10) ** -agree and not _significant(question, point, digits):
                    continue  # cancellation down to nothing: only algebra can tell
                return False
            defined += 1
    return True if defined >= min(2, 5 if names else 1) else None


def real_orthants(question: Question, digits: int, agree: int) -> list[Point]:
    """Signs of the variables with which both sides are real, and equal, at sample points.

    Empty: a point shows that they differ, or that one of them alone is real; or there are none or too many variables.
    """
    names = sorted(symbols_of(question.answer) | symbols_of(question.gold))
    found = []
    if len(names) > MAX_SIGNED:
        return []
    with mpmath.workdps(digits):
        for signs in product((1, -1), repeat=len(names)):
            pairs = [_real_pair(question, point) for point in _real_points(names, signs)]
            if any((one is None) != (other is None) for one, other in pairs):
                return []
            real = [pair for pair in pairs if pair[0] is not None]
            if not all(_close(one, other, agree) for one, other in real):
                return []
            if real:
                found.append(dict(zip(names, signs, strict=True)))
    return found if names else []


def _real_pair(question: Question, point: Point) -> tuple[Any, Any]:
    return _real_value(question.answer, point), _real_value(question.gold, point)


def _real_value(node: Node, point: Point) -> Any:
    try:
        return value(node, point, real=True)
    except Undefined:
        return None


def value(node: Node, point: Point, real: bool = False) -> Any:
    """The value of a tree in mpmath's current precision.

    Args:
        node: The tree.
        point: The value of each of its variables.
        real: Every part must be real too: a logarithm or a square root of a negative number has no value.
    """
    if node.value is not None:
        return mpmath.mpf(node.value.numerator) / node.value.denominator
    if node.op == "sym":
        return point[node.name]
    if node.op == "const":
        if real and node.name == "i":
            raise Undefined("i is not real")
        return {"pi": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1)}[node.name]
    args = [value(arg, point, real) for arg in node.args]
    try:
        result = _NUMERIC[node.op](*args)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        raise Undefined(str(error)) from error
    if not mpmath.isfinite(result):
        raise Undefined("not finite")
    if real and isinstance(result, mpmath.mpc):
        raise Undefined("not real")
    return result


def _close(one: Any, other: Any, agree: int) -> bool:
    return bool(abs(one - other) <= mpmath.mpf(10) ** -agree * max(abs(one), abs(other)))


def _significant(question: Question, point: Point, digits: int) -> bool:
    """Whether tiny values stay the same at twice the precision, so they are no rounding noise."""
    for node in (question.answer, question.gold):
        first = value(node, point)
        with mpmath.workdps(2 * digits):
            if abs(value(node, point) - first) > abs(first) * mpmath.mpf(10) ** -20:
                return False
    return True


def _size(k: int, i: int) -> Any:
    """A positive number for variable i of sample point k, none that is special."""
    return mpmath.mpf(1009 + 311 * i + 97 * k) / (757 + 53 * ((i * 7 + k * 3) % 11))


def _coordinate(k: int, i: int) -> Any:
    """Coordinate i of sample point k: positive, negative and complex numbers."""
    size = _size(k, i)
    return (size, -size, mpmath.mpc(size / 2, size / 3), size * 3, mpmath.mpc(-size / 3, size / 5))[k]


def _real_points(names: list[str], signs: tuple[int, ...]) -> Iterator[Point]:
    """Points of three sizes with these signs."""
    for k in REAL_SIZES:
        yield {name: sign * (1 + k) * _size(k, i) for i, (name, sign) in enumerate(zip(names, signs, strict=True))}


def _root(radicand: Any, index: Any) -> Any:
    if index != int(index.real) or index < 1:
        raise ValueError("a root's index is a positive integer")
    if mpmath.im(radicand) == 0 and radicand < 0 and int(index) % 2:
        return -mpmath.root(-radicand, int(index))  # the real root, as in school
    return mpmath.root(radicand, int(index))


def _part(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def of_real(number: Any) -> Any:
        if mpmath.im(number):
            raise ValueError("only for real numbers")
        return function(mpmath.re(number))

    return of_real


SAME_NAME = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp")
_NUMERIC: dict[str, Callable[..., Any]] = {
    "add": lambda *terms: sum(terms, mpmath.mpf(0)),
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": lambda a, b: mpmath.power(a, b),
    "root": _root,
    "fact": lambda a: mpmath.factorial(a),
    "binom": lambda n, k: mpmath.binomial(n, k),
    "abs": abs,
    "floor": _part(mpmath.floor),
    "ceil": _part(mpmath.ceil),
    "log": lambda a, base=None: mpmath.log(a) / (mpmath.log(base) if base is not None else mpmath.log(10)),
    "ln": lambda a: mpmath.log(a),
    "arcsin": lambda a: mpmath.asin(a),
    "arccos": lambda a: mpmath.acos(a),
    "arctan": lambda a: mpmath.atan(a),
    **{name: getattr(mpmath, name) for name in SAME_NAME},
}
