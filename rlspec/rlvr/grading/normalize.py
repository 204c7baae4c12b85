r"""Normalisation of an answer: one way of writing for what is the same on paper. Both sides go through the same code.

Every pass is linear in the length of the text. Policies, all of them deliberate:

- **Boxes and GSM8K.** The text after the last `####` counts; an inner `\boxed{}` is unwrapped.
- **Percent, money, degrees, unit words** are units: `10\%`, `\$10`, `10^\circ C`, `10\text{ cm}`, `10 m/s` and
  `$10$ hours` all have the body `10`. A unit that only one side writes is ignored, so `10\%` equals `10` (and never
  `0.1`). Two units that differ (`5\text{ cents}` and `5\text{ dollars}`, `miles north` and `miles south`) are
  different; a word that only one side has (`red apples`, `apples`) is ignored. What is no known unit and no
  plural (or a singular, as in `1/2 pie`) may carry a value (`million`, `K`, `six`, `wrong`): it is no unit, and such an
  answer is unreadable. One bare letter (`5 m`) is a factor, and so is `\text{i}` without a space.
- **What people type** for TeX (`<=`, `pi/2`, `sqrt(2)`, `4.5e33`, `2 3/4`, full-width signs): see `typed.py`.
- **Thousands.** `1,080`, `10,\!080`, `1{,}080` and `1 080` are numbers outside of brackets; inside `( )`, `[ ]` and
  `\{ \}` a bare comma separates elements.
- **Names.** A leading `x=`, `AB=`, `\angle ABC=`, `f(x)=`, `x \in`, `x\approx` before a number (see `names.py`) is
  dropped when only one side has it; `x=5` and `y=5` differ. Several named values (`x=5, y=8` or `(x,y)=(5,8)`) are
  compared by name, and with unnamed ones in the order in which they are written, of bare `x`, `y`, `z` in that of
  coordinates: `5,8` or `(5,8)`, never `8,5`; for `(n,k)=(5,2)` it is `(5,2)`.
- **Sets and regions.** `\{1,2\}` is `1,2`; `x<3` is `(-\infty,3)`, `x<1 or x>3` is a union, `\mathbb{R}` is
  `(-\infty,\infty)`, whatever the variable is called (`x<3` and `y<3` differ all the same). `1<x<3` equals `(1,3)`
  although that may be a point: nobody answers a question about a point with a chain of inequalities.
- **Vectors.** `\langle1,2\rangle` is `(1,2)`; `\langle x\rangle`, a mean, is not `x`.
- **TeX shorthand.** `\frac43` and `{4\over3}` are `\frac{4}{3}`, `\sqrt2` is `\sqrt{2}`; `2^10` is read as its
  author meant it: `2^{10}`.
- **Words** (`\text{Evelyn}`, `east`) are compared letter by letter, ignoring case where a side is a `\text{}` of two
  letters or more, or both are bare and have three or more; `\text{(C)}`, `(C)` and `C` are one choice. One or two bare
  letters (`xy`) are a product too: `yx` and `x\cdot y` equal it, `XY` does not.
- **Identities that need an assumption** are refused: `\ln x^2` against `2\ln x` (they differ for negative `x`) and
  `\sqrt a\sqrt b` against `\sqrt{ab}` (for negative `a` and `b`). A gold states no domain, so assuming one would pay
  for wrong answers elsewhere (`\sqrt{x^2}` for `x`); with numbers both are decided.
- Digits are ASCII or full-width; other scripts, invisible and bidirectional characters are left as they are and so
  match nothing.
"""

from __future__ import annotations

import re

from rlspec.rlvr.grading.typed import FUNCTIONS, Tokens, as_tex, mixed_numbers, named_letters
from rlspec.rlvr.grading.units import SIGNS, bare_unit, is_symbol

