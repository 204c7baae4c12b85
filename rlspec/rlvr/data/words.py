r"""Generated word problems with one or two steps of arithmetic, and their worked solutions.

=====  =========================================================  ============================
level  problem                                                    worked solution
=====  =========================================================  ============================
1      Ana has 12 apples and buys 7 more. How many apples ...?    ``12+7=19, \boxed{19}``
2      Ana buys 3 boxes of 8 pens and gives away 5. How many ...?  ``3*8=24, 24-5=19, \boxed{19}``
=====  =========================================================  ============================

A story says which operations it takes; its numbers are drawn so that every intermediate result is a positive integer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

PER_LEVEL = 4_000  # distinct problems
NAMES = (
    "Ana",
    "Ben",
    "Chen",
    "Dana",
    "Eli",
    "Fatima",
    "Goran",
    "Hana",
    "Ivan",
    "Jun",
    "Kim",
    "Lena",
    "Mia",
    "Noor",
    "Omar",
    "Pia",
)
THINGS = ("apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pens", "shells", "stamps", "stickers")

# By level: operators in the order of the steps, and the stories that take them. {a} is the first number, {b} and {c}
# the further ones.
STORIES: dict[int, dict[str, tuple[str, ...]]] = {
    1: {
        "+": (
            "{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?",
            "There are {a} {thing} on the table and {b} {thing} on the shelf. How many {thing} are there in all?",
            "{name} found {a} {thing} on Monday and {b} on Tuesday. How many {thing} did {name} find altogether?",
        ),
        "-": (
            "{name} had {a} {thing} and gave {b} of them to a friend. How many {thing} does {name} have left?",
            "A shop had {a} {thing} and sold {b}. How many {thing} are left?",
            "{name} has {a} {thing}. {other} has {b} fewer. How many {thing} does {other} have?",
        ),
        "*": (
            "{name} has {a} bags with {b} {thing} in each bag. How many {thing} does {name} have?",
            "One box holds {b} {thing}. How many {thing} do {a} boxes hold?",
            "Every day {name} collects {b} {thing}. How many {thing} does {name} collect in {a} days?",
        ),
    },
    2: {
        "+-": (
            "{name} has {a} {thing}, buys {b} more and then gives {c} away. How many {thing} does {name} have now?",
            "There were {a} {thing} in a shop. {b} {thing} came in and {c} were sold. How many {thing} are left?",
        ),
        "-+": (
            "{name} had {a} {thing}, lost {b} of them and found {c} new ones. How many {thing} does {name} have now?",
            "{name} had {a} {thing} and sold {b}. {other} then gave {name} {c}. How many {thing} does {name} have?",
        ),
        "*+": (
            "{name} buys {a} boxes of {b} {thing} and already has {c} {thing}. How many {thing} does {name} have?",
            "A shelf has {a} rows of {b} {thing}, and {c} {thing} lie on the floor. How many {thing} are there in all?",
        ),
        "*-": (
            "{name} buys {a} boxes of {b} {thing} and gives {c} {thing} away. How many {thing} are left?",
            "{name} packs {a} bags with {b} {thing} each. Then {c} {thing} break. How many whole {thing} are left?",
        ),
    },
}
LEVELS = tuple(STORIES)


class WordProblem(NamedTuple):
    """A problem's text, its answer, a worked solution and its level."""

    text: str
    answer: str
    solution: str
    level: int


def generate(levels: Iterable[int], seed: int) -> list[WordProblem]:
    """`PER_LEVEL` distinct problems of each level, in an order that depends on `seed`."""
    chosen: list[WordProblem] = []
    for level in sorted(set(levels)):
        rng = random.Random(f"{seed}:{level}")
        found: dict[str, WordProblem] = {}
        while len(found) < PER_LEVEL:
            problem = _draw(level, rng)
            found.setdefault(problem.text, problem)
        chosen += found.values()
    random.Random(seed).shuffle(chosen)
    return chosen


def _draw(level: int, rng: random.Random) -> WordProblem:
    operators = rng.choice(list(STORIES[level]))
    numbers, steps, value = _numbers(operators, rng)
    name, other = rng.sample(NAMES, 2)
    text = rng.choice(STORIES[level][operators]).format(
        name=name, other=other, thing=rng.choice(THINGS), **dict(zip("abc", numbers, strict=False))
    )
    return WordProblem(text, str(value), ", ".join([*steps, rf"\boxed{{{value}}}"]), level)


def _numbers(operators: str, rng: random.Random) -> tuple[list[int], list[str], int]:
    """The numbers of a story, its steps such as ``12+7=19``, and the last step's result."""
    value = rng.randint(2, 9) if operators[0] == "*" else rng.randint(11, 60)
    numbers, steps = [value], []
    for operator in operators:
        low, high = {"+": (3, 40), "-": (2, value - 1), "*": (2, 12)}[operator]
        number = rng.randint(low, high)
        result = {"+": value + number, "-": value - number, "*": value * number}[operator]
        steps.append(f"{value}{operator}{number}={result}")
        numbers.append(number)
        value = result
    return numbers, steps, value
