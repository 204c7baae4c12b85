"""How large could an expression become? Answered from its tree alone, before any computer algebra sees it."""

from __future__ import annotations

import math

from rlspec.rlvr.grading.expression import Node, OverBudget

MAX_LENGTH = 300  # characters of an answer that is not literally the gold
MAX_TOWER = 2  # exponents above one another
MAX_EXPONENT = 10_000
MAX_FACTORIAL = 200
MAX_BINOMIAL = 1_000
MAX_DIGITS = 20_000  # of any number on the way
MAX_TERMS = 2_000  # of the expanded expression


def check_budget(node: Node) -> None:
    """Refuse what could keep computer algebra busy.

    Raises:
        OverBudget: with the limit that would be passed.
    """
    _digits(node)
    if _terms(node) > MAX_TERMS:
        raise OverBudget(f"more than {MAX_TERMS} terms when expanded")
    if _tower(node) > MAX_TOWER:
        raise OverBudget(f"more than {MAX_TOWER} exponents above one another")


def digits_bound(node: Node) -> float:
    """An upper bound on the decimal digits of numerator and denominator of any number in the tree.

    Raises:
        OverBudget: an exponent, a factorial, a binomial or the bound itself passes its limit.
    """
    return _digits(node)


def _limited(digits: float) -> float:
    if digits > MAX_DIGITS:
        raise OverBudget(f"numbers of more than {MAX_DIGITS} digits")
    return digits


def _magnitude(node: Node, limit: int, what: str) -> float:
    """Upper bound on the absolute value of an argument that decides about the size of the result."""
    if node.op == "num" and node.value is not None:
        size: float = math.ceil(abs(node.value)) if abs(node.value) <= limit else math.inf
    elif node.op == "neg":
        return _magnitude(node.args[0], limit, what)
    else:
        digits = _digits(node)
        size = 10**digits if digits < 6 else math.inf
    if size > limit:
        raise OverBudget(f"{what} above {limit}")
    return max(size, 1.0)


def _digits(node: Node) -> float:
    """Bound on log10 of the numerators and denominators that evaluating the node may produce."""
    if node.value is not None:
        return math.log10(abs(node.value.numerator) + 1) + math.log10(node.value.denominator)
    if node.op == "pow":
        exponent = _magnitude(node.args[1], MAX_EXPONENT, "an exponent")
        return _limited(exponent * max(_digits(node.args[0]), 0.3))
    if node.op == "fact":
        n = _magnitude(node.args[0], MAX_FACTORIAL, "a factorial")
        return _limited(n * math.log10(n + 1))
    if node.op == "binom":
        n = max(_magnitude(arg, MAX_BINOMIAL, "a binomial") for arg in node.args)
        return _limited(n * 0.31 + 1)
    if node.op == "exp":
        return _limited(0.44 * _magnitude(node.args[0], MAX_EXPONENT, "an exponent"))
    if node.op in ("sinh", "cosh"):
        return _limited(0.44 * _magnitude(node.args[0], MAX_EXPONENT, "an argument"))
    if node.op == "root":
        _magnitude(node.args[1], 100, "a root's index")
    if not node.args:
        return 0.5  # a symbol or a constant
    inner = [_digits(arg) for arg in node.args]
    if node.op == "add":
        return _limited(sum(inner) + math.log10(len(inner)) if len(inner) < 40 else sum(inner) + 2)
    return _limited(sum(inner))


def _terms(node: Node) -> float:
    """Bound on the number of terms after expanding all products and powers."""
    inner = [_terms(arg) for arg in node.args]
    if node.op == "add":
        return sum(inner)
    if node.op in ("mul", "div"):
        return math.prod(inner)
    if node.op == "pow" and inner[0] > 1:
        exponent = node.args[1]
        if exponent.op == "neg":
            exponent = exponent.args[0]
        if exponent.value is not None and exponent.value.denominator == 1:
            n, t = int(exponent.value), int(min(inner[0], MAX_TERMS + 1))
            return math.comb(n + t - 1, min(n, t - 1)) if n + t < 3 * MAX_TERMS and min(n, t - 1) < 60 else math.inf
    return max(inner, default=1.0)


def _tower(node: Node) -> int:
    """How many exponents stand above one another."""
    if node.op == "pow":
        return max(_tower(node.args[0]), 1 + _tower(node.args[1]))
    return max((_tower(arg) for arg in node.args), default=0)