_TOKEN = re.compile(
    r"\\(?:begin|end)\s*+\{[A-Za-z*]+\}|\\[A-Za-z]+|\\.|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|\s+|.",
    re.DOTALL | re.ASCII,
)
_SPACES = frozenset(("$", r"\,", r"\;", r"\:", r"\>", "\\ ", r"\quad", r"\qquad"))
_DROPPED = frozenset(
    [
        r"\!",
        r"\(",
        r"\)",
        r"\[",
        r"\]",
        r"\left",
        r"\right",
        r"\big",
        r"\Big",
        r"\bigg",
        r"\Bigg",
        r"\bigl",
        r"\bigr",
        r"\Bigl",
        r"\Bigr",
        r"\biggl",
        r"\biggr",
        r"\Biggl",
        r"\Biggr",
        r"\displaystyle",
        r"\textstyle",
        r"\limits",
        r"\nolimits",
        r"\mathstrut",
        r"\mathbf",
        r"\mathsf",
        r"\bf",
        r"\underline",
        r"\boldsymbol",
        r"\bm",
        r"\pmb",
        r"\mathit",
        r"\bold",
        r"\boxed",
        r"\fbox",
    ]  # noqa: SIM905
)
_RENAMED = {
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\dbinom": r"\binom",
    r"\tbinom": r"\binom",
    r"\le": r"\leq",
    r"\leqslant": r"\leq",
    r"\ge": r"\geq",
    r"\geqslant": r"\geq",
    r"\ne": r"\neq",
    r"\lt": "<",
    r"\gt": ">",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\bar": r"\overline",
    r"\lvert": "|",
    r"\rvert": "|",
    r"\vert": "|",
    r"\times": "*",
    r"\cdot": "*",
    r"\ast": "*",
    r"\div": "/",
    r"\degree": r"^\circ",
    r"\varnothing": r"\emptyset",
    "%": r"\%",
    r"\land": r"\text{and}",
    r"\wedge": r"\text{and}",
    r"\lor": r"\text{or}",
    r"\vee": r"\text{or}",
    r"\pounds": "£",
    r"\euro": "€",
    r"\yen": "¥",
    r"\infin": r"\infty",
    r"\dots": r"\ldots",
    r"\cdots": r"\ldots",
}
_ENDS = (["."], [","], [";"], ["\\"])  # of a sentence, or of a line
_NEGATED = {"=": r"\neq", r"\in": r"\notin"}
_INSIDE = r"(?:(?!\\[lr]angle).)"
_VECTOR = re.compile(rf"\\langle(?![A-Za-z])({_INSIDE}{{1,200}}?,{_INSIDE}{{1,200}}?)(?:\\right)?\\rangle", re.DOTALL)
_COLOURS = frozenset((r"\color", r"\textcolor"))
_INFIX = {r"\over": r"\frac", r"\choose": r"\binom"}
_TEXT = frozenset(
    (r"\text", r"\mbox", r"\textbf", r"\textit", r"\textrm", r"\mathrm", r"\hbox", r"\textnormal", r"\operatorname")
)
_ARGUMENTS = {
    r"\frac": 2,
    r"\binom": 2,
    r"\sqrt": 1,
    r"\mathbb": 1,
    r"\mathcal": 1,
    r"\overline": 1,
    "^": 1,
    "_": 1,
}
_GROUP = re.compile(r"[0-9]{3}(?:\.[0-9]+)?\Z", re.ASCII)
_HEAD = re.compile(r"[1-9][0-9]{0,2}\Z", re.ASCII)


def tokenize(text: str) -> Tokens:
    """Clean tokens of an answer: no spaces, no layout, arguments in braces, thousands joined, texts as one token."""
    _, marked, after = text.rpartition("####")
    raw = bare_unit(as_tex(after if marked else text))
    raw = _VECTOR.sub(r"(\1)", raw) if r"\rangle" in raw else raw
    tokens = _join_thousands(named_letters(_drop_layout(_TOKEN.findall(raw))))
    tokens = [token for token in mixed_numbers(tokens) if token != " "]
    while tokens[-1:] in _ENDS:
        tokens.pop()
    return _brace_arguments(_prefixed(_brace_brackets(tokens)))


def normalize(text: str) -> str:
    """The canonical text: two answers with the same one are the same on paper."""
    return spell(tokenize(text))


