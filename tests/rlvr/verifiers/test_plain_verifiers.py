"""Choice letters, patterns, shapes and lengths: right answers win, tricks do not, nothing hangs."""

from __future__ import annotations

from typing import Any

import pytest

from rlspec.config.rlvr_schema import Grader, Reward
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.verifiers.build import Circumstances, build_verifiers
from rlspec.rlvr.verifiers.verifier import Attempt, Judgement, Verifier


def verifier(name: str, *, thinking: bool = False, **options: Any) -> Verifier:
    (member,) = build_verifiers([Reward(name=name, options=options)], Circumstances(Grader(), [], thinking)).members
    return member


def judge(member: Verifier, text: str, gold: str = "B", tokens: int = 1) -> Judgement:
    (judgement,) = member.judge([Attempt(Problem("?", gold, None, None, "id"), text, range(tokens))])
    return judgement


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{(b)}", "B"),
        ("<answer>B</answer>", "B"),
        ("<answer>B) seven</answer>", "B"),
        ("A is wrong. The answer is (B).", "B"),
        ("The answer is A. No, the correct answer is B", "B"),
        ("**Answer:** B", "B"),
        ("B", "B"),
        ("B. because 3 < 4", "B"),
        ("(C) it is", "C"),
        ("Answer: Z", None),
        ("A bird flies", None),
        ("A triangle with these sides cannot exist, so I am not sure.", None),
        ("The answer is a bit unclear to me.", None),
        (r"\boxed{A dog}", None),
        ("I have a choice: a) or b), and cannot decide.", None),
        ("Neither choice A nor B", None),
        (r"\boxed{A;B}", None),
        (r"\boxed{(A)(B)}", None),
        (r"\boxed{A,~B}", None),
        ("The answer is A; B", None),
        ("Neither option B nor C", None),
        ("The answer is C, not option B.", "C"),
        ("Option B is wrong.", None),
        ("I do not know the answer. A", None),
        ("(B) or (C)", None),
        (r"\boxed{B, C}", None),
        ("The answer is B. That is the option I prefer.", "B"),
        ("The answer is B, I think.", "B"),
        ("The answer is A because of it", "A"),
        ("the answer is the letter B", "B"),
        ("The answer must be B.", "B"),
        ("The answer is therefore B.", "B"),
        ("So the correct option is clearly (C).", "C"),
        ("The answer must be a B or C.", None),
        ("The answer must not be B.", None),
        ("B\nas 3 < 4", "B"),
        (r"\boxed{\textbf{(B)}\ 5}", "B"),
        (r"\boxed{\text{B. } 5}", "B"),
        (r"\boxed{\text{Option B}}", "B"),
        (r"The answer is $\textbf{(B)}$", "B"),
        ("So the answer is C because no other option a reader might pick fits.", "C"),
        ("answer" + " " * 100_000 + "1", None),
        ("The answer is A - Paris", "A"),
        ("The answer is A – Paris", "A"),
        ("The answer is A (Paris).", "A"),
        ("The answer is A which is Paris", "A"),
        ('The answer is "A".', "A"),
        ("The answer is `A`.", "A"),
        (r"\boxed{B 12}", "B"),
        (r"\boxed{B - 12}", "B"),
        (r"\boxed{B \quad 12}", "B"),
        (r"\boxed{A \quad 12}", "A"),
        ("<answer>B Paris</answer>", "B"),
        ("B - Paris", "B"),
        ("B - A dog", "B"),
        ("The answer is B (C is wrong).", "B"),
        ("Answer: B - E. coli", "B"),
        ("A (hard) problem", None),
        ("The answer is a - I do not know", None),
        ("B is wrong", None),
        ("D is the midpoint", None),
        ("B - C", None),
        ('The answer is "A" or "B"', None),
        ("The answer is A (or B)", None),
        (r"\boxed{A \quad B}", None),
        ("B and" + " " * 100_000 + "1", "B"),
        ("Because of it", None),
        ("the answer is unclear", None),
        (r"\boxed{AB}", None),
        (r"\boxed{}", None),
        ("", None),
    ],
)
def test_a_choice_is_read_where_models_write_it(text: str, letter: str | None) -> None:
    judgement = judge(verifier("choice", letters="ABCD"), text)
    assert (judgement.extracted, judgement.score) == (letter, float(letter == "B"))


def test_all_letters_at_once_win_nothing() -> None:
    for text in (r"\boxed{A,B,C,D}", "A B C D", "B A C D", "<answer>A or B</answer>"):
        assert judge(verifier("choice"), text).score == 0.0


def test_golds_that_are_numbers_count_from_where_the_recipe_says() -> None:
    assert judge(verifier("choice", first=0), r"\boxed{B}", gold="1").score == 1.0
    assert judge(verifier("choice", first=1), r"\boxed{B}", gold="1").score == 0.0
    problems = [Problem("?", gold, None, None, gold) for gold in ("B", "(b)", "1", "seven", "", "K")]
    faults = [fault is None for fault in verifier("choice").check(problems)]
    assert faults == [True, True, False, False, False, False]
    assert judge(verifier("choice"), r"\boxed{B}", gold="seven").score is None


