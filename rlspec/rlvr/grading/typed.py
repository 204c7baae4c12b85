r"""What people type where TeX has a command: full-width signs, `<=`, `pi`, `sqrt(2)`, `4.5e33`, `2 3/4`, `1 and 2`.

A name counts only as a whole run of letters, so `pir` stays a product. `2e-3` may be 0.002 or two times Euler's number
less three: it is scientific unless the other side of the comparison has a bare `e` (`settle`). An integer with a
decimal point or a long, unsigned or padded exponent, and `1e-5`, can only be scientific.
"""

from __future__ import annotations

import re
import unicodedata

Tokens = list[str]

FUNCTIONS = frozenset("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp".split())  # noqa: SIM905


def _vulgar(character: str) -> str:
    r"""`⅓` as `\frac{1}{3}`."""
    top, _, bottom = unicodedata.normalize("NFKC", character).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


_FULL_WIDTH = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_UNICODE = str.maketrans(
    {
        **_FULL_WIDTH,
        "\u3000": " ",
        "、": ",",
        "。": ".",
        "−": "-",
        **dict.fromkeys("‐‑‒–﹣", "-"),  # noqa: RUF001
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "÷": r"\div ",
        "π": r"\pi ",
        "θ": r"\theta ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "℃": r"^\circ C",
        "℉": r"^\circ F",
        "√": r"\sqrt ",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≥": r"\ge ",
        "⩾": r"\ge ",
        "≠": r"\ne ",
        "±": r"\pm ",
        "∪": r"\cup ",
        "∈": r"\in ",
        "∧": r"\land ",
        "∨": r"\lor ",
        "∠": r"\angle ",
        "∅": r"\emptyset ",
        "ℝ": r"\mathbb{R}",
        "…": r"\ldots ",
        **{chr(code): _vulgar(chr(code)) for code in (*range(0xBC, 0xBF), *range(0x2150, 0x215F))},
        "\u2044": "/",
        "~": " ",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
    }
)
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")  # noqa: RUF001
_RAISED = re.compile("⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")  # noqa: RUF001
_DEGREES = re.compile(r"(?<=[0-9])\^(?:o|\{o\})(?![A-Za-z0-9])", re.ASCII)
_UNION = re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])")
_WORTH_A_LOOK = re.compile(r"[0-9][eE][-+0-9]|[<>!=*]=|=<|\*\*|[0-9]\s?[xX]\s?10", re.ASCII)
_NUMBER = r"(?<![\w.\\])(?P<mantissa>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))"
_SCIENTIFIC = re.compile(_NUMBER + r"[eE]\+?(?P<exponent>-?[0-9]{1,5})(?![\w.])", re.ASCII)
_EITHER = re.compile(r"(?<![\w.\\])(?!1e)[0-9]+e[-+][1-9](?![\w.])", re.ASCII)
_EULER = re.compile(r"(?<![A-Za-z])e(?![A-Za-z])", re.ASCII)
_TIMES_TEN = re.compile(r"(?<=[0-9])\s?[xX]\s?10(?=\s?(?:\^|\*\*))", re.ASCII)
_ORDINAL = re.compile(r"\A[0-9]+(?=(?:st|nd|rd|th)\.?\Z)", re.ASCII)
_NOT_EQUAL = re.compile(r"(?<![0-9)!])!=", re.ASCII)
_OPERATORS = (("<=", r"\le "), ("=<", r"\le "), (">=", r"\ge "), ("==", "="), ("**", "^"))

_CONSTANTS = {
    "pi": r"\pi",
    **dict.fromkeys(("infty", "infinity", "inf", "oo"), r"\infty"),
    **{name: "\\" + name for name in ("theta", "alpha", "beta", "gamma", "delta", "lambda", "omega", "sigma", "phi")},
}
_CALLED = {
    **{name: "\\" + name for name in FUNCTIONS},
    **{name: "\\arc" + name[1:] for name in ("asin", "acos", "atan")},
    "sqrt": r"\sqrt",
    "abs": r"\abs",
}
_JOINTS = {"and": r"\text{and}", "or": r"\text{or}"}