def spell(tokens: Tokens) -> str:
    """Tokens as one text, with a space only where two of them would merge."""
    parts: list[str] = []
    previous = ""
    for token in tokens:
        command = previous[:1] == "\\" and previous[-1:].isalpha() and token[:1].isalpha()
        numbers = previous[-1:].isdigit() and token[:1] in "0123456789"
        parts.append(" " + token if command or numbers else token)
        previous = token
    return "".join(parts)


def _drop_layout(raw: Tokens) -> Tokens:
    r"""Unify spaces and synonyms, drop layout commands, collapse `\text{...}` into one token."""
    tokens: Tokens = []
    i = 0
    while i < len(raw):
        token = raw[i]
        i += 1
        if token in _TEXT:
            content, i = _group(raw, i)
            tokens.extend(_text_tokens(token, content, spaced=tokens[-1:] == [" "]))
        elif token in _COLOURS:
            _, i = _group(raw, i)
        elif token.isspace() or token in _SPACES:
            tokens.append(" ")
        elif token in _DROPPED:
            if token in (r"\left", r"\right") and i < len(raw) and raw[i] == ".":
                i += 1
            if token == r"\!":
                tokens.append("\\!")
        elif token == r"\not" and raw[i : i + 1] and raw[i] in _NEGATED:
            tokens.append(_NEGATED[raw[i]])
            i += 1
        elif token == r"\degree":
            tokens.extend(("^", r"\circ"))
        else:
            tokens.append(_RENAMED.get(token, "0" + token if token[0] == "." and len(token) > 1 else token))
    return tokens


def _group(raw: Tokens, i: int) -> tuple[Tokens, int]:
    """The content of the brace group that begins at or after `i`, and the index behind it."""
    while i < len(raw) and raw[i].isspace():
        i += 1
    if i >= len(raw) or raw[i] != "{":
        return [], i
    depth, start = 0, i + 1
    while i < len(raw):
        depth += (raw[i] == "{") - (raw[i] == "}")
        i += 1
        if depth == 0:
            return raw[start : i - 1], i
    return raw[start:], i


def _text_tokens(command: str, content: Tokens, *, spaced: bool) -> Tokens:
    r"""What a text command stands for: a function's name, an upright letter, or `\text{...}` as one token.

    A space before an upright letter (`25\mathrm{~m}`, `25\,\mathrm{m}`) says that it is a unit.
    """
    start = next((i for i, token in enumerate(content) if not token.isspace() and token not in _SPACES), 0)
    words = "".join(content[start:]).strip()
    if words in FUNCTIONS:
        return ["\\" + words]
    if words in SIGNS:
        return [words]
    if words.strip(", ") in ("and", "or"):
        words = words.strip(", ")
    upright = command == r"\mathrm"
    unit = start or (is_symbol(words) and (spaced or not upright))
    if len(words) == 1 and not unit and (upright or words.islower()):
        return [words]
    return ["\\text{" + words + "}"] if words else []


def _join_thousands(tokens: Tokens) -> Tokens:
    r"""`10,080`, `10,\!080`, `10{,}080`, `10 080` become `10080`; bare commas and spaces only outside brackets."""
    joined: Tokens = []
    depth = 0
    i = 0
    while i < len(tokens):
        token = tokens[i]
        depth += (token in ("(", "[", r"\{")) - (token in (")", "]", r"\}"))
        i += 1
        if _HEAD.match(token):
            while (found := _thousands(tokens, i, depth > 0)) is not None:
                token, i = token + found[0], found[1]
        if token != "\\!":
            joined.append(token)
    return joined


def _thousands(tokens: Tokens, i: int, bracketed: bool) -> tuple[str, int] | None:
    """The three digits of the next thousands group that begins at `i`, and the index behind them."""
    if tokens[i : i + 3] == ["{", ",", "}"]:
        j = i + 3
    elif tokens[i : i + 1] == [","]:
        j = i + 1
        if tokens[j : j + 1] == ["\\!"]:
            j += 1
            j += tokens[j : j + 1] == [" "]
        elif bracketed:
            return None
    elif tokens[i : i + 1] == [" "] and not bracketed:
        j = i + 1
    else:
        return None
    if j < len(tokens) and _GROUP.match(tokens[j]):
        return tokens[j], j + 1
    return None


