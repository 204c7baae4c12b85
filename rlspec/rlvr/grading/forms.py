r"""The shape of an answer: a scalar, a word, a tuple, an interval, a set, a list, a union, a matrix, ..."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlspec.rlvr.grading.expression import OverBudget
from rlspec.rlvr.grading.names import is_name, order_of
from rlspec.rlvr.grading.normalize import Tokens, spell, tokenize
from rlspec.rlvr.grading.plain import is_decimal, plain_number
from rlspec.rlvr.grading.units import DEGREES, SIGNS, unit_of

Kind = Literal["scalar", "word", "tuple", "set", "list", "named", "union", "matrix", "equation", "relation", "empty"]

MAX_NESTING = 12
MAX_ITEMS = 64

_OPENING = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle", "{": "}"}
_CLOSING = frozenset(_OPENING.values())
_RELATIONS = frozenset(("<", ">", r"\leq", r"\geq", r"\neq"))
_TURNED = {">": "<", r"\geq": r"\leq"}
_AND, _OR = r"\text{and}", r"\text{or}"
_JOINTS = frozenset((_AND, _OR, ";"))
_SUCH_THAT = frozenset((r"\mid", "|", ":"))
_MATRICES = {
    r"\begin{pmatrix}": "array",
    r"\begin{bmatrix}": "array",
    r"\begin{matrix}": "array",
    r"\begin{smallmatrix}": "array",
    r"\begin{array}": "array",
    r"\begin{vmatrix}": "determinant",
}
_BETWEEN_NAMES = "\n"
_POWER = re.compile(r"\^\{(?P<sign>-?)(?P<digit>[123])\}\Z")
_ALL_REALS = frozenset(("allrealnumbers", "allreals", "realnumbers", "allrealnumber"))


@dataclass(frozen=True, slots=True)
class Form:
    r"""An answer taken apart.

    Attributes:
        kind: its shape.
        tokens: canonical tokens of a scalar or word, without its unit; of an equation, the left side.
        items: elements of a tuple, set, list, union, relation; the values of named ones, in the order in which they are
            given without names; the cells of a matrix, row by row; of an equation, the right side.
        mark: brackets of a tuple (`(]`; `\mid` where it is a domain and a condition), operators of a relation, shape
            and kind of a matrix, the names of named values; how a list of relations is joined (`and`, `or`, `,`);
            `text` for a word that a text command wrote.
        unit: canonical unit of a scalar, its unknown words as `?word`.
    """

    kind: Kind
    tokens: tuple[str, ...] = ()
    items: tuple[Form, ...] = ()
    mark: str = ""
    unit: str | None = None

    @property
    def text(self) -> str:
        """The scalar or word as text."""
        return spell(list(self.tokens))


def read_form(text: str) -> Form:
    """Take an answer apart.

    Raises:
        OverBudget: nested deeper than `MAX_NESTING`, or more than `MAX_ITEMS` elements.
    """
    if is_decimal(text):
        return Form("scalar", ("-", text[1:]) if text[0] == "-" else (text,))
    return _build(tokenize(text), 0)


def letters_of(tokens: Sequence[str]) -> str:
    """The letters of a word without spaces and its text commands."""
    text = "".join(t[6:-1] if t.startswith("\\text{") else t for t in tokens)
    return text.replace(" ", "").rstrip(".")


def balanced(text: str) -> bool:
    r"""Whether every brace of a text is matched (`\{` and `\}` do not count)."""
    depth, escaped = 0, False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth < 0:
                return False
    return depth == 0


def _build(tokens: Tokens, level: int) -> Form:
    if level > MAX_NESTING:
        raise OverBudget("nested too deeply")
    spoken = any(token.startswith(r"\text{") for token in tokens)
    tokens = _unwrap(tokens)
    if not tokens:
        return Form("empty")
    for part in (_list, _equation, _relation, _union, _matrix, _bracketed, _ratio):
        form = part(tokens, level)
        if form is not None:
            return form
    return _scalar(tokens, level, spoken)


def _unwrap(tokens: Tokens) -> Tokens:
    """Without braces, and without a text command, around the whole."""
    while len(tokens) >= 2 and tokens[0] == "{" and _closing_index(tokens) == len(tokens) - 1:
        tokens = tokens[1:-1]
    if len(tokens) == 1 and tokens[0].startswith(r"\text{"):
        inner = tokenize(tokens[0][6:-1])
        counted = bool(inner) and inner[0][0].isdigit()  # `\text{18 dollars}`
        return tokens if any(token.startswith(r"\text{") for token in inner) and not counted else inner
    return tokens


def _closing_index(tokens: Tokens) -> int:
    """Index of the bracket that closes the one at 0; -1 if it never closes."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0:
            return i
    return -1


