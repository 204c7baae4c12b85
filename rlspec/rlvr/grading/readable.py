"""Can anybody win this gold? It must read as a number, an expression, a list, an interval, a word; prose does not."""

from __future__ import annotations

import re

from rlspec.rlvr.grading.budget import MAX_LENGTH
from rlspec.rlvr.grading.expression import OverBudget, Unreadable, is_constant, parse_expression
from rlspec.rlvr.grading.forms import Form, read_form
from rlspec.rlvr.grading.names import is_name
from rlspec.rlvr.grading.plain import based_number, is_decimal, plain_number

MAX_WORDS = 6  # of a gold in words: "one solution for each value"
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]+\}|\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_OF_SENTENCES = frozenset("is are was were has have had equals answer therefore because since so hence thus".split())  # noqa: SIM905
_OF_AMOUNTS = frozenset(  # beside digits
    "more less fewer than about approximately around roughly almost yes no let qed total result ans".split()  # noqa: SIM905
)
_CHOSEN = re.compile(r"\A\(?[A-E]\)\W*[0-9]|[0-9]\W*\([A-E]\)\Z", re.ASCII)  # `(B) 18`: a letter and its value
_MISSING = frozenset(("nan", "null", "n/a", "#n/a", "<na>", "nat"))  # what tables write; `None` answers some problems
_LITERALS = frozenset((r"\emptyset", r"\infty"))
_TIME = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?\Z", re.ASCII)
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(rf"(?:{_MONTHS})[0-9]{{1,2}}\Z", re.ASCII)
_SHORTEST_RUN = 4  # letters side by side that are a word rather than a product, unless in alphabetical order
_SHORTEST_IN_BRACKETS = 3


def is_readable(text: str) -> bool:
    """Whether a bare gold says one thing that an answer can be compared with, other than by its very letters."""
    if len(text) > MAX_LENGTH or is_decimal(text):
        return len(text) <= MAX_LENGTH
    if text.strip().lower() in _MISSING:
        return False
    words = _WORD.findall(_COMMAND.sub(" ", text))
    vague = _OF_SENTENCES | _OF_AMOUNTS if any(character.isdigit() for character in text) else _OF_SENTENCES
    if len(words) > MAX_WORDS or any(word.lower() in vague for word in words):
        return False
    if _CHOSEN.search(_COMMAND.sub("", text).strip(" {}$")):
        return False
    try:
        return _is_readable(read_form(text))
    except OverBudget:
        return False


def _is_readable(form: Form) -> bool:
    if form.kind == "scalar":
        return _is_value(form)
    unsolved = form.kind == "equation" and not is_name(form.tokens)
    if unsolved and (not _is_value(Form("scalar", form.tokens)) or is_constant(form.tokens)):  # `2*9=18`
        return False
    if form.mark == "::" and len({plain_number(item.text) is None for item in form.items}) > 1:
        return False  # `A: 18`
    return form.kind == "word" or (form.kind != "empty" and all(map(_is_readable, form.items)))


def _is_value(form: Form) -> bool:
    tokens, text = form.tokens, form.text
    if plain_number(text) is not None or tokens[0] == r"\mathbb" or (len(tokens) < 3 and tokens[-1] in _LITERALS):
        return True
    if based_number(text) is not None or _TIME.match(text) or _DATE.match(text):
        return True
    try:
        parse_expression(list(tokens))
    except Unreadable:
        return False
    return not _has_words(tokens)


def _has_words(tokens: tuple[str, ...]) -> bool:
    """Whether an expression has a word among its letters: `9(apples)` is no product."""
    run = ""
    for i, token in enumerate((*tokens, "")):
        if len(token) == 1 and token.isascii() and token.isalpha():
            run += token
            continue
        bracketed = token == ")" and tokens[i - len(run) - 1 : i - len(run)] == ("(",)
        shortest = _SHORTEST_IN_BRACKETS if bracketed else _SHORTEST_RUN
        if len(run) >= shortest and list(run) != sorted(set(run)):
            return True
        run = ""
    return False