def as_tex(text: str) -> str:
    """A text with typed signs and scientific numbers as their TeX commands; what may be Euler's number stays."""
    text = _RAISED.sub(lambda m: f"^{{{m.group().translate(_LOWERED)}}}", text)
    text = text.translate(_UNICODE).strip().replace("...", r"\ldots ")
    text = _UNION.sub(r"\\cup ", _DEGREES.sub(r"^\\circ ", text.removeprefix("=")))
    if ordinal := _ORDINAL.match(text):
        return rf"{ordinal.group()}\text{{{text[ordinal.end() :].rstrip('.')}}}"
    if _WORTH_A_LOOK.search(text) is None:
        return text
    if text.startswith("**") and text.endswith("**") and text.count("**") == 2:
        text = text[2:-2]  # bold
    text = _SCIENTIFIC.sub(lambda m: m.group() if _EITHER.match(m.group()) else _power_of_ten(m), text)
    text = _NOT_EQUAL.sub(r"\\ne ", _TIMES_TEN.sub(r"\\times 10", text))
    for typed, tex in _OPERATORS:
        text = text.replace(typed, tex)
    return text


def settle(text: str, other: str) -> str:
    """`2e-3` as a power of ten, unless the text that it is compared with has Euler's number."""
    if _EITHER.search(text) is None or _EULER.search(as_tex(other)):
        return text
    return _SCIENTIFIC.sub(_power_of_ten, text)


def _power_of_ten(match: re.Match[str]) -> str:
    return rf"{match['mantissa'].rstrip('.')}\times10^{{{match['exponent']}}}"


def named_letters(tokens: Tokens) -> Tokens:
    r"""Runs of letters that spell a constant, a function before its argument, or `and` and `or` between spaces."""
    named: Tokens = []
    i = 0
    while i < len(tokens):
        end = i
        while end < len(tokens) and len(tokens[end]) == 1 and tokens[end].isascii() and tokens[end].isalpha():
            end += 1
        if end - i < 2:
            named.append(tokens[i])
            i += 1
            continue
        name = _name("".join(tokens[i:end]), tokens[i - 1] if i else "", tokens[end : end + 2])
        named.extend([name] if name else tokens[i:end])
        i = end
    return named


def _name(word: str, before: str, after: Tokens) -> str | None:
    if word in _JOINTS:
        return _JOINTS[word] if before in (" ", ",") and after[:1] == [" "] else None
    if word in _CALLED:
        first = after[0] if after else ""
        if first == " ":
            first = after[1] if len(after) > 1 else ""
        opens = first in ("(", "{", "[", "^", "|", "_") or first[:1] == "\\" or (first.isalnum() and after[0] == " ")
        return _CALLED[word] if opens or (word == "sqrt" and first.isdigit()) else None
    return _CONSTANTS.get(word)


def mixed_numbers(tokens: Tokens) -> Tokens:
    r"""`2 3/4` as `2\frac{3}{4}`; tokens still have their spaces."""
    mixed: Tokens = []
    i = 0
    while i < len(tokens):
        part = tokens[i : i + 5]
        if len(part) == 5 and part[1] == " " and part[3] == "/" and _mixed(part, mixed[-1:], tokens[i + 5 : i + 6]):
            mixed.extend((part[0], r"\frac", "{", part[2], "}", "{", part[4], "}"))
            i += 5
        else:
            mixed.append(tokens[i])
            i += 1
    return mixed


def _mixed(part: Tokens, before: Tokens, after: Tokens) -> bool:
    whole, _, top, _, bottom = part
    integers = all(token.isascii() and token.isdigit() and len(token) < 7 for token in (whole, top, bottom))
    alone = before not in (["/"], ["^"], ["_"]) and after not in (["/"], ["^"], ["!"], ["_"])
    return integers and alone and 0 < int(top) < int(bottom)
