"""Worked solutions are right, and corrupted ones are wrong in the stated way and consistent with themselves."""

from __future__ import annotations

import random
import re

import pytest

from rlspec.rlvr.data.arithmetic import LEVELS, Mistakes, answer, corrupt, generate, operands, worked_solution
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer

PROBLEMS = {level: [problem for problem, _ in generate([level], seed=3)][:1500] for level in LEVELS}
BOX = re.compile(r"\\boxed\{(-?\d+)\}$")


def steps_and_answer(solution: str) -> tuple[list[tuple[str, int]], int]:
    *steps, final = solution.split(",")
    box = BOX.search(final)
    pairs = [step.split("=") for step in steps]
    return [(expression, int(result)) for expression, result in pairs], int(box[1] if box else final)


def digits_written(solution: str, problem: str) -> int:
    """The number that the steps' results spell, ones first."""
    steps, _ = steps_and_answer(solution)
    *lower, top = [result for _, result in steps]
    value = int(str(top) + "".join(str(result % 10) for result in reversed(lower)))
    left, operator, right = operands(problem)
    return -value if operator == "-" and left < right else value


@pytest.mark.parametrize(
    ("problem", "solution"),
    [
        ("7+5=?", r"7+5=12,\boxed{12}"),
        ("47+85=?", r"7+5=12,4+8+1=13,\boxed{132}"),
        ("347+285=?", r"7+5=12,4+8+1=13,3+2+1=6,\boxed{632}"),
        ("47-85=?", r"15-7=8,8-1-4=3,\boxed{-38}"),
        ("50-50=?", r"0-0=0,5-5=0,\boxed{0}"),
        ("47*6=?", r"7*6=42,4*6+4=28,\boxed{282}"),
    ],
)
def test_worked_examples_of_the_table(problem: str, solution: str) -> None:
    assert worked_solution(problem) == solution


@pytest.mark.parametrize("level", LEVELS)
def test_every_step_of_a_worked_solution_is_true_and_the_answer_right(level: int) -> None:
    for problem in PROBLEMS[level]:
        solution = worked_solution(problem)
        steps, final = steps_and_answer(solution)
        assert all(eval(expression) == result for expression, result in steps)  # noqa: S307
        assert final == eval(problem.removesuffix("=?")) == int(answer(problem)) == digits_written(solution, problem)


@pytest.mark.parametrize("level", LEVELS)
def test_a_dropped_carry_gives_a_wrong_answer_that_follows_from_true_steps(level: int) -> None:
    affected = 0
    for problem in PROBLEMS[level]:
        solution = worked_solution(problem, Mistakes(drop_carry=True))
        if solution == worked_solution(problem):
            continue
        affected += 1
        steps, final = steps_and_answer(solution)
        assert all(eval(expression) == result for expression, result in steps)  # noqa: S307
        assert final == digits_written(solution, problem) != int(answer(problem))
    assert affected > (0.3 * len(PROBLEMS[level]) if level > 1 else -1)


@pytest.mark.parametrize("level", LEVELS)
def test_a_slip_is_one_false_step_and_a_wrong_answer(level: int) -> None:
    rng = random.Random(0)
    for problem in PROBLEMS[level]:
        columns = worked_solution(problem).count("=")
        slip = Mistakes(slip_column=rng.randrange(columns), slip_by=rng.randint(1, 9))
        solution = worked_solution(problem, slip)
        steps, final = steps_and_answer(solution)
        assert [eval(expression) == result for expression, result in steps].count(False) == 1  # noqa: S307
        assert final == digits_written(solution, problem) != int(answer(problem))


def test_without_probability_nothing_is_corrupted() -> None:
    rng = random.Random(0)
    for problem in PROBLEMS[3]:
        assert corrupt(problem, drop_carry=0, digit_slip=0, drop_box=0, rng=rng) == worked_solution(problem)


def test_corruption_rates_are_those_asked_for() -> None:
    rng = random.Random(0)
    carrying = [p for p in PROBLEMS[2] if worked_solution(p, Mistakes(drop_carry=True)) != worked_solution(p)]
    plain = [p for p in PROBLEMS[2] if p not in set(carrying)]
    rates = {"drop_carry": 0.6, "digit_slip": 0.2, "drop_box": 0.3}

    def right(problem: str) -> tuple[bool, bool]:
        solution = corrupt(problem, **rates, rng=rng)
        return steps_and_answer(solution)[1] == int(answer(problem)), "boxed" in solution

    for problems, expected in ((carrying, 0.4 * 0.8), (plain, 0.8)):
        verdicts = [right(problem) for problem in problems for _ in range(6)]
        assert sum(correct for correct, _ in verdicts) / len(verdicts) == pytest.approx(expected, abs=0.03)
        assert sum(boxed for _, boxed in verdicts) / len(verdicts) == pytest.approx(0.7, abs=0.03)


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert generate([1, 2, 3], seed=5) == generate([3, 1, 2, 2], seed=5)
    assert generate([3], seed=5) != generate([3], seed=6)
    assert set(generate([2], seed=5)) == set(generate([2], seed=6))


def test_problems_are_distinct_and_of_their_level() -> None:
    problems = generate(LEVELS, seed=0)
    assert len({problem for problem, _ in problems}) == len(problems) == 100 + 8100 + 10_000 + 8100 + 720
    for problem, level in problems:
        left, operator, right = operands(problem)
        assert (operator, left in LEVELS[level][1], right in LEVELS[level][2]) == (LEVELS[level][0], True, True)


@pytest.mark.parametrize("level", LEVELS)
def test_solutions_fit_into_forty_new_tokens(level: int) -> None:
    tokenizer = build_byte_tokenizer()
    lengths = [len(tokenizer(worked_solution(problem) + "<|im_end|>")["input_ids"]) for problem in PROBLEMS[level]]
    assert max(lengths) <= 36


def test_a_foreign_text_is_refused() -> None:
    with pytest.raises(ValueError, match="How much"):
        operands("How much is 1+1=?")
