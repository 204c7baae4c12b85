"""The check of a data set: golds that nobody can win, golds that contradict, and golds that would take forever."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
from grader_hostile_inputs import hostile_pairs

from rlspec.rlvr.grading import GraderPool, grade_answer, mutate, preflight
from rlspec.rlvr.grading.expression import OverBudget
from rlspec.rlvr.grading.readable import is_readable

PROSE = [
    "9 (apples)",
    "9 (men)",
    "The answer is 18.",
    "the answer is three",
    "about 5",
    "5 or more",
    "18 apples are left",
    "18. So he has 18",
    "2 (since x>0)",
    "12 dozen",
    "5 million",
    r"\$18 per day (total)",
    "Step 1: 5",
    r"\text{The total is 3 apples.}",
    r"\frac{1}{2} of the cake",
    r"\sum_{k=1}^n k",
    r"\begin{cases}1&x>0\\0&x\le 0\end{cases}",
    "1 2 3",
    "=",
    "-",
    "?",
    "5!!?",
    "x+" * 200 + "1",
    "Total: 18",
    "A: 18",
    "18 (B)",
    r"\textbf{(B)}\ 18",
    r"(C) \frac{1}{2} 3",
    "Let x = 18",
    "Yes, 18",
    "18 QED",
    "18 = 18",
    "2*9 = 18",
    "1.5 quadrillion",
    "NaN",
    "null",
    "N/A",
    "<NA>",
]
READABLE = [
    "18",
    "-3.5",
    "1,080",
    r"\frac{3}{4}",
    "2 3/4",
    "4.5e33",
    "9 apples",
    "1.5 hours",
    r"$9$ hours",
    "5 m/s",
    "£5",
    r"10\%",
    "52_8",
    "6:30",
    "3:4",
    "east",
    "no solution",
    r"\text{all real numbers}",
    r"\text{June 20}",
    "Tom and Jerry",
    r"\text{(C)}",
    "x=5",
    "AB=5",
    r"\angle ABC=60^\circ",
    "(1,2)",
    "1 and 2",
    r"x\in[1,2)",
    "x<3",
    r"(-\infty,1)\cup(3,\infty)",
    r"\mathbb{R}\setminus\{0\}",
    r"\emptyset",
    r"-\infty",
    r"2\pi rh",
    "abcd",
    "mgh",
    "PV=nRT",
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    "1/2006!",
    "None",
]


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=1) as pool:
        yield pool


@pytest.mark.parametrize("gold", PROSE)
def test_a_gold_that_nobody_can_win_is_flagged_though_its_very_letters_are_accepted(
    gold: str, pool: GraderPool
) -> None:
    assert grade_answer(gold, gold).reason == "exact"
    report = preflight([gold], pool=pool)
    assert report.accepted == []
    assert [(failure.check, failure.reason) for failure in report.failures] == [("readable", "gold_unreadable")]


@pytest.mark.parametrize("gold", READABLE)
def test_numbers_expressions_lists_intervals_and_words_are_readable(gold: str, pool: GraderPool) -> None:
    assert preflight([gold], pool=pool).accepted == [0]


def test_prose_costs_nothing(pool: GraderPool) -> None:
    sentence = "She sold {} clips in April and half as many in May, so {} altogether. "
    golds = [sentence.format(n, n * 3) * (1 + n % 4) for n in range(200)]
    start = time.process_time()
    report = preflight(golds, pool=pool)
    assert (report.accepted, report.mutated, sum(report.reasons.values())) == ([], 0, 0)  # nothing was graded
    assert time.process_time() - start < 5


def test_a_gold_too_large_to_evaluate_is_never_evaluated(pool: GraderPool) -> None:
    golds = [answer for answer, _ in hostile_pairs() if len(answer) <= 300]
    assert sum(map(is_readable, golds)) > 50
    for gold in golds:
        with contextlib.suppress(OverBudget):
            mutate(gold, 2)  # in this process, which nothing could end
    for _ in range(3):  # one that is evaluated takes too long every time, one that met a busy machine does not
        before = pool.counts["timeout"]
        preflight(golds, pool=pool)
        if pool.counts["timeout"] == before:
            return
    pytest.fail("golds are evaluated")


def test_rows_of_one_problem_with_contradicting_golds_are_named(pool: GraderPool) -> None:
    problems = ["What is 1+1?", "A half?", " What  is 1+1?", "A half?", "Other?", "What is 1+1?"]
    report = preflight(["2", "0.5", "3", r"\frac12", "3", "2"], problems=problems, pool=pool)
    assert report.accepted == [1, 3, 4, 5]
    assert [(failure.index, failure.check, failure.answer, failure.reason) for failure in report.failures] == [
        (0, "same problem as row 2", "3", "gold_contradicted"),
        (2, "same problem as row 0", "2", "gold_contradicted"),
    ]


def test_without_problems_equal_rows_are_not_looked_for(pool: GraderPool) -> None:
    assert preflight(["2", "3"], pool=pool).accepted == [0, 1]
    assert preflight(["2", "3"], problems=["a", "a"], pool=pool).accepted == []
