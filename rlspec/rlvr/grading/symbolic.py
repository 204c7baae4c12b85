r"""Symbolic equality that is certain: high-precision numbers refuse, exact algebra accepts. Imports sympy.

An answer is accepted only if (1) both trees agree to at least 40 digits at several points of the complex plane,
relative to their own size, so that `1/2004!` and `1/2006!` differ, and (2) equality is proven: sympy reduces the
exact difference (rationals, never floats) to zero, or, where it cannot, math_verify says equal with both sides in
`\boxed{}` and the numbers still agree at a precision beyond the longest number that the expressions can hold.
math_verify alone is never believed: it compares floats, forgets brackets, and reads parts of a text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mpmath
import sympy
from math_verify import parse, verify

from rlspec.rlvr.grading.budget import digits_bound
from rlspec.rlvr.grading.expression import Node, symbols_of
from rlspec.rlvr.grading.question import Question
from rlspec.rlvr.grading.verdict import Reason

DIGITS = 60  # of the numerical comparison, besides twice those of the longest number: one half may cancel
AGREE = 40  # digits in which equal expressions must agree, besides those of the longest number
MAX_LONGEST = 2000  # digits of a number that are followed that far
MAX_SECOND_LOOK = 600  # digits at which math_verify's opinion can still be checked

for _name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # they log what they cannot read, with the whole text


class _Undefined(ArithmeticError):
    """The expression has no value at this point."""


def prove(question: Question) -> Reason:
    """Answer `symbolic`, `different` or `unproven`."""
    longest = int(min(digits_bound(question.answer) + digits_bound(question.gold), MAX_LONGEST))
    alike = _numerically_alike(question, DIGITS + 2 * longest, AGREE + longest)
    if alike is False:
        return "different"
    if _algebra_agrees(question):
        return "symbolic"
    if alike and not question.up_to_factor and _math_verify_agrees(question):
        return "symbolic"
    return "unproven"


def _numerically_alike(question: Question, digits: int, agree: int) -> bool | None:
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
                one, other = _value(question.answer, point), _value(question.gold, point)
            except _Undefined:
                continue
            if question.up_to_factor:
                if not other or not one:
                    return False
                ratio = one / other if ratio is None else ratio
                other = other * ratio
            if abs(one - other) > mpmath.mpf(10) ** -agree * max(abs(one), abs(other)):
                if max(abs(one), abs(other)) < mpmath.mpf(10) ** -agree and not _significant(question, point, digits):
                    continue  # cancellation down to nothing: only algebra can tell
                return False
            defined += 1
    return True if defined >= min(2, 5 if names else 1) else None


def _significant(question: Question, point: dict[str, Any], digits: int) -> bool:
    """Whether tiny values stay the same at twice the precision, so they are no rounding noise."""
    for node in (question.answer, question.gold):
        value = _value(node, point)
        with mpmath.workdps(2 * digits):
            if abs(_value(node, point) - value) > abs(value) * mpmath.mpf(10) ** -20:
                return False
    return True


def _coordinate(k: int, i: int) -> Any:
    """Coordinate i of sample point k: positive, negative and complex numbers, none of them special."""
    size = mpmath.mpf(1009 + 311 * i + 97 * k) / (757 + 53 * ((i * 7 + k * 3) % 11))
    return (size, -size, mpmath.mpc(size / 2, size / 3), size * 3, mpmath.mpc(-size / 3, size / 5))[k]


def _value(node: Node, point: dict[str, Any]) -> Any:
    """The value of a tree in mpmath's current precision."""
    if node.value is not None:
        return mpmath.mpf(node.value.numerator) / node.value.denominator
    if node.op == "sym":
        return point[node.name]
    if node.op == "const":
        return {"pi": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1)}[node.name]
    args = [_value(arg, point) for arg in node.args]
    try:
        value = _NUMERIC[node.op](*args)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        raise _Undefined(str(error)) from error
    if not mpmath.isfinite(value):
        raise _Undefined("not finite")
    return value


def _root(value: Any, index: Any) -> Any:
    if index != int(index.real) or index < 1:
        raise ValueError("a root's index is a positive integer")
    if mpmath.im(value) == 0 and value < 0 and int(index) % 2:
        return -mpmath.root(-value, int(index))  # the real root, as in school
    return mpmath.root(value, int(index))


def _part(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def of_real(value: Any) -> Any:
        if mpmath.im(value):
            raise ValueError("only for real numbers")
        return function(mpmath.re(value))

    return of_real


_SAME_NAME = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp")
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
    **{name: getattr(mpmath, name) for name in _SAME_NAME},
}


def to_sympy(node: Node) -> sympy.Expr:
    """The same tree in sympy, with exact numbers and complex symbols."""
    if node.value is not None:
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if node.op == "sym":
        return sympy.Symbol(node.name)
    if node.op == "const":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[node.name]
    return _EXACT[node.op](*(to_sympy(arg) for arg in node.args))


def _exact_root(value: sympy.Expr, index: sympy.Expr) -> sympy.Expr:
    if value.is_negative and index.is_odd:
        return -sympy.root(-value, index)
    return sympy.root(value, index)


_EXACT: dict[str, Callable[..., Any]] = {
    "add": lambda *terms: sympy.Add(*terms),
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": sympy.Pow,
    "root": _exact_root,
    "fact": sympy.factorial,
    "binom": sympy.binomial,
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
    "log": lambda a, base=None: sympy.log(a, base if base is not None else 10),
    "ln": sympy.log,
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    **{name: getattr(sympy, name) for name in _SAME_NAME},
}


@lru_cache(maxsize=512)
def _exact(node: Node) -> sympy.Expr:
    return to_sympy(node)


def _algebra_agrees(question: Question) -> bool:
    """Whether sympy reduces the exact difference to zero (or the quotient to a nonzero number)."""
    one, other = _exact(question.answer), _exact(question.gold)
    if any(side.has(sympy.zoo, sympy.nan, sympy.oo, sympy.Float) for side in (one, other)):
        return False
    if question.up_to_factor:
        quotient = sympy.cancel(one / other)
        return bool(quotient.is_number and quotient.is_nonzero)
    difference = one - other
    return any(step(difference) == 0 for step in (_same, sympy.expand, _rationalised, sympy.simplify))


def _same(difference: sympy.Expr) -> sympy.Expr:
    return difference


def _rationalised(difference: sympy.Expr) -> sympy.Expr:
    return sympy.expand(sympy.sqrtdenest(sympy.radsimp(difference)))


def _math_verify_agrees(question: Question) -> bool:
    """math_verify's opinion, where the numbers agree beyond the longest number in the expressions."""
    digits = int(2 * (digits_bound(question.answer) + digits_bound(question.gold))) + DIGITS
    if digits > MAX_SECOND_LOOK or not _numerically_alike(question, digits + 20, digits):
        return False
    gold, answer = (
        parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=False)
        for text in (question.gold_text, question.answer_text)
    )
    return bool(gold and answer and verify(gold, answer, timeout_seconds=None, raise_on_error=False))
