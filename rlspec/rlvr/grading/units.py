"""Units at the end of an answer: which words are units, which of them name the same one.

A word nobody knows is a unit only beside a known one or where it is what is counted, which is a plural (`apples`), and
a singular behind 1, a fraction or a decimal (`1/2 pie`): so `K`, `lakh`, `six` and whatever else may change the value
is none, and only singulars that may change it are listed.
"""

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
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "kilometer": "km kms",
    "inch": "in inch inches in.",
    "foot": "ft foot feet ft.",
    "yard": "yd yard yards",
    "mile": "mi mile miles",
    "gram": "g",
    "kilogram": "kg kgs",
    "pound": "pound pounds",
    "pound-mass": "lb lbs lb. lbs.",
    "ounce": "oz ounce ounces",
    "liter": "l",
    "milliliter": "ml",
    "cup": "cup cups",
    "acre": "acre acres",
    "ton": "ton tons",
    "unit": "unit units",
    "revolution": "revolution revolutions",
    "foot-pound": "ft-lb ft-lbs",
    "gallon": "gal gallon gallons",
    "millisecond": "ms",
    "second": "s sec secs",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
}
_PREFIXES = {"": "", "nano": "n", "micro": "u", "milli": "m", "centi": "c", "kilo": "k", "mega": "M", "giga": "G"}
_METRIC = {
    "meter": "m",
    "gram": "g",
    "second": "s",
    "liter": "L",
    "hertz": "Hz",
    "watt": "W",
    "joule": "J",
    "newton": "N",
    "pascal": "Pa",
    "volt": "V",
    "byte": "B",
}
_PREFIXED = {short + symbol: big + unit for big, short in _PREFIXES.items() for unit, symbol in _METRIC.items()} | {
    "dm": "decimeter",
    "dL": "deciliter",
    "KB": "kilobyte",
    "TB": "terabyte",
    "kWh": "kilowatt-hour",
    "kcal": "kilocalorie",
    "mol": "mole",
    "hp": "horsepower",
    "ha": "hectare",
}
KNOWN: dict[str, str] = {
    **{unit + plural: unit for unit in _PREFIXED.values() for plural in ("", "s")},
    **{re.sub("er$", f"re{plural}", unit): unit for unit in _PREFIXED.values() for plural in ("", "s")},
    **{word: unit for unit, words in _NAMES.items() for word in words.split()},
}
# In a text only, as bare `kN` is a product, and with their case; without `B`, as `5B` is five billion.
_SYMBOLS = {
    **{symbol: unit for symbol, unit in _PREFIXED.items() if symbol != "B"},
    **dict.fromkeys(("am", "AM", "a.m.", "A.M."), "ante-meridiem"),
    **dict.fromkeys(("pm", "PM", "p.m.", "P.M."), "post-meridiem"),
    **dict.fromkeys(("BC", "BCE", "B.C."), "before-Christ"),
    **dict.fromkeys(("AD", "CE", "A.D."), "anno-Domini"),
    **dict.fromkeys(("st", "nd", "rd", "th"), "ordinal"),
    "C": "celsius",
    "F": "fahrenheit",
    "cc": "centimeter^3",
    "psi": "pound per inch^2",
    "fl": "?fluid",
}
SIGNS = {
    r"\$": "dollar",
    "€": "euro",
    "£": "sterling",
    "¥": "yen-or-yuan",
    "₹": "rupee",
    "₩": "won",
    "¢": "cent",
    r"\%": "percent",
}
DEGREES = {"C": "celsius", r"\text{C}": "celsius", "F": "fahrenheit", r"\text{F}": "fahrenheit"}
_SHORT = {
    "mph": "mile per hour",
    "kph": "kilometer per hour",
    "kmh": "kilometer per hour",
    "mpg": "mile per gallon",
    "rpm": "revolution per minute",
}
_POWERS = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3}
_LOOSE = (  # one word for several units
    {"pound", "pound-mass"},
    {"pound", "sterling"},
    {"yen-or-yuan", "yen"},
    {"yen-or-yuan", "yuan"},
    {"degree", "celsius"},
    {"degree", "fahrenheit"},
)
_MONEY = frozenset(("dollar", "cent", "euro", "sterling", "pound", "yen", "yuan", "yen-or-yuan", "rupee", "won"))

