"""What the grader answers: a verdict with a reason from a closed list. This file imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal[
    # accepted
    "exact",  # the same text after normalisation
    "rational",  # the same rational number
    "decimal",  # the same number, at least one side written as a decimal
    "tuple",  # ordered, same brackets, equal elements
    "interval",  # as tuple, with at least one square bracket
    "set",  # braces, equal elements in any order
    "list",  # bare commas, equal elements in any order
    "union",  # equal parts in any order
    "matrix",  # same shape, equal cells
    "equation",  # the same equation, or a nonzero multiple of it
    "relation",  # the same chain of inequalities
    "symbolic",  # proven equal by computer algebra
    # refused: reward 0
    "different",  # readable, and not the gold
    "unevaluated",  # the gold is a plain number, the answer is work left to do (`12+30`, `5!`, an integral)
    "unproven",  # numerically alike, but no proof of equality was found
    "unit",  # the same body with another known unit
    "unparseable",  # not readable as mathematics, and not literally the gold
    "budget",  # too large to be compared safely
    "timeout",  # the comparison was cut off after about a second of the processor's time
    "no_box",
    "empty_box",
    "unterminated_box",
    "truncated_thinking",
    # neither: the sample must be excluded, never rewarded with 0
    "gold_unparseable",  # the gold is empty or its braces do not match
    "gold_unreadable",  # the gold is prose, or more than one thing: only its very letters could win (see `preflight`)
    "gold_contradicted",  # another row has the same problem and another gold (see `preflight`)
    "grader_error",  # the grader itself failed, or a busy machine left it no time
]

ACCEPTED: frozenset[Reason] = frozenset(
    (
        "exact",
        "rational",
        "decimal",
        "tuple",
        "interval",
        "set",
        "list",
        "union",
        "matrix",
        "equation",
        "relation",
        "symbolic",
    )
)
EXCLUDED: frozenset[Reason] = frozenset(("gold_unparseable", "gold_unreadable", "gold_contradicted", "grader_error"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One graded answer.

    Attributes:
        correct: True, False, or None where no judgement was possible; a sample with None is excluded and counted,
            it never gets a reward of 0.
        reason: why, from the closed list `Reason`.
        extracted: the text that was compared with the gold, None where there was none.
        boxes: how many boxes the answer part of the completion has (0 for bare answers).
    """

    correct: bool | None
    reason: Reason
    extracted: str | None = None
    boxes: int = 0

    @classmethod
    def of(cls, reason: Reason, extracted: str | None = None, boxes: int = 0) -> Verdict:
        """The verdict that belongs to a reason."""
        correct = None if reason in EXCLUDED else reason in ACCEPTED
        return cls(correct, reason, extracted, boxes)
