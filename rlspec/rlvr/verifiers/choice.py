"""The letter of a multiple choice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlspec.config.rewards import ChoiceOptions
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.grading.extract import answer_part
from rlspec.rlvr.verifiers.places import find_answer
from rlspec.rlvr.verifiers.verifier import Attempt, Fault, Judgement, Verifier

_PLACES = ("boxed", "boxed_word", "answer_tag")
_DRESS = re.compile(r"\\(?:text|math)[a-z]*\s*|[{}$]")
_OPEN, _CLOSE = r"[*(\[\"'`“]*", r"[*)\]\"'`”]*"
_BARE = re.compile(r"[\s*(\"'`“]*([A-Za-z])[\s*).:\"'`”]*\Z")
# Behind a letter: what ends it, and what says that it is not the answer, or one of several.
_SPACE = r"\\(?:quad|[ ,;])"
_END = (
    rf"(?=[*)\]]|[\"'`”](?!\w)|\s*(?:[,:;!?\n]|{_SPACE}|\.(?!\w)|\Z)|\s+(?:because|since|as|which)\b"
    r"|(?<=[A-Z])\s+(?:[-–—=]|\([^()\n]{1,200}\)\s*(?:[.,;\n]|\Z)))"
)
_WRONG = r"(?!\s+(?:(?:is|was)\s+(?:not|wrong|incorrect|false)\b|isn|wasn|cannot|can['’]))"
_JOINT = r"(?:\s*[,/&;~]~?|\s+\(?(?:n?or|and)\b)\s*(?:(?:or|and)\s+)?(?:(?:option|choice)\s+)?"
_BESIDE = rf"(?:[^\S\n]|[-–—(=]|{_SPACE})+[A-HJ]\b(?!\.?[^\S\n]+[a-z])"
_MORE = rf"(?!{_CLOSE}{_JOINT}{_OPEN}(?:[A-HJ-Z]\b|[a-z]\))|{_BESIDE}|[)\]]\s*[(\[][A-HJ-Z][)\]])"
_LETTER = rf"\b([A-Za-z])\b(?:(?<=[B-HJ-Z])(?!['’+^-])|{_END}){_WRONG}{_MORE}"  # lone `A`, `I`, `a` may be words
_GAP = r"[^\w.,;!?]{0,9}"
_NO = r"(?<!not )(?<!not the )(?<!neither )(?<!than )"
_NOUN = r"\b(?:answer|choice|option)\b"
_IS = r"(?:(?:is|(?:must|should|has to) be)(?:\s+(?:therefore|thus|then|clearly|definitely))?)?"
_SAID = re.compile(rf"(?i:{_NO}{_NOUN}{_GAP}{_IS}(?:\s+the\s+letter)?){_GAP}{_LETTER}")
_FIRST = re.compile(rf"\s*{_OPEN}([A-Za-z])\b(?:(?<=[B-HJ-Z])(?=\s+(?!(?:is|are)\b))|{_END}){_WRONG}{_MORE}")


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
            match = _BARE.match(_DRESS.sub("", text))
            return match[1].upper() if match and match[1].upper() in self.letters else None
        place = int(text) - self.first if re.fullmatch(r"\d{1,2}", text, re.ASCII) else -1
        return self.letters[place] if 0 <= place < len(self.letters) else None

    def _letter(self, completion: str) -> tuple[str | None, str]:
        found, reason = find_answer(completion, _PLACES, thinking=self.thinking)
        if reason == "truncated_thinking":
            return None, reason
        text = _DRESS.sub("", (answer_part(completion, thinking=self.thinking) or "") if found is None else found)
        said = list(_SAID.finditer(text))
        match = said[-1] if said else _BARE.match(text) or _FIRST.match(text)
        if match is None:
            return None, "no_answer"
        letter = match[1].upper()
        return (letter, "") if letter in self.letters else (None, "no_choice")
