"""Units at the end of an answer: which words are units, which of them name the same one."""

from __future__ import annotations

import re

_NAMES: dict[str, str] = {
    "percent": "% pct percent percentage",
    "dollar": "$ dollar dollars usd",
    "cent": "cent cents",
    "euro": "euro euros",
    "degree": "degree degrees deg",
    "radian": "radian radians rad",
    "millimeter": "mm millimeter millimeters",
    "centimeter": "cm centimeter centimeters centimetre centimetres",
    "meter": "m meter meters metre metres",
    "kilometer": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches in.",
    "foot": "ft foot feet ft.",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "gram": "g gram grams",
    "kilogram": "kg kilogram kilograms",
    "pound": "lb lbs pound pounds",
    "ounce": "oz ounce ounces",
    "liter": "l liter liters litre litres",
    "milliliter": "ml milliliter milliliters",
    "gallon": "gal gallon gallons",
    "second": "s sec secs second seconds",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "mph": "mph",
}
KNOWN: dict[str, str] = {word: unit for unit, words in _NAMES.items() for word in words.split()}

# Words that change the value or join two answers: what stands before them is not the answer.
_NOT_UNITS = frozenset(
    """or and to not if more less than over under least most between no never minus plus times hundred thousand million
    billion trillion dozen dozens half halves third thirds quarter quarters tenth tenths hundredth hundredths pair pairs
    double triple squared cubed mod modulo base remainder below above about approximately pi score negative
    hundreds thousands millions billions approx roughly around by divided multiplied is equals""".split()  # noqa: SIM905
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*\.?\Z", re.ASCII)
_NUMBER_AND_WORDS = re.compile(
    r"([-+]?\s?(?:\\\$)?[0-9][0-9,./]*+)\s++([A-Za-z]{2,20}+(?: [A-Za-z]{2,20}+){0,2}+)\.?\Z", re.ASCII
)
_RAISED = re.compile(r"\^\s*\{?([23])\}?\s*\Z", re.ASCII)
MAX_WORDS = 4  # "square feet per minute"
_POWERS = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3}


def bare_unit(text: str) -> str:
    r"""`72 apples` as `72\text{apples}`; anything else unchanged.

    A bare word counts as a unit after a space, and only if it is a known one or too long for a product of variables.
    """
    match = _NUMBER_AND_WORDS.match(text)
    if match is None:
        return text
    number, words = match.groups()
    if not all(len(word) >= 4 or word.lower() in KNOWN or word.lower() in _POWERS for word in words.split()):
        return text
    return f"{number}\\text{{{words}}}"


def unit_of(words: str, power: int = 1) -> str | None:
    """Canonical name of a unit, `?words` for an unknown one, None where the words are no unit."""
    raised = _RAISED.search(words)
    if raised is not None:
        words, power = words[: raised.start()], power * int(raised[1])
    parts = words.lower().replace("^", " ").replace("/", " per ").split()
    if not parts or len(parts) > MAX_WORDS or not all(_WORD.match(part) for part in parts):
        return None
    if any(part.rstrip(".") in _NOT_UNITS for part in parts):
        return None
    for part in parts:
        power *= _POWERS.get(part, 1)
    named = [KNOWN[part] for part in parts if part in KNOWN]
    if len(named) != 1 or any(part not in KNOWN and part not in _POWERS for part in parts):
        return "?" + " ".join(parts)
    return named[0] if power == 1 else f"{named[0]}^{power}"


def units_conflict(one: str | None, other: str | None) -> bool:
    """Whether both units are known and differ."""
    if one is None or other is None or one.startswith("?") or other.startswith("?"):
        return False
    return one != other