def test_a_pattern_with_a_group_called_answer_compares_it_with_the_gold() -> None:
    member = verifier("regex", pattern=r"Answer:\s*(?P<answer>\w+)")
    assert judge(member, "Answer: x Answer: B").score == 1.0  # the last one counts
    assert judge(member, "Answer: B Answer: x").reason == "different"
    assert judge(member, "Answer: b").score == 0.0
    assert judge(verifier("regex", pattern=r"(?P<answer>\w)", ignore_case=True), "b").score == 1.0
    assert judge(member, "B").reason == "no_match"
    assert judge(member, "Answer: B", gold="").score is None
    assert judge(verifier("regex", pattern=r"\d{3}"), "tel. 123", gold="").score == 1.0
    assert judge(verifier("regex", pattern="B", thinking=True), "<think>B</think> A").score == 0.0


def test_a_pattern_that_goes_astray_is_given_up_in_time() -> None:
    judgement = judge(verifier("regex", pattern=r"(a|a)*c$", timeout=0.2), "a" * 60 + "cd")  # ages, without a limit
    assert (judgement.score, judgement.reason) == (0.0, "timeout")


GOOD, BAD = True, False


@pytest.mark.parametrize(
    ("style", "text", "good"),
    [
        ("think", "<think>hm</think>7", GOOD),
        ("think", "hm</think>7", GOOD),  # the template opened it
        ("think", "<think></think>a", BAD),
        ("think", "<think> \n</think>a", BAD),
        ("think", "<think>hm</think> ", BAD),
        ("think", "<think>hm</think><think>hm</think>7", BAD),
        ("think", "<think>hm", BAD),
        ("think", "7", BAD),
        ("think_answer", "<think>hm</think>\n<answer>7</answer>\n", GOOD),
        ("think_answer", "<think>hm</think>so <answer>7</answer>", BAD),
        ("think_answer", "<think>hm</think><answer></answer>", BAD),
        ("think_answer", "<answer>7</answer>", BAD),
        ("answer_tag", "it is <answer>7</answer>", GOOD),
        ("answer_tag", "<answer>7</answer><answer>8</answer>", BAD),
        ("answer_tag", "</answer>7<answer>", BAD),
        ("boxed", r"so \boxed{7}", GOOD),
        ("boxed", r"\boxed{7} \boxed{8}", BAD),
        ("boxed", r"\boxed{}", BAD),
        ("boxed", r"\boxed{7", BAD),
    ],
)
def test_a_shape_is_paid_for_and_an_empty_one_is_not(style: str, text: str, good: bool) -> None:
    assert judge(verifier("format", style=style), text).score == float(good)


@pytest.mark.parametrize(("tokens", "score"), [(1, 0.0), (60, 0.0), (70, -0.25), (80, -0.5), (100, -1.0), (1000, -1.0)])
def test_length_is_daposs_soft_limit(tokens: int, score: float) -> None:
    from trl.rewards import get_soft_overlong_punishment

    member = verifier("length", limit=100, tolerance=40)
    assert judge(member, "", tokens=tokens).score == score
    (peer,) = get_soft_overlong_punishment(100, 40)(completion_ids=[list(range(tokens))])
    assert score == pytest.approx(peer)
    assert judge(verifier("length", limit=100), "", tokens=100).score == 0.0
    assert judge(verifier("length", limit=100), "", tokens=101).score == -1.0


def test_several_verifiers_name_the_first_fault_of_each_problem() -> None:
    rewards = [
        Reward(name="choice", weight=1.0),
        Reward(name="regex", weight=0.5, options={"pattern": "(?P<answer>x)"}),
    ]
    verifiers = build_verifiers(rewards, Circumstances(Grader(), [], False))
    faults = verifiers.check([Problem("?", gold, None, None, gold) for gold in ("A", "", "x")])
    assert [fault and (fault.check, fault.reason) for fault in faults] == [
        None,
        ("answer", "gold_is_no_choice"),
        ("answer", "gold_is_no_choice"),
    ]
    assert list(verifiers.weights) == [1.0, 0.5]


def test_the_recipe_says_from_which_score_an_answer_counts_as_right() -> None:
    strict = build_verifiers([Reward(name="length", options={"limit": 9})], Circumstances(Grader(), [], False)).main
    mild = build_verifiers(
        [Reward(name="length", pass_at=-0.5, options={"limit": 9})], Circumstances(Grader(), [], False)
    ).main
    judgement = Judgement(-0.4, "long")
    assert (strict.right(judgement), mild.right(judgement), mild.right(Judgement(None, "x"))) == (False, True, None)
