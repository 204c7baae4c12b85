"""Light numerical values of trees and forms in plain Python: they show that two answers differ."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rlspec.rlvr.grading.budget import check_budget
from rlspec.rlvr.grading.expression import Node, OverBudget, Unreadable, parse_expression
from rlspec.rlvr.grading.forms import Form, aligned
from rlspec.rlvr.grading.names import is_name
from rlspec.rlvr.grading.plain import based_number, plain_number
from rlspec.rlvr.grading.regions import region
from rlspec.rlvr.grading.units import units_conflict

CLEARLY = 1e-6  # relative difference that no rounding explains
_MAX_FACTORIAL = 3_000
UNDEFINED = (ArithmeticError, ValueError, TypeError, OverBudget, Unreadable)


def clearly_differ(one: Form, other: Form) -> bool:
    """True only if two forms certainly mean different things; False where that is unknown."""
    if one.kind == "equation" and other.kind == "equation":
        return one.tokens == other.tokens and clearly_differ(one.items[0], other.items[0])
    if "equation" in (one.kind, other.kind):
        return _named_differs(one, other) if one.kind == "equation" else _named_differs(other, one)
    if "named" in (one.kind, other.kind) and one.kind != other.kind:
        bare = other if one.kind == "named" else one
        return (bare.kind == "list" or (bare.kind, bare.mark) == ("tuple", "()")) and _any_differ(one, other)
    if "set" in (one.kind, other.kind) and {one.kind, one.mark, other.kind, other.mark} <= {"set", "list", ""}:
        return len(one.items) != len(other.items) or _collections_differ(one, other)
    if one.kind == other.kind == "named":
        one = aligned(one, other) or one
    if one.kind != other.kind or one.mark != other.mark:
        one, other = region(one) or one, region(other) or other
    if one.kind != other.kind or one.mark != other.mark:
        return not _one_is_word(one, other) and not _sole(one, other)
    if one.kind == "word":
        return one.text.casefold().replace(" ", "") != other.text.casefold().replace(" ", "")
    if one.kind == "scalar":
        return units_conflict(one.unit, other.unit) or _scalars_differ(one, other)
    if len(one.items) != len(other.items):
        return True
    if one.kind in ("set", "list", "union"):
        return _collections_differ(one, other)
    return _any_differ(one, other)


def _any_differ(one: Form, other: Form) -> bool:
    """Whether elements at one place differ; False if the numbers of elements do."""
    return len(one.items) == len(other.items) and any(map(clearly_differ, one.items, other.items))


def _named_differs(named: Form, other: Form) -> bool:
    return named.mark == "=" and is_name(named.tokens) and clearly_differ(named.items[0], other)


def _sole(one: Form, other: Form) -> bool:
    """Whether one is a set of one element, which may be the other."""
    return any(form.kind == "set" and len(form.items) == 1 for form in (one, other))


def _one_is_word(one: Form, other: Form) -> bool:
    return "word" in (one.kind, other.kind)


def _scalars_differ(one: Form, other: Form) -> bool:
    exact = [plain_number(form.text) for form in (one, other)]
    if exact[0] is not None and exact[1] is not None:
        return abs(exact[0] - exact[1]) > abs(exact[1]) * Fraction(1, 10**6)
    based = [based_number(form.text) for form in (one, other)]
    if any(based):
        return based[0] != based[1]
    try:
        trees = [parse_expression(list(form.tokens)) for form in (one, other)]
        return any(_far(*(value(tree, k) for tree in trees)) for k in range(3))
    except UNDEFINED:
        return False


def _collections_differ(one: Form, other: Form) -> bool:
    """Sums over all scalars inside, which do not depend on the order."""
    try:
        return any(_far(*(_sum(form, k, power) for form in (one, other))) for k in (0, 1) for power in (1, 2))
    except UNDEFINED:
        return False


def _sum(form: Form, k: int, power: int) -> Any:
    if form.kind == "scalar":
        infinite = form.text in (r"\infty", r"-\infty")
        return 10**6 if infinite else value(parse_expression(list(form.tokens)), k) ** power
    if not form.items:
        raise Unreadable("no numbers")
    return sum(_sum(item, k, power) for item in form.items)


def _far(one: Any, other: Any) -> bool:
    return abs(one - other) > CLEARLY * max(abs(one), abs(other))


def value(node: Node, k: int) -> Any:
    """The value at sample point k: an exact Fraction as long as everything is rational, then a complex float.

    Raises:
        ArithmeticError, ValueError, TypeError, OverBudget: it has none that plain Python can hold.
    """
    _check_size(node)
    return _value(node, k)


def _check_size(node: Node) -> None:
    """As `check_budget`, but with factorials of larger numbers, alone or in quotients: exact they cost little."""
    if node.op in ("div", "neg"):
        for arg in node.args:
            _check_size(arg)
    elif node.op != "fact" or node.args[0].op != "num":
        check_budget(node)


def _value(node: Node, k: int) -> Any:
    if node.value is not None:
        return node.value
    if node.op == "sym":
        return Fraction(7 + 4 * k + sum(map(ord, node.name)) % 101, 5 + 3 * k)
    if node.op == "const":
        return {"pi": math.pi, "e": math.e, "i": 1j}[node.name]
    return _OPERATIONS[node.op](*(_value(arg, k) for arg in node.args))


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        return base ** int(exponent)
    return complex(base) ** complex(exponent)


def _factorial(n: Any) -> Fraction:
    if not isinstance(n, Fraction) or n.denominator != 1 or not 0 <= n <= _MAX_FACTORIAL:
        raise ValueError("only small integers")
    return Fraction(math.factorial(int(n)))


def _complex(function: Callable[[complex], complex]) -> Callable[[Any], complex]:
    return lambda argument: function(complex(argument))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda *terms: sum(terms, Fraction(0)),
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": _power,
    "root": lambda a, n: complex(a) ** (1 / complex(n)),
    "fact": _factorial,
    "binom": lambda n, k: Fraction(math.comb(int(n), int(k))),
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "log": lambda a, base=Fraction(10): cmath.log(complex(a)) / cmath.log(complex(base)),
    "ln": _complex(cmath.log),
    "arcsin": _complex(cmath.asin),
    "arccos": _complex(cmath.acos),
    "arctan": _complex(cmath.atan),
    "cot": lambda a: 1 / cmath.tan(complex(a)),
    "sec": lambda a: 1 / cmath.cos(complex(a)),
    "csc": lambda a: 1 / cmath.sin(complex(a)),
    **{name: _complex(getattr(cmath, name)) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp")},
}
