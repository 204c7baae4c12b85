"""Answers near a gold, made deterministically: certainly wrong ones (`mutate`), equivalent ones (`equivalents`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

from rlspec.rlvr.grading.compare import gold_text
from rlspec.rlvr.grading.expression import OverBudget
from rlspec.rlvr.grading.forms import Form, read_form
from rlspec.rlvr.grading.plain import plain_number
from rlspec.rlvr.grading.respell import Variant, respelled
from rlspec.rlvr.grading.values import clearly_differ

_TEXT = re.compile(r"\\(?:text|mbox|begin|end|textbf|mathrm)\s*\{[^{}]*\}")
TRIED_PER_WANTED = 20  # candidates for every wrong answer wanted, where few are certainly wrong
_OTHER_UNIT = {
    **dict.fromkeys(("centimeter", "meter", "kilometer", "inch", "foot", "mile"), "mm"),
    **dict.fromkeys(("gram", "kilogram"), "mg"),
    **dict.fromkeys(("centimeter^2", "meter^2", "foot^2", "inch^2"), "mm^2"),
    **dict.fromkeys(("dollar", "euro"), "cents"),
    **dict.fromkeys(("hour", "minute", "day", "week", "year"), "seconds"),
    **dict.fromkeys(("meter per second", "mile per hour"), "km/h"),
    **dict.fromkeys(("degree", "celsius"), "radians"),
}
_NUMBER = re.compile(r"[0-9]+", re.ASCII)
_PLAIN_INTEGER = re.compile(r"-?[0-9]+\Z", re.ASCII)


def mutate(gold: str, limit: int | None = None) -> list[Variant]:
    """Wrong answers near a gold; whatever might be equal to it is left out.

    Args:
        gold: as `grade_answer` takes it.
        limit: at most this many, None for all.
    """
    return _some(gold, limit, _mutated, wrong=True)


def equivalents(gold: str, limit: int | None = None) -> list[Variant]:
    """The same answer in other usual notations."""
    return _some(gold, limit, _rewritten, wrong=False)


def _some(
    gold: str, limit: int | None, generate: Callable[[str, Form], Iterator[Variant]], *, wrong: bool
) -> list[Variant]:
    text = gold_text(gold)
    found: list[Variant] = []
    if text is None or (limit is not None and limit <= 0):
        return found
    form = read_form(text)
    seen = {text}
    tried = None if limit is None else TRIED_PER_WANTED * limit
    for variant in islice(generate(text, form), tried):
        if variant.answer in seen or (wrong and not _certainly_wrong(variant.answer, form)):
            continue
        seen.add(variant.answer)
        found.append(variant)
        if len(found) == limit:
            break
    return found


def _certainly_wrong(answer: str, gold: Form) -> bool:
    try:
        return clearly_differ(read_form(answer), gold)
    except OverBudget:
        return False


def _mutated(text: str, form: Form) -> Iterator[Variant]:
    yield from _digits(text)
    yield from _signs(text, form)
    yield from _parts(text, form)
    yield from _containers(text, form)
    yield from _words(form)
    yield from _units(text, form)
    yield from _wrong_in_other_notations(text, form)


def _wrong_in_other_notations(text: str, form: Form) -> Iterator[Variant]:
    """Every notation that is accepted, with another digit, sign, bracket, order, joint or element."""
    for kind, spelled in respelled(text, form):
        wrong = [*_digits(spelled), *_signs(spelled, form), *_joined(spelled)]
        if form.kind == "matrix":
            wrong += _transposed(spelled)
        yield from (Variant(f"{kind}: {one.kind}", one.answer) for one in wrong)


def _joined(text: str) -> Iterator[Variant]:
    """Other brackets, relations, joints and order."""
    for old, new in (
        (" or ", " and "),
        ("<", r"\le "),
        (r"\le ", "<"),
        ("(", "["),
        ("]", ")"),
        ("e", "e-"),
    ):
        if text.count(old) == 1:
            yield Variant(f"{old.strip()} as {new.strip()}", text.replace(old, new))
    for sign, other in (("<", ">"), (r"\le ", r"\ge "), (">", "<")):
        if sign in text:
            yield Variant(f"{sign.strip()} turned", text.replace(sign, other))
    parts = text.strip("()").split(",")
    if len(parts) == 2 and all("=" in part for part in parts):
        names, values = zip(*(part.strip().split("=", 1) for part in parts), strict=True)
        yield Variant("names exchanged", f"{names[1]}={values[0]}, {names[0]}={values[1]}")
        yield Variant("names left out, exchanged", f"{values[1]},{values[0]}")
    if len(parts) > 1:
        yield Variant("element left out", ",".join(parts[:-1]))


def _transposed(text: str) -> list[Variant]:
    r"""A row as a column, and a column as a row."""
    if "&" in text:
        return [] if r"\\" in text else [Variant("transposed", text.replace("&", r"\\"))]
    return [Variant("transposed", text.replace(r"\\", "&"))]


def _units(text: str, form: Form) -> Iterator[Variant]:
    """Another unit of the same kind, another thing that is counted, and the imaginary unit in a text."""
    other = "lemons" if form.unit and form.unit[0] == "?" else _OTHER_UNIT.get(form.unit or "")
    if form.kind == "scalar" and other:
        yield Variant("other unit", f"{form.text}\\text{{ {other}}}")
    if form.kind == "scalar" and form.unit is None and plain_number(form.text) is not None:
        yield Variant("imaginary unit", f"{form.text}\\text{{i}}")
    if form.kind == "scalar" and form.unit == "dollar":
        yield Variant("other currency", f"{form.text}€")
        yield Variant("other currency sign", f"£{form.text}")


def _numbers(text: str) -> list[re.Match[str]]:
    """Runs of digits outside of texts and environments."""
    hidden = _TEXT.sub(lambda match: "_" * len(match.group()), text)
    return list(_NUMBER.finditer(hidden))


def _digits(text: str) -> Iterator[Variant]:
    """Another last digit, another first digit, one digit more or less, in every number."""
    for match in _numbers(text):
        digits, before, after = match.group(), text[: match.start()], text[match.end() :]
        yield Variant("last digit", f"{before}{digits[:-1]}{(int(digits[-1]) + 1) % 10}{after}")
        yield Variant("first digit", f"{before}{int(digits[0]) % 9 + 1}{digits[1:]}{after}")
        yield Variant("two up", f"{before}{int(digits[:18]) + 2}{digits[18:]}{after}")
        yield Variant("digit appended", f"{before}{digits}7{after}")
        if len(digits) > 1:
            yield Variant("digit dropped", f"{before}{digits[:-1]}{after}")


def _signs(text: str, form: Form) -> Iterator[Variant]:
    if form.kind == "scalar":
        yield Variant("sign", text[1:] if text.startswith("-") else f"-({text})" if _is_sum(text) else f"-{text}")
    for match in re.finditer(r"[-+]", text):
        flipped = "+" if match.group() == "-" else "-"
        yield Variant("inner sign", text[: match.start()] + flipped + text[match.end() :])


def _is_sum(text: str) -> bool:
    return any(sign in text for sign in "+-=")


def _parts(text: str, form: Form) -> Iterator[Variant]:
    r"""What a careless reader of LaTeX keeps: `2` of `2\sqrt{3}`, `12` of `12-5i`, a half of `5\frac{1}{2}`."""
    if form.kind not in ("scalar", "equation"):
        return
    body = text.split("=")[-1].strip()
    for match in re.finditer(r"[0-9]+(?:\.[0-9]+)?|\\frac\{[^{}]*\}\{[^{}]*\}|\\sqrt\{[^{}]*\}|\\pi", body):
        if match.group() != body:
            yield Variant("dropped part", match.group())
    for match in re.finditer(r"[-+]", body[1:]):
        yield Variant("dropped term", body[: match.start() + 1].strip())


def _containers(text: str, form: Form) -> Iterator[Variant]:
    """Order, brackets and number of elements of tuples, intervals, sets and lists without inner brackets."""
    plain = re.sub(r"\\left|\\right", "", text).strip()
    if form.kind == "list":
        parts = [part.strip() for part in plain.split(",")]
        if len(parts) == len(form.items):
            yield Variant("dropped element", ",".join(parts[:-1]))
            yield Variant("list as tuple", f"({plain})")
    if form.kind == "tuple" and plain[0] in "([" and plain[-1] in ")]":
        parts = [part.strip() for part in plain[1:-1].split(",")]
        if len(parts) != len(form.items):
            return
        yield Variant("reversed", plain[0] + ",".join(parts[::-1]) + plain[-1])
        yield Variant("dropped element", plain[0] + ",".join(parts[:-1]) + plain[-1])
        yield Variant("opening bracket", {"(": "[", "[": "("}[plain[0]] + plain[1:])
        yield Variant("closing bracket", plain[:-1] + {")": "]", "]": ")"}[plain[-1]])
        yield Variant("tuple as set", f"\\{{{','.join(parts)}\\}}")
        yield Variant("tuple as list", ",".join(parts))
    if form.kind == "set" and plain.startswith(r"\{"):
        yield Variant("set as tuple", f"({plain[2:-2]})")
    if form.kind == "union":
        yield Variant("dropped part", plain.split(r"\cup")[0])


def _words(form: Form) -> Iterator[Variant]:
    if form.kind == "word":
        word = "".join(t[6:-1] if t.startswith("\\text{") else t for t in form.tokens)
        yield Variant("letter appended", f"\\text{{{word}s}}")
        yield Variant("letter dropped", f"\\text{{{word[:-1]}}}" if len(word) > 2 else "\\text{none}")
        yield Variant("not", f"\\text{{not {word}}}")
    if form.kind == "scalar" and len(form.tokens) == 1 and form.tokens[0] in tuple("ABCDEF"):
        yield Variant("other choice", f"\\text{{({'BCDEFA'['ABCDEF'.index(form.tokens[0])]})}}")


def _rewritten(text: str, form: Form) -> Iterator[Variant]:
    yield from _layout(text)
    yield from _fractions(text)
    if form.kind == "word":
        word = "".join(t[6:-1] if t.startswith("\\text{") else t for t in form.tokens)
        yield Variant("text", f"\\text{{{word}}}")
        yield Variant("bare word", word)
        yield Variant("mbox", f"\\mbox{{{word}}}")
    if form.kind == "scalar":
        yield Variant("x=", f"x={text}")
        yield Variant("x =", f"x = {text}")
        if form.unit is None and plain_number(form.text) is not None:
            yield from _numeric(text, form)
    yield from respelled(text, form)
    if form.kind in ("list", "set") and text.count(",") == len(form.items) - 1 and r"\pm" not in text:
        opening, inner, closing = (r"\{", text[2:-2], r"\}") if form.kind == "set" else ("", text, "")
        yield Variant("other order", opening + ", ".join(inner.split(",")[::-1]) + closing)


def _layout(text: str) -> Iterator[Variant]:
    yield Variant("dollars around", f"${text}$")
    yield Variant("spaces around", f"  {text} ")
    yield Variant("full stop", f"{text}.")
    yield Variant(
        "thin spaces", re.sub(r"(?<=[0-9A-Za-z}])\s*([-+=])\s*", r"\\,\1\\,", text) if "\\text" not in text else text
    )
    yield Variant("no space after comma", re.sub(r",\s+(?![0-9]{3})", ",", text))
    if "\\left" in text:
        yield Variant("no \\left\\right", text.replace("\\left", "").replace("\\right", ""))
    elif text[0] in "([" and text[-1] in ")]" and text.count("(") + text.count("[") == 1:
        yield Variant("\\left\\right", f"\\left{text[:-1]}\\right{text[-1]}")


def _fractions(text: str) -> Iterator[Variant]:
    short = re.sub(r"\\d?frac\{([0-9])\}\{([0-9])\}", r"\\frac\1\2", text)
    yield Variant("\\frac43", short)
    yield Variant("\\frac 43", re.sub(r"\\d?frac\{([0-9])\}\{([0-9])\}", r"\\frac \1\2", text))
    yield Variant("\\dfrac", text.replace("\\frac", "\\dfrac"))
    yield Variant("\\tfrac", text.replace("\\frac", "\\tfrac").replace("\\dfrac", "\\tfrac"))
    yield Variant("\\sqrt2", re.sub(r"\\sqrt\{([0-9])\}", r"\\sqrt\1", text))
    yield Variant("a/b", re.sub(r"^(-?)\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}\Z", r"\1\2/\3", text))


def _numeric(text: str, form: Form) -> Iterator[Variant]:
    yield Variant("\\$", f"\\${text}")
    yield Variant("\\%", f"{text}\\%")
    yield Variant("degrees", f"{text}^\\circ")
    yield Variant("unit text", f"{text} \\text{{ apples}}")
    yield Variant("unit mbox", f"{text}\\mbox{{ cm}}^2")
    number = form.text
    if _PLAIN_INTEGER.match(number):
        yield Variant("trailing .0", f"{number}.0")
        yield Variant("bare unit", f"{number} dollars")
        digits = number.lstrip("-")
        if len(digits) > 3 and digits[0] != "0":
            for kind, comma in (("commas", ","), ("{,}", "{,}"), (",\\!", ",\\!"), ("no commas", "")):
                yield Variant(kind, ("-" if number[0] == "-" else "") + comma.join(_thousands(digits)))
    elif "." in number:
        yield Variant("trailing zero", f"{number}0")
        if number.startswith("0."):
            yield Variant("no leading zero", number[1:])


def _thousands(digits: str) -> list[str]:
    head = len(digits) % 3 or 3
    return [digits[:head], *(digits[i : i + 3] for i in range(head, len(digits), 3))]
