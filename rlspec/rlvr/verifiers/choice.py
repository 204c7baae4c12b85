"""The letter of a multiple choice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlspec.config.rewards import ChoiceOptions
from rlspec.rlvr.data import Problem
from rlspec.rlvr.grading.extract import answer_part
from rlspec.rlvr.verifiers.places import find_answer
from rlspec.rlvr.verifiers.verifier import Attempt, Fault, Judgement, Verifier

_PLACES = ("boxed", "boxed_word", "answer_tag")
_BARE = re.compile(r"(?:\\text(?:bf)?\{)?[\s*($]*([A-Za-z])[\s*)$.:]*\}?\Z")
_SAID = re.compile(r"\b(?:answer|choice|option)\b\W*(?:is|:|=)?\W*\b([A-Za-z])\b(?!['’])", re.IGNORECASE)
_FIRST = re.compile(r"\s*[*(\[]*([A-Za-z])(?:[*)\].:,]|\s|\Z)")


class ChoiceVerifier(Verifier):
    """1 for the gold's letter, 0 for another one or none.

    The letter stands in the last box, in `<answer>`, behind the last "answer is", or is all there is but for an
    explanation behind it (`B) because ...`).
    """

    name = "choice"

    def __init__(self, options: ChoiceOptions, *, thinking: bool) -> None:
        self.letters = options.letters.upper()
        self.first = options.first
        self.thinking = thinking

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        """By the letter alone."""
        return [self._judge(attempt) for attempt in attempts]

    def check(self, problems: Sequence[Problem]) -> list[Fault | None]:
        """Golds that are no letter of those there are."""
        return [None if self._gold(p) else Fault("answer", "gold_is_no_choice", p.answer) for p in problems]

    def _judge(self, attempt: Attempt) -> Judgement:
        gold = self._gold(attempt.problem)
        if gold is None:
            return Judgement(None, "gold_is_no_choice")
        letter, reason = self._letter(attempt.text)
        if letter is None:
            return Judgement(0.0, reason)
        return Judgement(float(letter == gold), "exact" if letter == gold else "different", letter)

    def _gold(self, problem: Problem) -> str | None:
        text = problem.answer.strip()
        if self.first is None:
            match = _BARE.match(text)
            return match[1].upper() if match and match[1].upper() in self.letters else None
        place = int(text) - self.first if re.fullmatch(r"\d{1,2}", text, re.ASCII) else -1
        return self.letters[place] if 0 <= place < len(self.letters) else None

    def _letter(self, completion: str) -> tuple[str | None, str]:
        found, reason = find_answer(completion, _PLACES, thinking=self.thinking)
        if found is not None:
            match = _BARE.match(found) or _FIRST.match(found)
        elif reason == "truncated_thinking":
            return None, reason
        else:
            text = answer_part(completion, thinking=self.thinking) or ""
            said = list(_SAID.finditer(text))
            match = said[-1] if said else _FIRST.match(text)
        if match is None:
            return None, "no_answer"
        letter = match[1].upper()
        return (letter, "") if letter in self.letters else (None, "no_choice")
