"""Units at the end of an answer: which words are units, which of them name the same one."""

from __future__ import annotations

import re

_NAMES: dict[str, str] = {
    "percent": "% pct percent percentage",
    "dollar": "$ dollar dollars usd",
    "cent": "cent cents",
    "euro": "euro euros eur",
    "sterling": "gbp quid",
    "yen": "yen jpy",
    "yuan": "yuan rmb cny",
    "rupee": "rupee rupees inr rs rs.",
    "won": "won krw",
    "degree": "degree degrees deg",
    "celsius": "celsius centigrade",
    "fahrenheit": "fahrenheit",
    "radian": "radian radians rad",
    "millimeter": "mm millimeter millimeters millimetre millimetres",
    "centimeter": "cm centimeter centimeters centimetre centimetres",
    "meter": "m meter meters metre metres",
    "kilometer": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches in.",
    "foot": "ft foot feet ft.",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "gram": "g gram grams",
    "kilogram": "kg kilogram kilograms",
    "pound": "pound pounds",
    "pound-mass": "lb lbs lb. lbs.",
    "ounce": "oz ounce ounces",
    "liter": "l liter liters litre litres",
    "milliliter": "ml milliliter milliliters",
    "gallon": "gal gallon gallons",
    "millisecond": "ms millisecond milliseconds",
    "second": "s sec secs second seconds",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
}
KNOWN: dict[str, str] = {word: unit for unit, words in _NAMES.items() for word in words.split()}
SIGNS = {
    r"\$": "dollar",
    "€": "euro",
    "£": "sterling",
    "¥": "?¥",  # yen or yuan
    "₹": "rupee",
    "₩": "won",
    "¢": "cent",
    r"\%": "percent",
}
DEGREES = {"C": "celsius", r"\text{C}": "celsius", "F": "fahrenheit", r"\text{F}": "fahrenheit"}
_SHORT = {"mph": "mile per hour", "kph": "kilometer per hour", "kmh": "kilometer per hour", "mpg": "mile per gallon"}
_POWERS = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3}
_BARE = {word for word in KNOWN if len(word) > 1} | _POWERS.keys() | _SHORT.keys() | {"per"}
_LOOSE = (  # one word for several units
    {"pound", "pound-mass"},
    {"pound", "sterling"},
    {"degree", "celsius"},
    {"degree", "fahrenheit"},
)
_MONEY = frozenset(("dollar", "cent", "euro", "sterling", "pound", "yen", "yuan", "rupee", "won"))

# Words that change the value or join two answers: what stands before them is not the answer.
_NOT_UNITS = frozenset(
    """or and to not if more less than over under least most between no never minus plus times hundred thousand million
    billion trillion dozen dozens half halves third thirds quarter quarters tenth tenths hundredth hundredths pair pairs
    double triple squared cubed mod modulo base remainder below above about approximately pi score negative
    hundreds thousands millions billions approx roughly around by divided multiplied is equals""".split()  # noqa: SIM905
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*\.?\Z", re.ASCII)
_NUMBER = re.compile(r"[-+]?\s?(?:\\\$)?[0-9][0-9,./]*+\Z", re.ASCII)
_ONE = r"[A-Za-z]{1,20}\.?(?:\^\{?[23]\}?)?"
_LAST_WORDS = re.compile(rf"(?<=[0-9)}}\]])\s++(?P<words>{_ONE}(?:(?:\s?/\s?|\s){_ONE}){{0,3}})\Z", re.ASCII)
_BESIDE_MATHEMATICS = re.compile(
    r"(?:\$(?P<dollars>(?:[^$\\]|\\.)++)\$|\\\((?P<round>(?:[^\\]|\\[^)])++)\\\))\s*+(?P<words>[A-Za-z][^$\\]{0,60})\Z",
    re.ASCII,
)
_RAISED = re.compile(r"\^\s*\{?([23])\}?\Z", re.ASCII)
_LONGEST = 100  # characters of a number's words
MAX_WORDS = 4  # "square feet per minute"


def bare_unit(text: str) -> str:
    r"""`72 apples`, `5 m/s` and `$9$ hours` with their unit as `\text{...}`; anything else unchanged.

    Behind dollars, words are no mathematics. Else a bare word is a unit only after a space, and only if it is a known
    one of two letters or more (or part of a quotient of known ones), or, behind a number, too long for a product.
    """
    if not text or not (text[-1].isalpha() or text[-1] in ".}23"):
        return text
    beside = _BESIDE_MATHEMATICS.match(text)
    if beside is not None:
        words = beside["words"].rstrip(". ")
        named = unit_of(words) if len(words) > 1 or words.lower() in KNOWN else None
        return f"{beside['dollars'] or beside['round']}\\text{{{words}}}" if named else text
    match = _LAST_WORDS.search(text, max(0, len(text) - _LONGEST))
    if match is None:
        return text
    words, body = match["words"], text[: match.start()]
    parts = [_RAISED.sub("", part).lower() for part in re.split(r"[\s/]+", words)]
    quotient = "/" in words and all(part in KNOWN for part in parts)
    known = all(
        (part in KNOWN and len(part) > 1) or part in _POWERS or part in _SHORT or part == "per" for part in parts
    )
    long = _NUMBER.match(body) and all(len(part) >= 4 or part in KNOWN or part in _POWERS for part in parts)
    if not (quotient or known or (long and all(len(part) > 1 for part in parts))):
        return text
    return f"{body}\\text{{{words.rstrip('.')}}}"


def unit_of(words: str, power: int = 1) -> str | None:
    r"""Canonical name of a unit (`meter per second^2`), `?words` for an unknown one, None where the words are no unit.

    Args:
        words: `cm`, `square feet per minute`, `m/s^2`.
        power: of the last unit, as in `\text{cm}^2`.
    """
    parts = words.lower().replace("/", " per ").replace(" ^", "^").split()
    if not parts or sum(part != "per" for part in parts) > MAX_WORDS:
        return None
    canonical: list[str] = []
    known, raised = True, 1
    for i, part in enumerate(parts):
        found = _RAISED.search(part)
        exponent = (int(found[1]) if found else 1) * (power if i == len(parts) - 1 else 1)
        word = part[: found.start()] if found else part
        if word != "%" and (not _WORD.match(word) or word.rstrip(".") in _NOT_UNITS):
            return None
        if word in _POWERS:
            raised *= _POWERS[word]
            continue
        named = _SHORT.get(word) or KNOWN.get(word)
        known = known and (named is not None or word == "per")
        canonical.append(_raise(named or word, exponent * raised))
        raised = 1
    if known and canonical[0] == "degree" and canonical[1:] in (["celsius"], ["fahrenheit"]):
        return canonical[1]
    return " ".join(canonical) if known and raised == 1 else "?" + " ".join(parts)


def _raise(name: str, power: int) -> str:
    return name if power == 1 else f"{name}^{power}"


def units_conflict(one: str | None, other: str | None) -> bool:
    """Whether both units are known and differ; an amount of money may leave out what it is paid for."""
    if one is None or other is None or one.startswith("?") or other.startswith("?") or one == other:
        return False
    if {one, other} in _LOOSE:
        return False
    (first, per, _), (second, also_per, _) = one.partition(" per "), other.partition(" per ")
    return not (bool(per) != bool(also_per) and first == second and first in _MONEY)
