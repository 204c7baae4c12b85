"""Where we and raw math_verify (gold and answer boxed) disagree on MATH-500, and why. Everything else must agree."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from grader_agreement import Pair, math_verify, pairs, table

from rlspec.rlvr.grading import equivalents, grade_answer, mutate

# Kinds of mutation that math_verify accepts, with the reason for refusing them.
MATH_VERIFY_ACCEPTS = {
    "base": "it drops the subscript: 52_8 = 52_10 = 52",
    "bracket": "it compares tuples, sets and lists as sets",
    "float": "it rounds to six decimals: .0000672 = .0000673",
    "unit": "it drops units: 55 degrees = 55 radians",
}
# Kinds of notation that math_verify refuses, with the reason for accepting them.
MATH_VERIFY_REFUSES = {
    "full stop": "a sentence may end inside of the box",
    r"\%": "percent is a unit here (see normalize.py), a factor of 0.01 there",
    "name": "it keeps the name of a word: x = (C)",
    "thousands": "it reads 58,500 as the set of 58 and 500",
    "quotient unit": "it reads m/s as a quotient of variables",
    "celsius": "it reads C as a variable",
    "euro sign": "it knows the dollar only",
    "pound sign": "it knows the dollar only",
    "over": "it does not read {a\\over b}",
    "typed": "it reads a box as TeX: pi is p times i",
    "full-width": "it does not know full-width signs",
    "mixed number": "it reads 3 1/2 as a product",
    "named in other order": "it compares in the order of writing",
    "e-notation": "it reads e as Euler's number",
    "x 10^": "it reads x as a variable",
    "interval as relation": "it takes an inequality for an interval in one direction only, by design",
    "union as relations": "it takes an inequality for an interval in one direction only, by design",
}


def _why_accepted(kind: str, gold: str) -> str:
    if "_" in gold:
        return "base"
    if any(word in kind for word in ("tuple", "list", "set", "reversed", "bracket")):
        return "bracket"
    if "unit" in kind:
        return "unit"
    return "float" if gold == ".0000672" else f"unexplained: {kind} of {gold}"


def _why_refused(kind: str, gold: str) -> str:
    if re.search(r"[0-9],(\\!)? ?[0-9]{3}", gold):
        return "thousands"
    return "name" if kind in ("x=", "x =") and "text" in gold else kind


@pytest.fixture(scope="module")
def expressions(shared: Path) -> list[str]:
    """The golds that are not integers."""
    lines = (shared / "data" / "math500" / "test.jsonl").read_text(encoding="utf-8").split("\n")
    golds = {json.loads(line)["answer"] for line in lines if line}
    return sorted(gold for gold in golds if not gold.lstrip("-").isdigit())


@pytest.fixture(autouse=True)
def quiet() -> None:
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_disagreements_on_wrong_answers_have_a_stated_reason(every: int, expressions: list[str]) -> None:
    pairs = [(m, gold) for gold in expressions[::every] for m in [*mutate(gold)[:3], *mutate(gold)[-1:]]]
    disagreements = [(m, gold) for m, gold in pairs if math_verify(m.answer, gold)]
    reasons = {_why_accepted(m.kind, gold) for m, gold in disagreements}
    assert reasons <= set(MATH_VERIFY_ACCEPTS)
    assert all(grade_answer(m.answer, gold).correct is False for m, gold in disagreements)
    assert 0 < len(disagreements) / len(pairs) < 0.08


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_disagreements_on_equivalent_answers_have_a_stated_reason(every: int, expressions: list[str]) -> None:
    pairs = [(v, gold) for gold in expressions[::every] for v in equivalents(gold)]
    kinds = {_why_refused(v.kind, gold) for v, gold in pairs if not math_verify(v.answer, gold)}
    assert kinds <= set(MATH_VERIFY_REFUSES)


def test_the_table_counts_every_pair_once_for_every_grader(expressions: list[str]) -> None:
    golds = expressions[::40]
    asked = list(pairs(golds, 3))
    assert {pair.same for pair in asked} == {True, False}
    assert Pair("identity", golds[0], golds[0], True) in asked
    lines = table(golds, 3)
    header, _, *rows = [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]
    assert header[:4] == ["kind", "pairs", "rlspec", "math-verify"]
    sums = [row for row in rows if row[0].startswith("**")]
    assert [int(row[1]) for row in sums] == [sum(pair.same is same for pair in asked) for same in (True, False)]
    assert all(row[2].strip("*") == row[1] for row in rows)  # ours, always right
    assert not any(line.startswith("- rlspec") for line in lines)