# Words that change the value or join two answers: what stands before them is not the answer.
_NOT_UNITS = frozenset(
    """or and to not if more less than over under least most between no never minus plus times squared cubed mod modulo
    remainder below above about approximately pi negative approx roughly around by divided multiplied is equals does has
    was yes always perhaps maybe sometimes besides binary octal hexadecimal wrong incorrect false this thus versus
    modulus repeating recurring repeated periodic factorial root inverse reciprocal exponent power infinity mil mill
    ppm ppb milli centi micro nano mega giga tera bn mn tn cr ln lg vs off error null none undefined other another
    """.split()  # noqa: SIM905
)
_NUMBER_WORD = re.compile(  # in the singular
    r"(?:.*-)?(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teen(?:th)?|(?:hundred|thousand|[a-z]*illion|[a-z]*illiard)(?:th)?"
    r"|half|halve|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|[a-z]+tieth"
    r"|first|lakh|crore|myriad|googol|googolplex|bil|kilo|dozen|score|gross|grand|pair|double|triple|base)\Z"
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+\.?\Z", re.ASCII)
_COUNTED = re.compile(
    r"[a-z'-]+[^s]s'?\Z|(?:.*men|people|.*children|.*fish|sheep|deer|mice|teeth|geese|dice"
    r"|bacteria|criteria|phenomena|data|media|larvae|antennae|cacti|fungi|alumni|nuclei|radii|foci|octopi"
    r"|candy|pizza|fruit|money|water|food|total|altogether|all|left|remaining|each)\Z"
)
_SINGULARS = {"people": "person", "children": "child", "men": "man", "women": "woman"}
_LITTLE = frozenset(("a", "an", "of", "the", "in", "on", "at"))
_ANY_UNIT = re.compile(r"unit(?:\^[0-9])?\Z")
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


def unit_of(words: str, *, singular: bool = False) -> str | None:
    r"""Canonical name of a unit, or None where the words are no unit.

    Known parts have their names (`meter per second^2`), unknown ones are marked (`mile ?north`, `?apple`).

    Args:
        words: `cm`, `square feet per minute`, `m/s^2`.
        singular: whether what is counted may be a singular, as it is behind 1, a fraction or a decimal.
    """
    parts = words.replace("/", " per ").replace(" ^", "^").split()
    if not parts or sum(part != "per" for part in parts) > MAX_WORDS:
        return None
    canonical: list[str] = []
    amount, raised = singular, 1
    for i, part in enumerate(parts):
        found = _RAISED.search(part)
        exponent = int(found[1]) if found else 1
        word = part[: found.start()] if found else part
        if word.lower() in _POWERS:
            raised *= _POWERS[word.lower()]
        elif word == "per":
            canonical.append(word)
        elif word.lower() not in _LITTLE or (word == "in" and parts[i + 1 : i + 2] in ([], ["per"])):
            beside = any(unit[0] != "?" for unit in canonical)
            name = _known(word) or _known(word.rstrip(".")) or _unknown(word, shortest=2 if beside else 3)
            if name is None:
                return None
            canonical.append(_raise(name, exponent * raised))
            amount = amount or name[0] != "?" or _COUNTED.match(word.lower().rstrip(".")) is not None
            raised = 1
    if not amount or raised != 1:
        return None
    return canonical[1] if canonical in (["degree", "celsius"], ["degree", "fahrenheit"]) else " ".join(canonical)


def is_symbol(letter: str) -> bool:
    """Whether one letter is a unit."""
    return letter in _SYMBOLS or letter in KNOWN


def _known(word: str) -> str | None:
    """The unit that a word names; case counts where a capital would be another prefix, or a number (`M`, `K`)."""
    if word in _SYMBOLS or (len(word) == 1 and word.isupper()) or (len(word) == 2 and word[0] == "M"):
        return _SYMBOLS.get(word)
    return _SHORT.get(word.lower()) or KNOWN.get(word.lower())


def _unknown(word: str, shortest: int) -> str | None:
    """A word that is no known unit, in the singular and marked; None where it may change the value."""
    lower = word.lower().rstrip(".'")
    single = _singular(lower)
    if not _WORD.match(word) or len(lower) < shortest or _NOT_UNITS & {lower, single} or _NUMBER_WORD.match(single):
        return None
    return f"?{single}"


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return _SINGULARS.get(word) or (word[:-1] if word.endswith("s") and not word.endswith("ss") else word)


def _raise(name: str, power: int) -> str:
    return name if power == 1 else f"{name}^{power}"


def units_conflict(one: str | None, other: str | None) -> bool:
    """Whether two units differ in a known one, or each has an unknown word that the other has not.

    A unit that one side leaves out does not count, nor what an amount of money is paid for, nor mere `units`.
    """
    if one is None or other is None or one == other or bool(_ANY_UNIT.match(one)) != bool(_ANY_UNIT.match(other)):
        return False
    words, others = ({word for word in unit.split() if word[0] == "?"} for unit in (one, other))
    if not (words <= others or others <= words):
        return True
    known, also = (" ".join(word for word in unit.split() if word[0] != "?") for unit in (one, other))
    if known == also or {known, also} in _LOOSE:
        return False
    (first, per, _), (second, also_per, _) = known.partition(" per"), also.partition(" per")
    return not (bool(per) != bool(also_per) and first == second and first in _MONEY)
