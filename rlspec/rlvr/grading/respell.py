"""The same answer in every other notation that the grader reads: what `equivalents` lists and `mutate` falsifies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from rlspec.rlvr.grading.forms import Form
from rlspec.rlvr.grading.plain import plain_number

_DECIMAL = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?\Z", re.ASCII)
_FULL_WIDTH = str.maketrans({",": "，", "(": "（", ")": "）", "<": "＜", "=": "＝"})  # noqa: RUF001
_TYPED = (
    (re.compile(r"\\left|\\right"), ""),
    (re.compile(r"(?<=[0-9])\\frac\{([0-9]+)\}\{([0-9]+)\}"), r" \1/\2"),
    (re.compile(r"\\frac\{([0-9]+)\}\{([0-9]+)\}"), r"\1/\2"),
    (re.compile(r"\\frac\{([^{}]+)\}\{([^{}]+)\}"), r"(\1)/(\2)"),
    (re.compile(r"\\sqrt\{([^{}]+)\}"), r"sqrt(\1)"),
    (re.compile(r"\^\{([^{}]+)\}"), r"**(\1)"),
    (re.compile(r"\s*\\(?:cdot|times)\s*(?![A-Za-z])"), "*"),
    (re.compile(r"\\(?:leq|le)(?![A-Za-z])"), "<="),
    (re.compile(r"\\(?:geq|ge)(?![A-Za-z])"), ">="),
    (re.compile(r"(?<![A-Za-z])\\(pi|sin|cos|tan|ln|log)(?![A-Za-z])\s*"), r"*\1"),
    (re.compile(r"(?<![0-9A-Za-z)*])\*(?!\*)|(?<=\()\*"), ""),
)
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_NAMES = "xyz"
_LETTERS = "nkb"


class Variant(NamedTuple):
    """An answer near a gold, and how it was made."""

    kind: str
    answer: str


def respelled(text: str, form: Form) -> Iterator[Variant]:
    """Other notations of a gold; some are the text itself.

    Args:
        text: the bare gold.
        form: what `read_form` makes of it.
    """
    if form.kind != "word" and "text" not in text and "mbox" not in text:
        yield from _typed(text)
        if (over := _FRACTION.sub(r"{\1\\over \2}", text)) != text:
            yield Variant("over", over)
    if form.kind == "scalar" and form.unit is None:
        yield from _scalar(form)
        if plain_number(form.text) is not None:
            yield from _number(form.text)
    yield from _region(form)
    yield from _collection(form)
    if form.kind == "matrix" and form.mark.startswith("array"):
        yield from _matrix(form)


def _typed(text: str) -> Iterator[Variant]:
    typed = text
    for pattern, plain in _TYPED:
        typed = pattern.sub(plain, typed)
    if "\\" not in typed and not re.search(r"[A-Za-z0-9]\*[a-z]+\Z|[0-9]sqrt|\)\(", typed):
        yield Variant("typed", typed)
    yield Variant("full-width", text.translate(_FULL_WIDTH) if "\\" not in text else text)


def _scalar(form: Form) -> Iterator[Variant]:
    terms = _terms(form)
    if len(terms) > 1:
        yield Variant("commuted", "".join(terms[::-1]).removeprefix("+"))
        yield Variant("double sign", terms[0].removeprefix("+") + "".join(re.sub("^-", " + -", t) for t in terms[1:]))
    for kind, name in (("points", "AB"), ("angle", r"\angle ABC"), ("value", "f(2)"), ("index", "a_{10}")):
        yield Variant(kind, f"{name} = {form.text}")


def _terms(form: Form) -> list[str]:
    """Signed terms of a sum; one text where there is no sum or anything is nested."""
    text = form.text
    if any(bracket in text for bracket in "([|") or "\\" in text.replace("\\frac", "").replace("\\sqrt", ""):
        return [text]
    terms: list[str] = []
    depth = 0
    for token in form.tokens:
        depth += (token == "{") - (token == "}")
        if depth == 0 and token in "+-" and terms:
            terms.append(token)
        elif not terms:
            terms.append(token if token in "+-" else "+" + token)
        else:
            terms[-1] += token
    return terms


def _number(text: str) -> Iterator[Variant]:
    for kind, spelled in (
        ("dollars and unit", f"${text}$ hours"),
        ("euro sign", f"{text}€"),
        ("pound sign", f"£{text}" if text[0] != "-" else f"-£{text[1:]}"),
        ("quotient unit", f"{text} m/s"),
        ("celsius", rf"{text}^\circ C"),
    ):
        yield Variant(kind, spelled)
    value = plain_number(text)
    assert value is not None
    if "frac" in text and abs(value) > 1 and value.denominator > 1:
        whole, rest = divmod(abs(value), 1)
        yield Variant("mixed number", f"{'-' * (value < 0)}{whole} {rest.numerator}/{rest.denominator}")
    found = _DECIMAL.match(text)
    if found and value:
        yield from _scientific(value)


def _scientific(value: Fraction) -> Iterator[Variant]:
    digits, exponent, sign = abs(value), 0, "-" * (value < 0)
    while digits >= 10:
        digits, exponent = digits / 10, exponent + 1
    while digits < 1:
        digits, exponent = digits * 10, exponent - 1
    places = 0
    while (digits * 10**places).denominator != 1:
        places += 1
    scaled = str(int(digits * 10**places))
    mantissa = f"{sign}{scaled[0]}.{scaled[1:] or '0'}"
    yield Variant("e-notation", f"{mantissa}e{exponent}")
    yield Variant("E-notation", f"{mantissa}E{exponent:+03d}")
    yield Variant("times ten", rf"{mantissa}\times10^{{{exponent}}}")
    yield Variant("x 10^", f"{mantissa} x 10^{exponent}")


def _region(form: Form) -> Iterator[Variant]:
    infinite = any(item.text in (r"\infty", r"-\infty") for item in form.items)
    if (
        form.kind == "tuple"
        and len(form.items) == 2
        and form.mark[0] in "(["
        and (infinite or set(form.mark) & set("[]"))
    ):
        yield Variant("interval as relation", _relation_of(form))
    if form.kind == "union" and all(item.kind == "tuple" and len(item.items) == 2 for item in form.items):
        yield Variant("union as relations", " or ".join(_relation_of(item) for item in form.items))
    if form.kind == "relation" and form.mark != r"\neq":
        signs = form.mark.split()
        turned = {"<": ">", r"\leq": r"\geq "}
        sides = [item.text for item in form.items][::-1]
        rest = "".join(f" {turned[sign]} {side}" for sign, side in zip(signs[::-1], sides[1:], strict=True))
        yield Variant("turned relation", sides[0] + rest)
        if len(form.items) == 3:
            opening, closing = ("[" if signs[0] == r"\leq" else "("), ("]" if signs[1] == r"\leq" else ")")
            yield Variant("relation as interval", f"{opening}{form.items[0].text},{form.items[2].text}{closing}")


def _relation_of(interval: Form) -> str:
    low, high = (item.text for item in interval.items)
    opening, closing = (r"\le " if bracket in "[]" else "<" for bracket in interval.mark)
    left = "" if low == r"-\infty" else low + opening
    return f"{left}x" + ("" if high == r"\infty" else closing + high)


def _collection(form: Form) -> Iterator[Variant]:
    values = [item.text for item in form.items]
    if not values or any(item.kind != "scalar" or item.unit for item in form.items):
        return
    if form.kind in ("list", "set") and not form.mark:
        listed = ", ".join(values)
        yield Variant("as list", listed)
        yield Variant("as set", rf"\{{{listed}\}}")
        yield Variant("one name", " or ".join(f"x={value}" for value in values))
        yield Variant("name of all", f"x={listed}")
        if len(values) > 1:
            yield Variant("and", f"{', '.join(values[:-1])} and {values[-1]}")
            yield Variant(", and", f"{', '.join(values[:-1])}, and {values[-1]}")
            yield Variant("union of sets", rf"\{{{', '.join(values[:-1])}\}}\cup\{{{values[-1]}\}}")
    if form.kind == "tuple" and form.mark == "()" and len(values) <= len(_NAMES):
        named = [f"{name}={value}" for name, value in zip(_NAMES, values, strict=False)]
        yield Variant("named", ", ".join(named))
        yield Variant("named in other order", ", ".join(named[::-1]))
        for names in (_NAMES, _LETTERS):  # in alphabetical order, and against it
            yield Variant(f"named tuple {names}", f"({','.join(names[: len(values)])})=({','.join(values)})")
        yield Variant("semicolons", f"({';'.join(values)})")


def _matrix(form: Form) -> Iterator[Variant]:
    rows, columns = (int(size) for size in form.mark.split()[1].split("x"))
    cells = [item.text for item in form.items]
    body = r"\\".join("&".join(cells[row * columns : (row + 1) * columns]) for row in range(rows))
    array = rf"\begin{{array}}{{{'c' * columns}}}{body}\end{{array}}"
    yield Variant("array", array)
    yield Variant("array in brackets", rf"\left[{array}\right]")
    yield Variant("array in parentheses", rf"\left({array}\right)")