def _split(tokens: Tokens, separators: frozenset[str]) -> list[Tokens]:
    """Parts between separators that stand outside of all brackets and environments."""
    parts: list[Tokens] = [[]]
    depth = 0
    for token in tokens:
        if token in _OPENING or token.startswith(r"\begin{"):
            depth += 1
        elif token in _CLOSING or token.startswith(r"\end{"):
            depth -= 1
        if depth == 0 and token in separators:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _items(parts: list[Tokens], level: int) -> tuple[Form, ...]:
    if len(parts) > MAX_ITEMS:
        raise OverBudget(f"more than {MAX_ITEMS} elements")
    return tuple(_build(part, level + 1) for part in parts)


def _list(tokens: Tokens, level: int) -> Form | None:
    r"""Bare commas, `and`, `or`, and `\pm` written out as two elements; `or` and `;` join looser than the others."""
    split = _split(tokens, frozenset((_OR, ";")))
    loose = len(split) > 1 and any(_split(part, frozenset((_AND, ",")))[1:] for part in split)
    parts = split if loose else _split(tokens, _JOINTS | {","})
    if len(parts) > 1 and any(joint in tokens for joint in _JOINTS):
        parts = [_without_commas(part) for part in parts if part not in ([], [","])]  # "3, 5, and 7"
    parts = [signed for part in parts for signed in _both_signs(part)]
    if len(parts) < 2:
        return None
    return _gathered(_items(parts, level), "or" if _OR in tokens else "and" if _AND in tokens else ",")


def _without_commas(tokens: Tokens) -> Tokens:
    start, end = int(tokens[0] == ","), len(tokens) - (tokens[-1] == ",")
    return tokens[start:end]


def _gathered(items: tuple[Form, ...], joint: str) -> Form:
    """Elements side by side: values of one name (`x=1 or x=2`, `x=1,2`), of several (`x=1, y=2`), relations, others."""
    flat = [one for item in items for one in (item.items if item.kind == "list" and not item.mark else (item,))]
    if len(flat) > MAX_ITEMS:
        raise OverBudget(f"more than {MAX_ITEMS} elements")
    if any(item.kind == "relation" for item in flat):
        return Form("list", items=tuple(flat), mark=joint)
    named = [item for item in flat if _is_named(item)]
    one_name = bool(named) and named[0] is flat[0] and len({item.tokens for item in named}) == 1
    if one_name and (len(named) == len(flat) or (len(named) == 1 and all(one.kind == "scalar" for one in flat[1:]))):
        values = [item.items[0] if _is_named(item) else item for item in flat]
        return Form("equation", flat[0].tokens, (_gathered(tuple(values), joint),), mark="=")
    if joint != "or" and len(named) == len(flat) == len({item.tokens for item in flat}):
        names = [item.tokens for item in flat]
        return _named(names, [item.items[0] for item in flat], order_of(names))
    return Form("list", items=tuple(flat))


def _is_named(form: Form) -> bool:
    return form.kind == "equation" and form.mark == "=" and is_name(form.tokens)


def _named(names: list[tuple[str, ...]], values: list[Form], order: Sequence[int]) -> Form:
    mark = _BETWEEN_NAMES.join(spell(list(names[i])) for i in order)
    return Form("named", items=tuple(values[i] for i in order), mark=mark)


def aligned(form: Form, other: Form) -> Form | None:
    """Named values in the order of others of the same names; None where the names differ."""
    names, wanted = (one.mark.split(_BETWEEN_NAMES) for one in (form, other))
    if sorted(names) != sorted(wanted):
        return None
    return Form("named", items=tuple(form.items[names.index(name)] for name in wanted), mark=other.mark)


def _both_signs(tokens: Tokens) -> list[Tokens]:
    whole = bool(tokens) and tokens[0] in (r"\{", "(", "[") and _closing_index(tokens) == len(tokens) - 1
    if whole or not any(token in (r"\pm", r"\mp") for token in tokens):
        return [tokens]
    plus = {r"\pm": "+", r"\mp": "-"}
    minus = {r"\pm": "-", r"\mp": "+"}
    return [[sign.get(token, token) for token in tokens] for sign in (plus, minus)]


