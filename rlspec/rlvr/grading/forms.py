r"""The shape of an answer: a scalar, a word, a tuple, an interval, a set, a list, a union, a matrix, ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlspec.rlvr.grading.expression import OverBudget
from rlspec.rlvr.grading.normalize import Tokens, spell, tokenize
from rlspec.rlvr.grading.units import unit_of

Kind = Literal["scalar", "word", "tuple", "set", "list", "union", "matrix", "equation", "relation", "empty"]

MAX_NESTING = 12
MAX_ITEMS = 64

_OPENING = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle", "{": "}"}
_CLOSING = frozenset(_OPENING.values())
_RELATIONS = frozenset(("<", ">", r"\leq", r"\geq", r"\neq"))
_JOINTS = frozenset((r"\text{and}", r"\text{or}", ";"))
_MATRICES = {
    r"\begin{pmatrix}": "array",
    r"\begin{bmatrix}": "array",
    r"\begin{matrix}": "array",
    r"\begin{vmatrix}": "determinant",
}


@dataclass(frozen=True, slots=True)
class Form:
    """An answer taken apart.

    Attributes:
        kind: its shape.
        tokens: canonical tokens of a scalar or word, without its unit; of an equation, the left side.
        items: elements of a tuple, set, list, union, relation; the cells of a matrix, row by row; of an equation, the
            right side.
        mark: brackets of a tuple (`(]`), operators of a relation, shape and kind of a matrix;
            `text` for a word that a text command wrote.
        unit: canonical unit of a scalar, `?word` where it is unknown.
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
    return _build(tokenize(text), 0)


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
    for part in (_list, _equation, _relation, _union, _matrix, _bracketed):
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
        return tokens if any(token.startswith(r"\text{") for token in inner) else inner
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
    r"""Bare commas, `and`, `or`, and `\pm` written out as two elements."""
    parts = _split(tokens, _JOINTS | {","})
    if len(parts) > 1 and any(joint in tokens for joint in _JOINTS):
        parts = [part for part in parts if part]  # "3, 5, and 7"
    parts = [signed for part in parts for signed in _both_signs(part)]
    return Form("list", items=_items(parts, level)) if len(parts) > 1 else None


def _both_signs(tokens: Tokens) -> list[Tokens]:
    if not any(token in (r"\pm", r"\mp") for token in tokens) or tokens[0] in (r"\{", "(", "["):
        return [tokens]
    plus = {r"\pm": "+", r"\mp": "-"}
    minus = {r"\pm": "-", r"\mp": "+"}
    return [[sign.get(token, token) for token in tokens] for sign in (plus, minus)]


def _equation(tokens: Tokens, level: int) -> Form | None:
    for sign in ("=", r"\in"):
        parts = _split(tokens, frozenset((sign,)))
        if len(parts) == 2 and all(parts):
            right = _build(parts[1], level + 1)
            return Form("equation", tuple(parts[0]), (right,), mark=sign)
    return None


def _relation(tokens: Tokens, level: int) -> Form | None:
    parts = _split(tokens, _RELATIONS)
    if len(parts) < 2 or len(parts) > 3 or not all(parts):
        return None
    flat = _split(tokens, frozenset())[0]
    signs = [token for token in flat if token in _RELATIONS]
    if len(signs) != len(parts) - 1:
        return None  # a relation inside a bracket
    if signs[0] in (">", r"\geq"):
        parts, signs = parts[::-1], signs[::-1]
    flipped = {">": "<", r"\geq": r"\leq"}
    return Form("relation", items=_items(parts, level), mark=" ".join(flipped.get(sign, sign) for sign in signs))


def _union(tokens: Tokens, level: int) -> Form | None:
    parts = _split(tokens, frozenset((r"\cup",)))
    return Form("union", items=_items(parts, level)) if len(parts) > 1 else None


def _matrix(tokens: Tokens, level: int) -> Form | None:
    style = _MATRICES.get(tokens[0])
    if style is None or tokens[-1] != tokens[0].replace("begin", "end"):
        return None
    body = tokens[1:-1]
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
    parts = _split(tokens[1:-1], frozenset((",",)))
    if tokens[0] == r"\{" and tokens[-1] == r"\}":
        parts = [signed for part in parts if part for signed in _both_signs(part)]
        return Form("set", items=_items(parts, level))
    if len(parts) == 1:
        return _build(parts[0], level + 1) if (tokens[0], tokens[-1]) == ("(", ")") else None
    return Form("tuple", items=_items(parts, level), mark=tokens[0] + tokens[-1])


def _scalar(tokens: Tokens, level: int, spoken: bool) -> Form:
    if tokens[0] == "+" and len(tokens) > 1:
        tokens = tokens[1:]
    body, unit = _split_unit(tokens)
    if unit is not None:
        inner = _build(body, level + 1)
        if inner.kind == "scalar" and inner.unit is None:
            return Form("scalar", inner.tokens, unit=unit)
        return Form("scalar", tuple(tokens))
    letters = all(len(token) == 1 and token.isalpha() for token in tokens)
    if (letters and len(tokens) > 1) or tokens[0].startswith(r"\text{"):
        return Form("word", tuple(tokens), mark="text" if spoken else "")
    return Form("scalar", tuple(tokens))


def _split_unit(tokens: Tokens) -> tuple[Tokens, str | None]:
    """The tokens before a unit, and the unit; a dollar sign may also stand before the number."""
    sign = tokens[:1] if tokens[0] in ("-", "+") else []
    if tokens[len(sign) : len(sign) + 1] == [r"\$"]:
        return sign + tokens[len(sign) + 1 :], "dollar"
    if tokens[-1] in (r"\%", r"\$") and len(tokens) > 1:
        return tokens[:-1], "percent" if tokens[-1] == r"\%" else "dollar"
    has_function = any(
        token[:1] == "\\" and token[1:4] in ("sin", "cos", "tan", "cot", "sec", "csc") for token in tokens
    )
    if tokens[-4:] == ["^", "{", r"\circ", "}"] and len(tokens) > 4 and not has_function:
        return tokens[:-4], "degree"
    power = 1
    if len(tokens) > 4 and tokens[-4:-2] == ["^", "{"] and tokens[-2] in ("2", "3") and tokens[-1] == "}":
        power, end = int(tokens[-2]), len(tokens) - 4
    else:
        end = len(tokens)
    start = end
    while start > 1 and tokens[start - 1].startswith(r"\text{"):
        start -= 1
    if start == end:
        return tokens, None
    unit = unit_of(" ".join(token[6:-1].strip() for token in tokens[start:end]), power)
    return (tokens[:start], unit) if unit else (tokens, None)
