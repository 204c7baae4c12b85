r"""A strict reader of scalar expressions: canonical tokens in, a small tree out, or an error. No part is ever skipped.

The grammar is the vocabulary of final answers: numbers, letters, + - * /, powers, roots, fractions, binomials,
factorials, absolute values, floors and the elementary functions. What it does not know (`\int`, `\sum`, `\lim`,
words) is an error, so such an answer can only be accepted as the literal gold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from rlspec.rlvr.grading import typed
from rlspec.rlvr.grading.normalize import Tokens, spell

MAX_DEPTH = 30

_CALLS = typed.FUNCTIONS | {"abs"}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_GREEK = frozenset(
    [
        r"\alpha",
        r"\beta",
        r"\gamma",
        r"\delta",
        r"\epsilon",
        r"\varepsilon",
        r"\zeta",
        r"\eta",
        r"\theta",
        r"\vartheta",
        r"\kappa",
        r"\lambda",
        r"\mu",
        r"\nu",
        r"\xi",
        r"\rho",
        r"\sigma",
        r"\tau",
        r"\phi",
        r"\varphi",
        r"\chi",
        r"\psi",
        r"\omega",
        r"\Gamma",
        r"\Delta",
        r"\Theta",
        r"\Lambda",
        r"\Xi",
        r"\Sigma",
        r"\Phi",
        r"\Psi",
        r"\Omega",
        r"\ell",
    ]  # noqa: SIM905
)
_CONSTANTS = {"\\pi": "pi", "e": "e", "i": "i"}
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_BRACKET_OPS = {"|": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}
_INTEGER = re.compile(r"[0-9]+\Z", re.ASCII)


class Unreadable(ValueError):
    """The tokens are not an expression of the grammar."""


class OverBudget(ValueError):
    """The expression is too deep or too large to be worked on safely."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node: `op` is `num`, `sym`, `const`, `add`, `mul`, `div`, `pow`, `neg`, `root`, or the name of a function.

    `value` is the number of a `num`, `name` the name of a `sym` or `const`.
    """

    op: str
    args: tuple[Node, ...] = ()
    value: Fraction | None = None
    name: str = ""


def number(value: Fraction | int) -> Node:
    """A number."""
    return Node("num", value=Fraction(value))


def symbols_of(node: Node) -> frozenset[str]:
    """Names of the free symbols."""
    names: set[str] = set()
    stack = [node]
    while stack:
        top = stack.pop()
        if top.op == "sym":
            names.add(top.name)
        stack.extend(top.args)
    return frozenset(names)


def is_constant(tokens: Sequence[str]) -> bool:
    """Whether tokens are an expression without a symbol."""
    try:
        return not symbols_of(parse_expression(list(tokens)))
    except (Unreadable, OverBudget):
        return False


def parse_expression(tokens: Tokens) -> Node:
    """Read a whole token list.

    Raises:
        Unreadable: it is not an expression of the grammar, or something is left over.
        OverBudget: it is nested deeper than `MAX_DEPTH`.
    """
    parser = _Parser(tokens)
    node = parser.sum()
    if parser.peek():
        raise Unreadable(f"left over: {spell(tokens[parser.i :])[:40]}")
    return node


class _Parser:
    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self.i, self.depth = tokens, 0, 0
        self.bars = 0  # how many absolute values are open

    def peek(self) -> str:
        return self.tokens[self.i] if self.i < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise Unreadable("ends too early")
        self.i += 1
        return token

    def expect(self, wanted: str) -> None:
        if self.take() != wanted:
            raise Unreadable(f"{wanted} expected")

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise OverBudget("nested too deeply")
        terms = [self.signed_term()]
        while self.peek() in ("+", "-"):
            terms.append(self.signed_term())
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def signed_term(self) -> Node:
        """A term with a sign, or with two where a program wrote `14 + -1i`."""
        negative = False
        for _ in range(2):
            if self.peek() in ("+", "-"):
                negative ^= self.take() == "-"
        node = self.term()
        return Node("neg", (node,)) if negative else node

    def term(self) -> Node:
        node = self.factor()
        while True:
            token = self.peek()
            if token in ("*", "/"):
                self.take()
                node = Node("mul" if token == "*" else "div", (node, self.signed_factor()))
            elif self.starts_factor(token):
                node = Node("mul", (node, self.factor()))
            else:
                return node

    def signed_factor(self) -> Node:
        if self.peek() == "-":
            self.take()
            return Node("neg", (self.factor(),))
        return self.factor()

    def starts_factor(self, token: str) -> bool:
        """Whether a product may go on without a sign; never with a number, which would be ambiguous."""
        if token == "|":
            return self.bars == 0
        return token in (r"\frac", r"\sqrt", r"\binom", "(", "[", "{", r"\lfloor", r"\lceil") or (
            _is_symbol(token) or token[1:] in _CALLS
        )

    def factor(self) -> Node:
        node = self.base()
        while self.peek() in ("^", "!"):
            if self.take() == "!":
                if self.peek() == "!":
                    raise Unreadable("double factorial")  # is no factorial of a factorial
                node = Node("fact", (node,))
            else:
                node = Node("pow", (node, self.group("{")))
                if self.peek() == "^":
                    raise Unreadable("double exponent")
        return node

    def base(self) -> Node:
        token = self.take()
        if token[0] in "0123456789":
            return self.number_or_mixed(token)
        if _is_symbol(token):
            return self.symbol(token)
        if token == r"\frac":
            return Node("div", (self.group("{"), self.group("{")))
        if token == r"\binom":
            return Node("binom", (self.group("{"), self.group("{")))
        if token == r"\sqrt":
            index = self.group("[") if self.peek() == "[" else number(2)
            return Node("root", (self.group("{"), index))
        if token[:1] == "\\" and token[1:] in _CALLS:
            return self.function(token[1:])
        if token in _CLOSING:
            self.i -= 1
            inner = self.group(token)
            return Node(_BRACKET_OPS[token], (inner,)) if token in _BRACKET_OPS else inner
        raise Unreadable(f"unknown: {token[:20]}")

    def group(self, opening: str) -> Node:
        self.expect(opening)
        self.bars, outside = (1 if opening == "|" else 0), self.bars
        node = self.sum()
        self.bars = outside
        self.expect(_CLOSING[opening])
        return node

    def number_or_mixed(self, token: str) -> Node:
        value = Fraction(token)
        if self.peek() == "_":
            raise Unreadable("a number in another base")
        rest = self.tokens[self.i : self.i + 7]
        if len(rest) == 7 and rest[0] == r"\frac" and _INTEGER.match(token):
            numerator, denominator = rest[2], rest[5]
            if [rest[1], rest[3], rest[4], rest[6]] == ["{", "}", "{", "}"] and (
                _INTEGER.match(numerator) and _INTEGER.match(denominator) and int(denominator)
            ):
                self.i += 7
                value += Fraction(int(numerator), int(denominator))
        return number(value)

    def symbol(self, token: str) -> Node:
        if self.peek() != "_":
            if token in _CONSTANTS:
                return Node("const", name=_CONSTANTS[token])
            return Node("sym", name=token.lstrip("\\"))
        self.take()
        self.expect("{")
        index = ""
        while self.peek() != "}":
            index += self.take()
            if not index.isalnum() or len(index) > 20:
                raise Unreadable("a subscript that is no index")
        self.take()
        return Node("sym", name=f"{token.lstrip(chr(92))}_{index}")

    def function(self, name: str) -> Node:
        base: Node | None = None
        power: Node | None = None
        if name == "log" and self.peek() == "_":
            self.take()
            base = self.group("{")
        if self.peek() == "^":
            self.take()
            power = self.group("{")
        argument = self.argument()
        if power is not None and power == Node("neg", (number(1),)):
            if name not in _INVERSE:
                raise Unreadable("an inverse of this function")
            name, power = _INVERSE[name], None
        node = Node("log", (argument, base)) if base is not None else Node(name, (argument,))
        return node if power is None else Node("pow", (node, power))

    def argument(self) -> Node:
        """The argument of a function: one bracket, or the letters and numbers up to the next operator or function."""
        if self.peek() in ("(", "[", "{", "|"):
            node = self.base()
            if self.peek() in ("^", "!"):
                raise Unreadable("does the power belong to the function or to its argument?")
            return node
        node = self.factor()
        while self.starts_factor(self.peek()) and self.peek()[1:] not in _CALLS and self.peek() not in ("(", "["):
            node = Node("mul", (node, self.factor()))
        if self.peek() in ("/", "*") and "".join(self.tokens[self.i + 1 : self.i + 2])[1:] not in _CALLS:
            raise Unreadable("where does the argument end?")
        return node


def _is_symbol(token: str) -> bool:
    return (len(token) == 1 and token.isascii() and token.isalpha()) or token == r"\pi" or token in _GREEK
