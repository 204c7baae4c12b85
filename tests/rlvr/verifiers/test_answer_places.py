"""Where an answer may stand, beside the last balanced box: by the recipe's word, in its order, in linear time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.grading import GraderPool
from rlspec.rlvr.verifiers.answers import MathVerifier
from rlspec.rlvr.verifiers.places import find_answer
from rlspec.rlvr.verifiers.verifier import Attempt

ALL = ("boxed", "boxed_word", "answer_tag", "hashes", "last_number")


@pytest.mark.parametrize(
    ("place", "completion", "found"),
    [
        ("boxed", r"\boxed{7} and 8", "7"),
        ("boxed", r"\boxed 7", None),
        ("boxed_word", r"so \boxed 7.", "7"),
        ("boxed_word", r"$\boxed7$", "7"),
        ("boxed_word", r"\boxed{7}", None),
        ("boxed_word", r"\boxed", None),
        ("answer_tag", "<answer> 18 </answer>", "18"),
        ("answer_tag", r"<answer>\boxed{18}</answer>", "18"),
        ("answer_tag", "<answer>1</answer> no, <answer>2</answer>", "2"),
        ("answer_tag", "<answer>1", None),
        ("answer_tag", "</answer><answer>", None),
        ("answer_tag", "<answer></answer>", None),
        ("hashes", "so\n#### 1,234\nBye 5", "1,234"),
        ("hashes", "#### ", None),
        ("last_number", "It costs $18.", "18"),
        ("last_number", "3 + 4 = -7!", "-7"),
        ("last_number", "from 10-5", "5"),
        ("last_number", "1,234.50 dollars", "1,234.50"),
        ("last_number", "x7y v2 A4", None),
        ("last_number", "3.14.", "3.14"),
        ("last_number", "5/8 of it", "5/8"),
        ("last_number", "50%.", "50%"),
        ("last_number", "no number", None),
        ("last_number", "x=.5", ".5"),
        ("last_number", "x = -.5", "-.5"),
        ("last_number", "6.02e23 of them", "6.02e23"),
        ("last_number", "from 5 to 1,00", None),
        ("last_number", "5 in version 1.2.3", None),
        ("last_number", "5 or 1/2/3", None),
        ("last_number", r"so \$1{,}200 in all", "1,200"),
        ("last_number", r"$5\,000$", "5,000"),
        ("last_number", r"10,\!080.", "10,080"),
        ("last_number", "it takes 3 1/2 hours", "3 1/2"),
        ("last_number", "it takes 3 1/2/5 hours", None),
        ("last_number", r"is $-\frac{1}{2}$", r"-\frac{1}{2}"),
        ("last_number", r"is $3\dfrac{1}{2}$", r"3\dfrac{1}{2}"),
        ("last_number", "is 10^3", "10^3"),
        ("last_number", "is 10^{-3}.", "10^{-3}"),
        ("last_number", r"is \frac{x}{2}", "2"),
    ],
)
def test_each_place_finds_its_answer_and_no_other(place: str, completion: str, found: str | None) -> None:
    assert find_answer(completion, [place], thinking=False)[0] == found


def test_the_first_place_that_has_an_answer_counts() -> None:
    assert find_answer(r"#### 4 \boxed{5} 6", ALL, thinking=False)[0] == "5"
    assert find_answer("#### 4 and 6", ALL, thinking=False)[0] == "4 and 6"
    assert find_answer("4 and 6", ALL, thinking=False)[0] == "6"
    assert find_answer("nothing", ALL, thinking=False) == (None, "no_answer")


def test_a_thought_is_no_place_for_an_answer() -> None:
    assert find_answer("<think>it is 7</think> I give up", ALL, thinking=True) == (None, "no_answer")
    assert find_answer("<think>it is 7", ALL, thinking=True) == (None, "truncated_thinking")


NONSENSE = ["1," * 200_000, "-" * 400_000, "<answer>" * 60_000, r"\boxed " * 60_000, "#" * 400_000]


@pytest.mark.parametrize("text", NONSENSE, ids=lambda text: text[:8])
def test_long_nonsense_is_no_answer_and_is_passed_in_linear_time(text: str) -> None:
    """Quadratic time would not come to an end here."""
    assert find_answer(text, ALL, thinking=False)[0] in (None, "1")


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=1, warm=False) as pool:
        yield pool


def test_answers_from_other_places_are_compared_as_mathematics(pool: GraderPool) -> None:
    verifier = MathVerifier(pool, thinking=False, places=ALL)
    problem = Problem("?", "1/2", None, None, "id")
    texts = ["<answer>0.5</answer>", "#### 0.5", "so it is 0.50", r"\boxed{\frac12}", "2", "none", r"\boxed 2"]
    judged = verifier.judge([Attempt(problem, text) for text in texts])
    assert [each.score for each in judged] == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert [each.extracted for each in judged] == ["0.5", "0.5", "0.50", r"\frac12", "2", None, "2"]
    assert judged[5].reason == "no_answer"
    assert "grader/box_rate" not in verifier.batch_metrics(judged)
    assert set(verifier.summarize([judged], [1])) == {"maj_at_k", "maj_at_k_ci95"}