def _equation(tokens: Tokens, level: int) -> Form | None:
    for sign in ("=", r"\in", r"\approx"):
        parts = _split(tokens, frozenset((sign,)))
        if len(parts) != 2 or not all(parts):
            continue
        left, right = parts
        if sign == "=" and is_name(tuple(right)) and not is_name(tuple(left)):
            left, right = right, left
        value = _build(right, level + 1)
        if sign == r"\approx" and plain_number(value.text) is None:
            return None
        if is_name(tuple(left)) and (sign == r"\approx" or (sign == r"\in" and value.kind == "set")):
            sign = "="
        names = [tuple(name) for name in _split(left[1:-1], frozenset((",",)))]
        if sign == r"\in" and value.kind == "set" and (left[0], left[-1]) == ("(", ")") and all(map(is_name, names)):
            return value
        pairs = (left[0], left[-1], value.kind, value.mark) == ("(", ")", "tuple", "()")
        if sign == "=" and pairs and len(set(names)) == len(value.items) == len(names) and all(map(is_name, names)):
            return _named(names, list(value.items), range(len(names)))
        return Form("equation", tuple(left), (value,), mark=sign)
    return None


def _relation(tokens: Tokens, level: int) -> Form | None:
    r"""Read from the smaller to the larger side; `-x>-1` is `x<1`, and `3\neq x` is `x\neq 3`."""
    parts = _split(tokens, _RELATIONS)
    if len(parts) < 2 or len(parts) > 3 or not all(parts):
        return None
    flat = _split(tokens, frozenset())[0]
    signs = [token for token in flat if token in _RELATIONS]
    if len(signs) != len(parts) - 1:
        return None  # a relation inside a bracket
    if signs[0] in _TURNED:
        parts, signs = parts[::-1], [_TURNED.get(sign, f"not {sign}") for sign in signs[::-1]]
    if len(parts) == 3 and set(signs) <= {"<", r"\leq"}:
        parts, signs = _bounded(parts, signs)
    if any(part[0] == "-" and len(part) < 4 and is_name(tuple(part[1:])) for part in parts):
        parts = [_negated(part) for part in (parts if signs == [r"\neq"] else parts[::-1])]
        signs = signs[::-1]
    if not set(signs) <= {"<", r"\leq"} and signs != [r"\neq"]:
        return None  # `1<x>2`
    if signs == [r"\neq"] and is_name(tuple(parts[1])) and not is_name(tuple(parts[0])):
        parts = parts[::-1]
    return Form("relation", items=_items(parts, level), mark=" ".join(signs))


def _bounded(parts: list[Tokens], signs: Tokens) -> tuple[list[Tokens], Tokens]:
    r"""`-\infty<x<3` without the end that bounds nothing."""
    if list(parts[0]) == ["-", r"\infty"]:
        return parts[1:], signs[1:]
    if list(parts[2]) in ([r"\infty"], ["+", r"\infty"]):
        return parts[:2], signs[:1]
    return parts, signs


def _negated(tokens: Tokens) -> Tokens:
    if tokens in (["0"], [r"\infty"]):
        return tokens if tokens == ["0"] else ["-", *tokens]
    if tokens[0] == "-" and not _split(tokens[1:], frozenset(("+", "-")))[1:]:
        return tokens[1:]
    return ["-", *tokens] if not _split(tokens, frozenset(("+", "-")))[1:] else ["-", "(", *tokens, ")"]


def _union(tokens: Tokens, level: int) -> Form | None:
    parts = _split(tokens, frozenset((r"\cup",)))
    if len(parts) < 2:
        return None
    items = _items(parts, level)
    if all(item.kind == "set" for item in items):
        return Form("set", items=tuple(dict.fromkeys(one for item in items for one in item.items)))
    return Form("union", items=items)


def _matrix(tokens: Tokens, level: int) -> Form | None:
    style = _MATRICES.get(tokens[0])
    if style is None or tokens[-1] != tokens[0].replace("begin", "end"):
        return None
    body = tokens[1:-1]
    if tokens[0] == r"\begin{array}" and body[:1] == ["{"]:
        body = body[_closing_index(body) + 1 :]  # the alignment of columns
    if any(token.startswith((r"\begin{", r"\end{")) for token in body):
        return None
    rows = [_split(row, frozenset(("&",))) for row in _split(body, frozenset((r"\\",)))]
    if rows and rows[-1] == [[]]:
        rows.pop()  # a line break after the last row
    if len({len(row) for row in rows}) != 1:
        return None
    cells = _items([cell for row in rows for cell in row], level)
    return Form("matrix", items=cells, mark=f"{style} {len(rows)}x{len(rows[0])}")


def _bracketed(tokens: Tokens, level: int) -> Form | None:
    if tokens[0] not in _OPENING or _closing_index(tokens) != len(tokens) - 1:
        return None
    parts = _split(tokens[1:-1], frozenset((";",)))  # `(1;3)`, where a comma is a decimal point
    if len(parts) == 1:
        parts = _split(tokens[1:-1], frozenset((",",)))
    if tokens[0] == r"\{" and tokens[-1] == r"\}":
        return _set(tokens[1:-1], parts, level)
    if len(parts) == 1:
        square = tokens[0] == "[" and tokens[1] == r"\begin{array}"
        return _build(parts[0], level + 1) if square or (tokens[0], tokens[-1]) == ("(", ")") else None
    return Form("tuple", items=_items(parts, level), mark=tokens[0] + tokens[-1])


