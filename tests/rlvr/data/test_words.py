"""Word problems are solvable, their worked solutions are true, and what is held out is not trained on."""

from __future__ import annotations

import re

import pytest

from rlspec.errors import ConfigError
from rlspec.rlvr.data.problems import extract_gold, load_problems
from rlspec.rlvr.data.words import LEVELS, PER_LEVEL, STORIES, generate

PROBLEMS = generate(LEVELS, seed=3)


def test_every_step_is_true_follows_from_the_last_and_ends_in_the_answer() -> None:
    for problem in PROBLEMS:
        *steps, box = problem.solution.split(", ")
        assert len(steps) == problem.level
        sides = [step.split("=") for step in steps]
        assert all(eval(left) == int(right) >= 1 for left, right in sides), problem  # noqa: S307
        assert all(after[0].startswith(before[1]) for before, after in zip(sides, sides[1:], strict=False)), problem
        assert extract_gold(problem.solution) == (problem.answer, True)
        assert sides[-1][1] == problem.answer and box == rf"\boxed{{{problem.answer}}}"


def test_the_text_holds_the_numbers_of_the_solution_and_no_others() -> None:
    for problem in PROBLEMS:
        first, *others = (re.split("[-+*]", step.split("=")[0]) for step in problem.solution.split(", ")[:-1])
        assert sorted(re.findall(r"\d+", problem.text)) == sorted([*first, *(right for _, right in others)]), problem
        assert "{" not in problem.text


def test_who_is_compared_with_somebody_is_somebody_else() -> None:
    pairs = [re.match(r"(\w+) has \d+ \w+\. (\w+) has \d+ fewer", problem.text) for problem in PROBLEMS]
    found = [pair.groups() for pair in pairs if pair]
    assert len(found) > 100 and all(name != other for name, other in found)


@pytest.mark.parametrize("level", LEVELS)
def test_every_story_is_told(level: int) -> None:
    chosen = [problem for problem in PROBLEMS if problem.level == level]
    assert len({problem.text for problem in chosen}) == len(chosen) == PER_LEVEL
    for texts in STORIES[level].values():
        for text in texts:
            question = re.sub(r"\\{\w+\\}", r"\\w+", re.escape(text))
            assert sum(bool(re.fullmatch(question, problem.text)) for problem in chosen) > 100, text


def test_the_seed_decides_problems_and_split_and_parts_are_disjoint() -> None:
    assert generate([1], seed=3) == [problem for problem in generate([1], seed=3)] != generate([1], seed=4)
    train, test = load_problems(name="words", seed=3)
    assert {problem.problem for problem in train + test} == {problem.text for problem in PROBLEMS}
    assert not {problem.problem for problem in train} & {problem.problem for problem in test}
    assert 0.17 < len(test) / len(PROBLEMS) < 0.23
    assert {problem.level for problem in load_problems(name="words", levels=[2])[1]} == {2}
    with pytest.raises(ConfigError, match=r"words has levels \[1, 2\], not \[3\]"):
        load_problems(name="words", levels=[3])
