"""Regular expressions, and the shape of a completion."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import regex

from rlspec.config.rewards import FormatOptions, RegexOptions
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.grading.extract import THINK_CLOSE, THINK_OPEN, answer_part, extract_answer
from rlspec.rlvr.verifiers.verifier import Attempt, Fault, Judgement, Verifier

_ANSWER = "answer"  # the group that has to be the gold


class RegexVerifier(Verifier):
    """1 where the pattern matches somewhere and its group `answer`, if it has one, is the gold; the last match counts.

    A pattern that goes astray on a completion is given up in time: `timeout`, reward 0.
    """

    name = "regex"

    def __init__(self, options: RegexOptions, *, thinking: bool) -> None:
        self.pattern = regex.compile(options.pattern, regex.IGNORECASE if options.ignore_case else 0)
        self.ignore_case = options.ignore_case
        self.timeout = options.timeout
        self.thinking = thinking

    @property
    def compares(self) -> bool:
        """Whether golds are needed."""
        return _ANSWER in self.pattern.groupindex

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        """One search per completion."""
        return [self._judge(attempt) for attempt in attempts]

    def check(self, problems: Sequence[Problem]) -> list[Fault | None]:
        """Missing golds, where they are compared."""
        missing = Fault("answer", "missing")
        return [missing if self.compares and not problem.answer.strip() else None for problem in problems]

    def _judge(self, attempt: Attempt) -> Judgement:
        text = answer_part(attempt.text, thinking=self.thinking)
        if text is None:
            return Judgement(0.0, "truncated_thinking")
        try:
            matches = deque(self.pattern.finditer(text, timeout=self.timeout), maxlen=1)
        except TimeoutError:
            return Judgement(0.0, "timeout")
        if not matches:
            return Judgement(0.0, "no_match")
        last = matches[0]
        if not self.compares:
            return Judgement(1.0, "match", last[0])
        found, gold = (last[_ANSWER] or "").strip(), attempt.problem.answer.strip()
        if not gold:
            return Judgement(None, "gold_missing", found)
        same = found.casefold() == gold.casefold() if self.ignore_case else found == gold
        return Judgement(float(same), "exact" if same else "different", found)


class FormatVerifier(Verifier):
    """1 for the wanted shape, 0 for another; what is said in it does not count, but it has to say something."""

    name = "format"

    def __init__(self, options: FormatOptions) -> None:
        self.style = options.style

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        """The first thing that is wrong with each shape."""
        faults = [_SHAPES[self.style](attempt.text) for attempt in attempts]
        return [Judgement(float(fault is None), fault or "well_formed") for fault in faults]


def _think(text: str) -> str | None:
    """One thought at the beginning, and an answer behind it. A template may have opened the thought already."""
    thought, closed, answer = text.partition(THINK_CLOSE)
    if not closed:
        return "no_thought"
    thought = thought.strip().removeprefix(THINK_OPEN)
    if THINK_OPEN in thought or THINK_OPEN in answer or THINK_CLOSE in answer:
        return "several_thoughts"
    if not thought.strip():
        return "empty_thought"
    return None if answer.strip() else "no_answer"


def _answer_tag(text: str) -> str | None:
    """One `<answer>`, with something in it."""
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return "no_answer" if "<answer>" not in text else "several_answers"
    inside = text.partition("<answer>")[2].partition("</answer>")[0]
    return None if inside.strip() else "empty_answer"


def _think_answer(text: str) -> str | None:
    """A thought, then `<answer>`, and nothing beside the two."""
    if (fault := _think(text) or _answer_tag(text)) is not None:
        return fault
    rest = text.partition(THINK_CLOSE)[2].strip()
    return None if rest.startswith("<answer>") and rest.endswith("</answer>") else "text_beside"


def _boxed(text: str) -> str | None:
    found = extract_answer(text, thinking=False)
    return found.fault or ("several_boxes" if found.boxes > 1 else None)


_SHAPES = {"think": _think, "think_answer": _think_answer, "answer_tag": _answer_tag, "boxed": _boxed}
