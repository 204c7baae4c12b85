"""Which answers are the gold and which are not, decided in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from rlspec.rlvr.grading import Verdict, equivalents, grade_answer, grade_completion, mutate
from rlspec.rlvr.grading.compare import gold_text
from rlspec.rlvr.grading.extract import extract_answer
from rlspec.rlvr.grading.forms import read_form
from rlspec.rlvr.grading.normalize import normalize
from rlspec.rlvr.grading.respell import respelled
from rlspec.rlvr.grading.verdict import ACCEPTED, EXCLUDED, Reason

# (answer, gold, reason)
ACCEPTED_PAIRS = [
    (r"-\infty<x<3", r"(-\infty,3)", "tuple"),
    (r"-\infty\le x\le 3", r"(-\infty,3]", "interval"),
    (r"x\geq 2", r"2\le x<\infty", "relation"),
    (r"-\infty<x<\infty", r"\mathbb{R}", "tuple"),
    ("21st", "21", "exact"),
    ("5th.", r"5\text{th}", "exact"),
    ("5,", "5", "exact"),
    ("5;", "5", "exact"),
    ("5\\ ", "5", "exact"),
    (r"\bm{5}", "5", "exact"),
    (r"\pmb{5}", "5", "exact"),
    ("⅓", r"\frac{1}{3}", "exact"),
    ("2⅝", r"\frac{21}{8}", "rational"),
    ("1⁄2", "0.5", "decimal"),
    (r"0.1\bar{6}", r"\frac16", "decimal"),
    ("‑5", "-5", "exact"),
    (r"\langle1,-2\rangle", "(1,-2)", "tuple"),
    (r"\left\langle 1,2\right\rangle", r"\langle1,2\rangle", "tuple"),
    (r"x\not=5", r"x\neq5", "relation"),
    (r"x\ne5", r"x\not= 5", "relation"),
    (r"\frac43", r"\frac{4}{3}", "exact"),
    (r"\frac 59", r"\frac{5}{9}", "exact"),
    (r"\dfrac{33}{100}", r"\frac{33}{100}", "exact"),
    (r"11\sqrt2", r"11\sqrt{2}", "exact"),
    (r"\frac9{19}", r"\frac{9}{19}", "exact"),
    ("0.5", r"\frac{1}{2}", "decimal"),
    (".5", "0.5", "exact"),
    ("72.0", "72", "decimal"),
    ("3/4", r"\frac{3}{4}", "rational"),
    (r"\frac{6}{8}", r"\frac{3}{4}", "rational"),
    (r"11\frac{1}{2}", r"\frac{23}{2}", "rational"),
    (r"\frac{-3}{8}", r"-\frac{3}{8}", "rational"),
    (r"0.\overline{3}", r"\frac13", "decimal"),
    (r"6.72\times10^{-5}", ".0000672", "decimal"),
    ("10^6", "1000000", "rational"),
    ("3.14159265", "3.14159", "decimal"),
    ("1,080", "1080", "exact"),
    (r"10,\!080", "10080", "exact"),
    ("1{,}000", "1000", "exact"),
    ("1 080", "1,080", "exact"),
    (r"11,\! 111,\! 111,\! 100", "11111111100", "exact"),
    (r"\$18.90", "18.9", "decimal"),
    (r"10\%", "10", "exact"),
    ("10", r"10\%", "exact"),
    (r"36^\circ", "36", "exact"),
    (r"\frac{270}{7}^\circ", r"\frac{270}7\text{ degrees}", "exact"),
    ("15", r"15\mbox{ cm}^2", "exact"),
    (r"15\text{ square centimeters}", r"15\mbox{ cm}^2", "exact"),
    ("72 apples", "72", "exact"),
    (r"60 \text{ miles per hour}", "60", "exact"),
    ("x=5", "5", "exact"),
    ("5", "x=5", "exact"),
    ("2x+3", "y = 2x + 3", "exact"),
    ("3+2x", "y = 2x + 3", "symbolic"),
    ("-2x+y=3", "y = 2x + 3", "equation"),
    ("10x-14y+22z+8=0", "5x - 7y + 11z + 4 = 0", "equation"),
    ("[-2,7]", r"x \in [-2,7]", "interval"),
    ("C", r"\text{(C)}", "exact"),
    (r"\text{Even}", r"\text{even}", "exact"),
    ("even", r"\text{even}", "exact"),
    ("#### 72", "72", "exact"),
    ("72", "So she has 36+36=72.\n#### 72", "exact"),
    ("7", r"we get $\boxed{7}$.", "exact"),
    (r"\sqrt{12}", r"2\sqrt{3}", "symbolic"),
    (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}", "symbolic"),
    (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}", "symbolic"),
    ("-5i+12", "12-5i", "symbolic"),
    ("(x+1)^2", "x^2+2x+1", "symbolic"),
    ("1024", "2^{10}", "symbolic"),
    (r"\sqrt{2}^{998}+\sqrt{3}-2^{499}+\sqrt{3}", r"2\sqrt{3}", "symbolic"),
    (r"\frac{1}{2^{99}}", "2^{-99}", "symbolic"),
    (r"2\sin x\cos x", r"\sin 2x", "symbolic"),
    ("2,1", "1,2", "list"),
    (r"1-\sqrt{19}, 1+\sqrt{19}", r"1 \pm \sqrt{19}", "list"),
    (r"x=1 \text{ or } x=-2", "1,-2", "list"),
    (r"\{2,1\}", r"\{1,2\}", "set"),
    (r"(3, \pi/2)", r"\left( 3, \frac{\pi}{2} \right)", "tuple"),
    (r"(9,36)\cup(0,9)", r"(0,9) \cup (9,36)", "union"),
    (r"\begin{bmatrix}0.2\\-3.6\end{bmatrix}", r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", "matrix"),
    ("3>x", "x<3", "relation"),
    ("52_{8}", "52_8", "exact"),
    ("1/2004!", r"\frac{1}{2004!}", "symbolic"),
    ("x_1=3", "3", "exact"),
    ("a_n=2n", "2n", "exact"),
    ("55", "S_{10}=55", "exact"),
    (r"5\text{ m/s}", "5", "exact"),
    (r"5\text{ m/s^2}", "5", "exact"),
    (r"60\text{ miles/hour}", "60", "exact"),
    (r"60\text{ square feet per minute}", "60", "exact"),
    (r"25\text{ cm^2}", r"25\text{ cm}^2", "exact"),
    (r"25\mathrm{~m}", "25", "exact"),
    (r"25\mathrm{\,m}", "25", "exact"),
    ("ab", "ba", "symbolic"),
    ("xy", r"x\cdot y", "symbolic"),
    ("EVEN", "even", "exact"),
    (r"\text{No}", "no", "exact"),
    (r"\mathbb R", r"\mathbb{R}", "exact"),
    (r"\overline z", r"\overline{z}", "exact"),
    (r"\mathcal P", r"\mathcal{P}", "exact"),
]

REFUSED_PAIRS = [
    (r"\langle x\rangle", "x", "unparseable"),
    (r"\langle1,2\rangle", "(2,1)", "different"),
    (r"\langle x\rangle,\langle y\rangle", "x,y", "different"),
    (r"-\infty<x<3", "x>-3", "unevaluated"),
    (r"\infty<x<3", r"(-\infty,3)", "unparseable"),
    (r"3<x<\infty", "x>2", "different"),
    ("5th", "6", "different"),
    ("2", r"2\sqrt{3}", "different"),
    ("12", "12-5i", "different"),
    ("2", "y=2x+3", "different"),
    (r"\frac{1}{2}", r"5\frac{1}{2}", "different"),
    ("1/2004!", "1/2006!", "budget"),
    ("1/104!", "1/106!", "different"),
    ("1/2^{99}", "1/2^{98}", "different"),
    (r"\sqrt{2}+10^{-300}", r"\sqrt{2}", "different"),
    (r"\sqrt{2}+10^{-9000}", r"\sqrt{2}", "unproven"),
    (".0000673", ".0000672", "different"),
    ("(1,2)", r"\{1,2\}", "different"),
    ("1,2", "(1,2)", "different"),
    ("(2,1)", "(1,2)", "different"),
    ("[1,2]", "(1,2)", "different"),
    ("(1,2]", "[1,2]", "different"),
    (r"71 \text{ or } 72", "72", "different"),
    ("71,72", "72", "different"),
    ("72 or 73", "72", "different"),
    ("5 million", "5", "unparseable"),
    ("0.1", r"10\%", "different"),
    ("0.3333", r"\frac13", "different"),
    ("3.1416", "3.14159", "different"),
    ("3.14158", "3.14159", "different"),
    ("1 2", "12", "unparseable"),
    ("5²", "52", "unevaluated"),
    ("x=5", "y=5", "different"),
    ("52_9", "52_8", "different"),
    ("52", "52_8", "different"),
    ("even", "neve", "different"),
    (r"\text{no}", r"\text{on}", "different"),
    ("(B)", r"\text{(C)}", "different"),
    (r"5\text{ cents}", r"5\text{ dollars}", "unit"),
    (r"\$5", r"5\text{ cents}", "unit"),
    (r"36^\circ", r"\$36", "unit"),
    (r"3\text{ m}", r"3\text{ m}^2", "unit"),
    ("1/0", "2/0", "unproven"),
    (r"\sqrt{x^2}", "x", "different"),
    ("x\\le 3", "x<3", "different"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", "different"),
    ("2+3=5", "5", "different"),
    ("AB", "ab", "different"),
    ("XY", "xy", "different"),
    ("abc", "bca", "different"),
    ("x_1=3", "x_2=3", "different"),
    ("x_1+1=3", "3", "different"),
    (r"25\mathrm{~m}", r"25\text{ cm}", "unit"),
    (r"5\text{ and/or}", "5", "unparseable"),
    (r"\mathbb R", r"\mathbb{Q}", "unparseable"),
    (r"\ln x^2", r"2\ln x", "different"),
    (r"\sqrt a\sqrt b", r"\sqrt{ab}", "different"),
    ("", "5", "unparseable"),
    (r"\frac{1}{", "5", "unparseable"),
]

MATH_NOTATIONS = {
    r"\frac43",
    r"\dfrac",
    r"\sqrt2",
    "over",
    "other order",
    "typed",
    "full-width",
    "mixed number",
    "commuted",
    "double sign",
    "array",
    "as set",
    "as list",
    "one name",
    ", and",
    "named tuple xyz",
    "named tuple nkb",
    "semicolons",
    "named in other order",
    "interval as relation",
    "union as relations",
}

UNEVALUATED = [
    "12+30",
    "6*7",
    "84/2",
    r"\frac{84}{2}",
    "5!",
    "2^{5}+10",
    r"\sqrt{1764}",
    r"42\sin^2x+42\cos^2x",
    r"\int_0^{42} 1dx",
]


def golds_of(shared: Path, name: str) -> list[str]:
    path = shared / "data" / name / "test.jsonl"
    return [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").split("\n") if line]


def one_of_each(golds: list[str]) -> list[str]:
    """Many solutions end in the same number, and the number is all that is compared."""
    return list({gold.rpartition("####")[2].strip(): gold for gold in golds}.values())


@pytest.fixture(scope="module")
def math500(shared: Path) -> list[str]:
    return golds_of(shared, "math500")


@pytest.fixture(scope="module")
def gsm8k(shared: Path) -> list[str]:
    return golds_of(shared, "gsm8k")


@pytest.mark.parametrize(("answer", "gold", "reason"), ACCEPTED_PAIRS)
def test_an_equal_answer_is_accepted(answer: str, gold: str, reason: str) -> None:
    assert grade_answer(answer, gold) == Verdict(True, reason, answer, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("answer", "gold", "reason"), REFUSED_PAIRS)
def test_a_different_answer_is_refused(answer: str, gold: str, reason: str) -> None:
    assert grade_answer(answer, gold) == Verdict(False, reason, answer, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("answer", "gold", "_"), REFUSED_PAIRS)
def test_refusal_does_not_depend_on_which_side_is_the_gold(answer: str, gold: str, _: str) -> None:
    assert grade_answer(gold, answer).correct is not True


REAL_VARIABLES = [  # both have values at the same real points, and equal ones, or not
    (r"\frac{1}{\sqrt{n}}", r"\sqrt{\frac{1}{n}}", True),
    (r"60x\sqrt{2x}", r"60\sqrt{2x^3}", True),
    (r"x^{3/2}", r"x\sqrt{x}", True),
    (r"\frac{1}{2}\ln x", r"\ln\sqrt{x}", True),
    (r"\log_2 x^3", r"3\log_2 x", True),
    (r"\sqrt{ab}", r"\sqrt{a}\sqrt{b}", False),  # not for a, b < 0
    (r"\ln(x^2)", r"2\ln x", False),
    (r"2\ln|x|", r"\ln(x^2)", True),
    (r"\ln x", r"\ln|x|", False),
    ("|x|", r"\sqrt{x^2}", True),
    ("x", r"\sqrt{x^2}", False),
    ("x-3", r"\sqrt{(x-3)^2}", False),
    ("x+20", r"\sqrt{(x+20)^2}", False),  # equal at every point that is tried
    ("x+20", "|x+20|", False),
    (r"\ln((x+1000)^2)", r"2\ln(x+1000)", False),
    (r"\sqrt[3]{x^3}", "x", True),
    (r"a\sqrt{b}", r"\sqrt{a^2b}", False),
    ("|a|bcde", "abcde", False),
    (r"\frac{abcd}{\sqrt{f}}", r"abcd\sqrt{1/f}", True),
    (r"\frac{abcdk}{\sqrt{f}}", r"abcdk\sqrt{1/f}", False),  # more variables than have all their signs tried
    (r"\sqrt{-x}", r"\sqrt{x}", False),
    (r"i\sqrt{-x}", r"\sqrt{x}", False),
]


@pytest.mark.parametrize(("answer", "gold", "right"), REAL_VARIABLES)
def test_variables_are_real(answer: str, gold: str, right: bool) -> None:
    assert grade_answer(answer, gold).correct is right
    assert grade_answer(gold, answer).correct is right


@pytest.mark.parametrize("answer", UNEVALUATED)
def test_work_left_to_do_is_no_answer_to_a_plain_gold(answer: str) -> None:
    assert grade_answer(answer, "42").reason == "unevaluated"


@pytest.mark.parametrize("gold", ["", "   ", r"\frac{1}{", "}", r"the answer is \boxed{5"])
def test_a_useless_gold_excludes_the_sample_instead_of_failing_it(gold: str) -> None:
    assert grade_answer("5", gold) == Verdict(None, "gold_unparseable", "5", 0)


def test_every_reason_belongs_to_one_outcome() -> None:
    reasons = set(get_args(Reason))
    assert reasons > ACCEPTED | EXCLUDED
    assert not ACCEPTED & EXCLUDED
    assert {Verdict.of(reason).correct for reason in EXCLUDED} == {None}
    assert Verdict.of("exact").correct is True
    assert Verdict.of("timeout").correct is False


@pytest.mark.parametrize(
    ("completion", "text", "fault", "boxes"),
    [
        (r"so \boxed{3}.", "3", None, 1),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", None, 1),
        (r"\boxed{1} then \boxed{2}", "2", None, 2),
        (r"\fbox{4}", "4", None, 1),
        (r"\boxed{\{1,2\}}", r"\{1,2\}", None, 1),
        (r"\boxed{\boxed{3}}", r"\boxed{3}", None, 2),
        (r"\boxed{1} and \boxed{2", None, "unterminated_box", 2),
        (r"\boxed{1} and \boxed", None, "unterminated_box", 2),
        (r"\boxed{1} and \boxed{}", None, "empty_box", 2),
        (r"\boxed{\text{ }\,}", None, "empty_box", 1),
        ("the answer is 3", None, "no_box", 0),
        (r"\boxedfoo{3}", None, "no_box", 0),
        (r"<think>\boxed{72}</think> I give up", None, "no_box", 0),
        (r"<think>\boxed{1}</think> \boxed{72}", "72", None, 1),
        (r"<think>\boxed{72}", None, "truncated_thinking", 0),
    ],
)
def test_only_the_last_box_after_the_thought_counts(
    completion: str, text: str | None, fault: str | None, boxes: int
) -> None:
    found = extract_answer(completion, thinking=False)
    assert (found.text, found.fault, found.boxes) == (text, fault, boxes)


def test_a_thinking_completion_without_the_end_of_its_thought_was_cut_off() -> None:
    assert grade_completion(r"\boxed{4}", "4", thinking=True).reason == "truncated_thinking"
    assert grade_completion(r"hm</think>\boxed{4}", "4", thinking=True) == Verdict(True, "exact", "4", 1)
    assert grade_completion(r"\boxed{4}", "4", thinking=False) == Verdict(True, "exact", "4", 1)


def test_normalisation_is_idempotent(math500: list[str]) -> None:
    once = [normalize(gold) for gold in math500]
    assert [normalize(text) for text in once] == once


def test_every_math500_gold_is_accepted_against_itself(math500: list[str]) -> None:
    assert len(math500) == 500
    refused = [g for g in math500 if not grade_completion(f"so \\boxed{{{g}}}.", g, thinking=False).correct]
    assert refused == []


def test_every_gsm8k_gold_is_accepted_against_its_solution(gsm8k: list[str]) -> None:
    assert len(gsm8k) == 1319
    bare = [re.split("####", gold)[1].strip() for gold in gsm8k]
    answers = [
        *zip(bare, gsm8k, strict=True),
        *((text.replace(",", ""), gold) for text, gold in zip(bare, gsm8k, strict=True)),
    ]
    assert [
        pair for pair in answers if not grade_completion(f"\\boxed{{{pair[0]}}}", pair[1], thinking=False).correct
    ] == []


@pytest.mark.parametrize("name", ["math500", "gsm8k"])
def test_every_usual_way_of_writing_a_gold_is_accepted(name: str, request: pytest.FixtureRequest) -> None:
    golds = one_of_each(request.getfixturevalue(name))
    variants = [(variant, gold) for gold in golds for variant in equivalents(gold)]
    kinds = {variant.kind for variant, _ in variants}
    wanted = {
        "x=",
        r"\$",
        r"\%",
        "trailing .0",
        "unit text",
        "{,}",
        "commas",
        "dollars around",
        "e-notation",
        "euro sign",
    }
    assert kinds >= wanted | (MATH_NOTATIONS if name == "math500" else set())
    assert len(variants) > 5_000
    assert [(v, gold) for v, gold in variants if grade_answer(v.answer, gold).correct is not True] == []


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["math500", "gsm8k"])
def test_no_wrong_answer_is_accepted(name: str, every: int, request: pytest.FixtureRequest) -> None:
    golds = one_of_each(request.getfixturevalue(name))[::every]
    wrong = [(mutation, gold) for gold in golds for mutation in mutate(gold)]
    assert len(wrong) > 15_000 / every
    tried = {mutation.kind.partition(":")[0] for mutation, _ in wrong}
    respellings = {variant.kind for gold in golds for variant in respelled(gold, read_form(gold_text(gold) or ""))}
    assert tried >= respellings or every > 1
    assert all(mutate(gold) for gold in golds)  # no gold goes untested
    assert [(m, gold) for m, gold in wrong if grade_answer(m.answer, gold).correct is not False] == []


def test_mutations_contain_the_mistakes_that_other_graders_accept() -> None:
    answers = {
        gold: {m.answer for m in mutate(gold)}
        for gold in (r"2\sqrt{3}", "12-5i", r"5\frac{1}{2}", "(1,2]", "1/104!", "2^{9}")
    }
    assert "2" in answers[r"2\sqrt{3}"]
    assert "12" in answers["12-5i"]
    assert r"\frac{1}{2}" in answers[r"5\frac{1}{2}"]
    assert {"(2,1]", "[1,2]", "(1,2)", r"\{1,2\}", "(1]"} <= answers["(1,2]"]
    assert "1/106!" in answers["1/104!"]
    assert "2^{0}" in answers["2^{9}"]


def test_mutations_that_might_be_equal_are_left_out() -> None:
    assert not {"1^{6}", "1^{7}"} & {m.answer for m in mutate("1^{5}")}
    assert "-0" not in {m.answer for m in mutate("0")}
    assert "(3,3)" not in {m.answer for m in mutate("(3,3)")}


def test_generators_are_deterministic() -> None:
    gold = r"\left( 3, \frac{\pi}{2} \right)"
    assert mutate(gold) == mutate(gold)
    assert mutate(gold, 2) == mutate(gold)[:2]
    assert equivalents(gold) == equivalents(gold)
