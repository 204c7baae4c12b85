r"""Symbolic equality that is certain: high-precision numbers refuse, exact algebra accepts. Imports sympy.

An answer is accepted only if (1) both trees agree to at least 40 digits at several points of the complex plane,
relative to their own size, so that `1/2004!` and `1/2006!` differ, and (2) equality is proven: sympy reduces the
exact difference (rationals, never floats) to zero, or, where it cannot, math_verify says equal with both sides in
`\boxed{}` and the numbers still agree at a precision beyond the longest number that the expressions can hold.
math_verify alone is never believed: it compares floats, forgets brackets, and reads parts of a text.

Where the complex plane says no, real variables may say yes: `\sqrt{1/n}` and `1/\sqrt{n}` differ for n < 0, where
neither is real. There both must be real at the same points, and equal, and sympy has to prove it for each combination
of signs. `x` for `\sqrt{x^2}` fails at the first negative x, as `2\ln x` for `\ln x^2` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import sympy
from math_verify import parse, verify

from rlspec.rlvr.grading.budget import digits_bound
from rlspec.rlvr.grading.expression import Node
from rlspec.rlvr.grading.numeric import SAME_NAME, numerically_alike, real_orthants
from rlspec.rlvr.grading.question import Question
from rlspec.rlvr.grading.verdict import Reason

DIGITS = 60  # of the numerical comparison, besides twice those of the longest number: one half may cancel
AGREE = 40  # digits in which equal expressions must agree, besides those of the longest number
MAX_LONGEST = 2000  # digits of a number that are followed that far
MAX_SECOND_LOOK = 600  # digits at which math_verify's opinion can still be checked

for _name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # they log what they cannot read, with the whole text


def prove(question: Question) -> Reason:
    """Answer `symbolic`, `different` or `unproven`."""
    longest = int(min(digits_bound(question.answer) + digits_bound(question.gold), MAX_LONGEST))
    digits, agree = DIGITS + 2 * longest, AGREE + longest
    alike = numerically_alike(question, digits, agree)
    if alike is False:
        return "symbolic" if _equal_for_real_variables(question, digits, agree) else "different"
    if _algebra_agrees(question):
        return "symbolic"
    if alike and not question.up_to_factor and _math_verify_agrees(question):
        return "symbolic"
    return "unproven"


def to_sympy(node: Node, signs: Mapping[str, int] | None = None) -> sympy.Expr:
    """The same tree in sympy, with exact numbers, and symbols that are complex or real with these signs."""
    if node.value is not None:
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if node.op == "sym":
        return signs[node.name] * sympy.Symbol(node.name, positive=True) if signs else sympy.Symbol(node.name)
    if node.op == "const":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[node.name]
    return _EXACT[node.op](*(to_sympy(arg, signs) for arg in node.args))


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
    **{name: getattr(sympy, name) for name in SAME_NAME},
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


def _equal_for_real_variables(question: Question, digits: int, agree: int) -> bool:
    """Whether both are equal for all signs of the variables with which they are real: tried at points, then proven."""
    if question.up_to_factor:
        return False
    orthants = real_orthants(question, digits, agree)
    return bool(orthants) and all(_proven_for(question, signs) for signs in orthants)


def _proven_for(question: Question, signs: Mapping[str, int]) -> bool:
    """Whether both are equal for all variables of these signs: where x < 0, for example, x + 20 may have either."""
    difference = to_sympy(question.answer, signs) - to_sympy(question.gold, signs)
    return any(step(difference) == 0 for step in (_same, sympy.expand, sympy.expand_log, sympy.simplify))


def _same(difference: sympy.Expr) -> sympy.Expr:
    return difference


def _rationalised(difference: sympy.Expr) -> sympy.Expr:
    return sympy.expand(sympy.sqrtdenest(sympy.radsimp(difference)))


def _math_verify_agrees(question: Question) -> bool:
    """math_verify's opinion, where the numbers agree beyond the longest number in the expressions."""
    digits = int(2 * (digits_bound(question.answer) + digits_bound(question.gold))) + DIGITS
    if digits > MAX_SECOND_LOOK or not numerically_alike(question, digits + 20, digits):
        return False
    gold, answer = (
        parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=False)
        for text in (question.gold_text, question.answer_text)
    )
    return bool(gold and answer and verify(gold, answer, timeout_seconds=None, raise_on_error=False))
