r"""Generated arithmetic with worked solutions, and the same solutions with deliberate mistakes.

A problem is a text such as ``47+85=?``; its worked solution goes column by column from the ones and ends in a box.

=====  =======================================  ==============================================
level  problem                                  worked solution
=====  =======================================  ==============================================
1      a+b, one digit each                      ``7+5=12,\boxed{12}``
2      a+b, two digits each                     ``7+5=12,4+8+1=13,\boxed{132}``
3      a+b, three digits each                   ``7+5=12,4+8+1=13,3+2+1=6,\boxed{632}``
4      a-b, two digits each, may be negative    ``15-7=8,8-1-4=3,\boxed{-38}`` for 47-85
5      a*b, two digits times one digit (2-9)    ``7*6=42,4*6+4=28,\boxed{282}``
=====  =======================================  ==============================================
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PER_LEVEL = 10_000  # larger levels are sampled down to this many problems
PATTERN = re.compile(r"(\d+)([-+*])(\d+)=\?")
ONE, TWO, THREE = range(10), range(10, 100), range(100, 1000)
LEVELS = {
    1: ("+", ONE, ONE),
    2: ("+", TWO, TWO),
    3: ("+", THREE, THREE),
    4: ("-", TWO, TWO),
    5: ("*", TWO, range(2, 10)),
}


@dataclass(frozen=True)
class Mistakes:
    """What goes wrong in one worked solution.

    Attributes:
        drop_carry: every carry (or borrow) is forgotten.
        slip_column: column, counted from the ones, whose last digit is written wrongly; None: no slip.
        slip_by: added to that digit modulo 10, in 1..9.
        drop_box: the answer is written without its box.
    """

    drop_carry: bool = False
    slip_column: int | None = None
    slip_by: int = 1
    drop_box: bool = False


def generate(levels: Iterable[int], seed: int) -> list[tuple[str, int]]:
    """Distinct problems of the given levels, each with its level, in an order that depends on `seed`.

    A level with more than `PER_LEVEL` problems is sampled, also by `seed`.
    """
    chosen: list[tuple[str, int]] = []
    for level in sorted(set(levels)):
        operator, left, right = LEVELS[level]
        indices = range(len(left) * len(right))
        picked = random.Random(f"{seed}:{level}").sample(indices, min(PER_LEVEL, len(indices)))
        pairs = (divmod(index, len(right)) for index in picked)
        chosen += [(f"{left[row]}{operator}{right[column]}=?", level) for row, column in pairs]
    random.Random(seed).shuffle(chosen)
    return chosen


def solved(levels: Iterable[int], seed: int) -> Iterator[tuple[str, str, str, int]]:
    """Text, answer, worked solution and level of what `generate` gives."""
    return ((text, answer(text), worked_solution(text), level) for text, level in generate(levels, seed))


def operands(problem: str) -> tuple[int, str, int]:
    """Left operand, operator (``+``, ``-`` or ``*``) and right operand of a problem's text."""
    match = PATTERN.fullmatch(problem)
    if match is None:
        raise ValueError(f"not a generated arithmetic problem: {problem!r}")
    return int(match[1]), match[2], int(match[3])


def answer(problem: str) -> str:
    """The right answer, for example ``-38``."""
    left, operator, right = operands(problem)
    return str({"+": left + right, "-": left - right, "*": left * right}[operator])


def worked_solution(problem: str, mistakes: Mistakes | None = None) -> str:
    r"""Column-by-column solution that ends in ``\boxed{answer}``, right or with the given mistakes.

    A mistake is carried through as a pupil would: the answer is made of the digits that were written.
    """
    mistakes = mistakes or Mistakes()
    left, operator, right = operands(problem)
    sign = "-" if operator == "-" and left < right else ""
    digits = reversed(str(max(left, right) if sign else left))
    others = str(right) * len(str(left)) if operator == "*" else reversed(str(left if sign else right))
    columns = [(int(top), int(bottom)) for top, bottom in zip(digits, others, strict=False)]

    steps, written, carry = [], "", 0
    for index, (top, bottom) in enumerate(columns):
        last = index == len(columns) - 1
        expression, result, carried = _column(operator, top, bottom, carry, last)
        if index == mistakes.slip_column:
            result += (result + mistakes.slip_by) % 10 - result % 10
        steps.append(f"{expression}={result}")
        written = (str(result) if last else str(result % 10)) + written
        carry = 0 if mistakes.drop_carry else carried
    final = sign + str(int(written)) if int(written) else "0"
    return ",".join([*steps, final if mistakes.drop_box else rf"\boxed{{{final}}}"])


def _column(operator: str, top: int, bottom: int, carry: int, last: bool) -> tuple[str, int, int]:
    """One column: its expression, its result and what it carries (or borrows, as 1) to the next column."""
    if operator == "-":
        # Nothing is left to borrow from after the last column, and the larger number is on top.
        raised = top + 10 if top - carry < bottom and not last else top
        expression = f"{raised}-{carry}-{bottom}" if carry else f"{raised}-{bottom}"
        return expression, raised - carry - bottom, int(raised > top)
    result = (top + bottom if operator == "+" else top * bottom) + carry
    expression = f"{top}{operator}{bottom}" + (f"+{carry}" if carry else "")
    return expression, result, result // 10


def corrupt(problem: str, *, drop_carry: float, digit_slip: float, drop_box: float, rng: random.Random) -> str:
    """A worked solution with random mistakes: what the warm start imitates.

    At most one arithmetic mistake is made, so that two of them cannot cancel to a right answer.

    Args:
        problem: text of a generated problem.
        drop_carry: probability that all carries are forgotten, if the problem has any.
        digit_slip: probability of one wrong digit, if no carry was forgotten.
        drop_box: probability that the box is missing.
        rng: source of randomness; always advanced by the same number of draws.
    """
    draws = [rng.random() for _ in range(5)]
    forget = draws[0] < drop_carry and worked_solution(problem, Mistakes(drop_carry=True)) != worked_solution(problem)
    slip = draws[1] < digit_slip and not forget
    columns = worked_solution(problem).count("=")
    mistakes = Mistakes(
        drop_carry=forget,
        slip_column=int(draws[2] * columns) if slip else None,
        slip_by=1 + int(draws[3] * 9),
        drop_box=draws[4] < drop_box,
    )
    return worked_solution(problem, mistakes)