def _brace_brackets(tokens: Tokens) -> Tokens:
    r"""`x^(a+b)` and `\sqrt(2)` mean `x^{a+b}` and `\sqrt{2}`."""
    braced = list(tokens)
    opened: list[int] = []
    for i, token in enumerate(tokens):
        if token == "(":
            opened.append(i)
        elif token == ")" and opened:
            start = opened.pop()
            if start and tokens[start - 1] in ("^", r"\sqrt"):
                braced[start], braced[i] = "{", "}"
    return braced


def _prefixed(tokens: Tokens) -> Tokens:
    r"""`{a\over b}` as `\frac{a}{b}`."""
    if not any(token in _INFIX for token in tokens):
        return tokens
    groups: list[Tokens] = [[]]
    for token in tokens:
        if token == "{":
            groups.append([])
        elif token == "}" and groups[1:]:
            inner = groups.pop()
            groups[-1] += _fraction(inner) or ["{", *inner, "}"]
        else:
            groups[-1].append(token)
    return _fraction(groups[0]) or groups[0] if len(groups) == 1 else tokens


def _fraction(group: Tokens) -> Tokens | None:
    places = [i for i, token in enumerate(group) if token in _INFIX]
    if len(places) != 1:
        return None
    (i,) = places
    return [_INFIX[group[i]], "{", *group[:i], "}", "{", *group[i + 1 :], "}"]


def _brace_arguments(tokens: Tokens) -> Tokens:
    r"""Put arguments of `\frac`, `\sqrt`, `\mathbb`, `^`, `_` and their like into braces: one token, or a command's."""
    braced: Tokens = []
    pending = 0  # arguments that the last command still wants
    stack: list[tuple[int, bool]] = []  # how many come after the group, and whether we opened it
    queue = tokens[::-1]
    while queue:
        token = queue.pop()
        if token == "{" and not pending and (lone := _lone(queue)) is not None:
            queue[-2 if lone else -1 :] = [lone] if lone else []
            continue
        if token == "{":
            stack.append((max(pending - 1, 0), False))
            pending = 0
            braced.append(token)
        elif token == "}":
            pending, _ = stack.pop() if stack else (0, False)
            braced.append(token)
        elif pending and token[0] == "\\" and token in _ARGUMENTS:
            stack.append((pending - 1, True))
            pending = _ARGUMENTS[token]
            braced.extend(("{", token))
        elif pending and not (token == "[" and braced[-1] == r"\sqrt"):
            if len(token) > 1 and token[0].isdigit() and braced[-1] not in ("^", "_"):
                queue.append(token[1:])
                token = token[0]
            pending -= 1
            braced.extend(_sign_and(token, queue) if braced[-1] in ("^", "_") else ("{", token, "}"))
        elif token == "[" and pending:
            _copy_option(token, queue, braced)
        else:
            pending = _ARGUMENTS.get(token, 0)
            braced.append(token)
        while not pending and stack and stack[-1][1]:
            pending, _ = stack.pop()
            braced.append("}")
    return braced


def _lone(queue: Tokens) -> str | None:
    """The number in braces around nothing else (`{10}^{3}`), an empty text for empty braces, else None."""
    if queue[-1:] == ["}"]:
        return ""
    return queue[-1] if queue[-2:-1] == ["}"] and queue[-1][0].isdigit() else None


def _sign_and(token: str, queue: Tokens) -> Tokens:
    """`^-2` is what people write for `^{-2}`."""
    if token == "-" and queue and queue[-1][0].isdigit():
        return ["{", token, queue.pop(), "}"]
    return ["{", token, "}"]


def _copy_option(token: str, queue: Tokens, braced: Tokens) -> None:
    r"""Copy the `[n]` of `\sqrt[n]` as it stands."""
    braced.append(token)
    while queue and braced[-1] != "]":
        braced.append(queue.pop())
