r"""Plain numbers: integers, decimals, fractions of integers, mixed and scientific numbers, exactly.

A plain gold wants a plain answer. `12+30`, `5!`, `\sin^2 x+\cos^2 x`, an integral, or a fraction of integers that is
an integer (`84/2`) are work left to do: accepting them would pay a policy for copying the question into the box. The
one exception is scientific notation (`6.72\times10^{-5}`, `10^6`). Fractions need not be in lowest terms:
`\frac{6}{8}` is 0.75.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rlspec.rlvr.grading.budget import MAX_EXPONENT

TOLERANCE = Fraction(1, 1_000_000)  # relative, for golds that are decimals of at least four significant digits

_PLAIN = re.compile(
    r"""(?P<sign>[-+]?)(?:
      (?P<scientific>(?:(?P<mantissa>[0-9]+(?:\.[0-9]+)?)\*)?10\^\{(?P<exponent>[-+]?[0-9]{1,5})\})
    | (?P<whole>[0-9]+)?\\frac\{(?P<top_sign>[-+]?)(?P<top>[0-9]+)\}\{(?P<bottom_sign>[-+]?)(?P<bottom>[0-9]+)\}
    | (?P<left>[0-9]+)/(?P<right>[0-9]+)
    | (?P<repeating>[0-9]+\.[0-9]*)\\overline\{(?P<period>[0-9]+)\}
    | (?P<number>[0-9]+(?:\.[0-9]+)?)
    )\Z""",
    re.VERBOSE | re.ASCII,
)

_DECIMAL = re.compile(r"-?[0-9]{1,300}(?:\.[0-9]{1,300})?\Z", re.ASCII)
_BASED = re.compile(r"([0-9A-F]+)_\{([0-9]{1,2})\}\Z", re.ASCII)


def is_decimal(text: str) -> bool:
    """Whether a text is nothing but digits with a sign and a point, as most golds are: it needs no tokens."""
    return _DECIMAL.match(text) is not None


def based_number(text: str) -> tuple[str, str] | None:
    """Digits (without leading zeros) and base of `52_{8}`; such a number equals only itself in the same base."""
    match = _BASED.match(text)
    return (match[1].lstrip("0") or "0", match[2]) if match and match[1][0].isdigit() else None


def plain_number(text: str) -> Fraction | None:
    """The exact value of a canonical text that is a plain number, else None."""
    match = _PLAIN.match(text)
    if match is None:
        return None
    value = _magnitude(match)
    if value is None:
        return None
    return -value if match["sign"] == "-" else value


def _magnitude(match: re.Match[str]) -> Fraction | None:
    if match["number"]:
        return Fraction(match["number"])
    if match["left"]:
        return Fraction(int(match["left"]), int(match["right"])) if int(match["right"]) else None
    if match["top"]:
        return _fraction(match)
    if match["period"]:
        head, period = match["repeating"], match["period"]
        decimals = len(head.partition(".")[2])
        return Fraction(head + "0") + Fraction(int(period), (10 ** len(period) - 1) * 10**decimals)
    exponent = int(match["exponent"])
    if abs(exponent) > MAX_EXPONENT:
        return None
    return Fraction(match["mantissa"] or 1) * Fraction(10) ** exponent


def _fraction(match: re.Match[str]) -> Fraction | None:
    bottom = int(match["bottom"])
    if bottom == 0:
        return None
    value = Fraction(int(match["top"]), bottom)
    if match["whole"]:
        return None if match["top_sign"] or match["bottom_sign"] else int(match["whole"]) + value
    return -value if (match["top_sign"] == "-") != (match["bottom_sign"] == "-") else value


def is_integer_ratio(text: str, value: Fraction) -> bool:
    r"""Whether an integer is written as an undone division (`84/2`, `\frac{6}{3}`)."""
    return value.denominator == 1 and ("/" in text or "\\frac" in text)


def same_decimal(answer: str, value: Fraction, gold: str, target: Fraction) -> bool:
    """Whether an answer rounds to a decimal gold.

    Only for golds with at least four significant digits, for answers with more decimals than the gold (or fractions),
    within 1e-6 relative and half a unit of the gold's last place, so no other decimal of the gold's length is
    accepted.
    """
    _, point, decimals = gold.partition(".")
    if not point or not decimals.isdigit() or len(gold.lstrip("-+0.").replace(".", "")) < 4:
        return False
    if "\\frac" not in answer and "/" not in answer and len(answer.partition(".")[2]) <= len(decimals):
        return False
    distance = abs(value - target)
    return distance <= TOLERANCE * abs(target) and distance * 2 * 10 ** len(decimals) <= 1