def _set(inner: Tokens, parts: list[Tokens], level: int) -> Form:
    r"""Elements in braces, none is the empty set; `\{x \mid x<3\}` is its condition, beside a domain but the reals."""
    condition = _split(inner, _SUCH_THAT)
    name, *domain = _split(condition[0], frozenset((r"\in",)))
    if len(condition) == 2 and len(domain) < 2 and is_name(tuple(name)):
        if domain in ([], [[r"\mathbb", "{", "R", "}"]]):
            return _build(condition[1], level + 1)
        return Form("tuple", items=_items([domain[0], condition[1]], level), mark=r"\mid")
    parts = [signed for part in parts if part for signed in _both_signs(part)]
    return Form("set", items=_items(parts, level)) if parts else Form("scalar", (r"\emptyset",))


def _ratio(tokens: Tokens, level: int) -> Form | None:
    """`3:4`; a time (`1:05`) stays as it is."""
    parts = _split(tokens, frozenset((":",)))
    if len(parts) < 2 or not all(parts) or any(len(part[0]) > 1 and part[0][0] == "0" for part in parts):
        return None
    return Form("tuple", items=_items(parts, level), mark="::")


def _scalar(tokens: Tokens, level: int, spoken: bool) -> Form:
    if tokens[0] == "+" and len(tokens) > 1:
        tokens = tokens[1:]
    body, unit = _split_unit(tokens)
    if unit is not None:
        inner = _build(body, level + 1)
        if inner.kind == "scalar" and (inner.unit is None or inner.unit.startswith("per ")):
            return Form("scalar", inner.tokens, unit=f"{unit} {inner.unit}" if inner.unit else unit)
        return Form("scalar", tuple(tokens))
    letters = all(len(token) == 1 and token.isalpha() for token in tokens)
    if (letters and len(tokens) > 1) or tokens[0].startswith(r"\text{"):
        if letters_of(tokens).casefold() in _ALL_REALS:
            return Form("scalar", (r"\mathbb", "{", "R", "}"))
        return Form("word", tuple(tokens), mark="text" if spoken else "")
    return Form("scalar", tuple(tokens))


def _split_unit(tokens: Tokens) -> tuple[Tokens, str | None]:
    """The tokens before a unit, and the unit; a dollar sign may also stand before the number."""
    sign = tokens[:1] if tokens[0] in ("-", "+") else []
    rest = tokens[len(sign) :]
    if len(rest) > 1 and rest[0] in SIGNS and rest[0] != r"\%":
        return sign + rest[1:], SIGNS[rest[0]]
    if tokens[-1] in SIGNS and len(tokens) > 1:
        return tokens[:-1], SIGNS[tokens[-1]]
    has_function = any(
        token[:1] == "\\" and token[1:4] in ("sin", "cos", "tan", "cot", "sec", "csc") for token in tokens
    )
    scale = DEGREES.get(tokens[-1])
    end = len(tokens) - (scale is not None)
    if end > 4 and tokens[end - 4 : end] == ["^", "{", r"\circ", "}"] and not has_function:
        return tokens[: end - 4], scale or "degree"
    start, words = _unit_words(tokens)
    if not (start and words):
        return tokens, None
    value = plain_number(spell(tokens[:start]))
    if value is None and words.strip() in DEGREES:  # `A\text{C}` are two letters
        return tokens, None
    unit = unit_of(words, singular=value is not None and (value == 1 or value.denominator > 1))
    return (tokens[:start], unit) if unit else (tokens, None)


def _unit_words(tokens: Tokens) -> tuple[int, str]:
    r"""Where texts at the end begin, and their words: `m/s` of `\text{m}/\text{s}` and of `\text{m s}^{-1}`."""
    words: list[str] = []
    start = len(tokens)
    while start:
        power = _POWER.search(spell(tokens[max(0, start - 5) : start]))
        end = start - (len(power[0]) if power else 0)
        if end < 2 or not tokens[end - 1].startswith(r"\text{"):
            break
        head, _, last = tokens[end - 1][6:-1].strip().rpartition(" ")
        raised = f"{last}^{power['digit']}" if power and power["digit"] != "1" else last
        words = [head, "per" if power and power["sign"] else "", raised, *words]
        start = end - 1
        if tokens[start - 1] == "/" or (tokens[start - 1] == "*" and tokens[start - 2].startswith(r"\text{")):
            words = ["per" if tokens[start - 1] == "/" else "", *words]
            start -= 1
    return start, " ".join(words)
