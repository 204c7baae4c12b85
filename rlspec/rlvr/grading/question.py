"""What the symbolic stage is asked; the comparison and computer algebra share it without knowing each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlspec.rlvr.grading.expression import Node
from rlspec.rlvr.grading.verdict import Reason


@dataclass(frozen=True, slots=True)
class Question:
    """Are two trees of checked size equal (up to a nonzero factor)?"""

    answer: Node
    gold: Node
    answer_text: str
    gold_text: str
    up_to_factor: bool = False


Prover = Callable[[Question], Reason]
"""Answers with `symbolic`, `different` or `unproven`."""
