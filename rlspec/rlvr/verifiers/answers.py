"""Equality with the gold as mathematics: the verifier `math`, and `last_number`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlspec.intervals import mean_interval
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.grading import GraderPool, Verdict, preflight, read_as_one_number
from rlspec.rlvr.verifiers.places import find_answer
from rlspec.rlvr.verifiers.verifier import Attempt, Fault, Judgement, Summary, Verifier

BOX = "boxed"


@dataclass(frozen=True)
class BoxJudgement(Judgement):
    """With the number of boxes in the completion."""

    boxes: int = 0

    @classmethod
    def of(cls, verdict: Verdict) -> BoxJudgement:
        """The grader's verdict as a reward of 0 or 1."""
        score = None if verdict.correct is None else float(verdict.correct)
        return cls(score, verdict.reason, verdict.extracted, verdict.boxes)


class MathVerifier(Verifier):
    """1 if the grader accepts the answer, 0 if not, not judged where the gold cannot be read or the grader failed."""

    slow_is_a_fault = True

    def __init__(
        self,
        pool: GraderPool,
        *,
        thinking: bool,
        places: Sequence[str] = (BOX,),
        name: str = "math",
        mutations: int = 2,
    ) -> None:
        self.pool = pool
        self.thinking = thinking
        self.places = tuple(places)
        self.name = name
        self.mutations = mutations
        self._faults: dict[str, Fault | None] = {}  # by gold: many problems share theirs

    @property
    def in_a_box(self) -> bool:
        """Whether only the last box counts."""
        return self.places == (BOX,)

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        """By the grader, in its processes."""
        pairs = [(attempt.text, attempt.problem.answer) for attempt in attempts]
        if self.in_a_box:
            return [BoxJudgement.of(verdict) for verdict in self.pool.grade_many(pairs, thinking=self.thinking)]
        found = [find_answer(text, self.places, thinking=self.thinking) for text, _ in pairs]
        answers = [(answer, gold) for (answer, _), (_, gold) in zip(found, pairs, strict=True) if answer is not None]
        verdicts = iter(self.pool.grade_answers(answers))
        return [
            BoxJudgement(0.0, reason) if answer is None else BoxJudgement.of(next(verdicts)) for answer, reason in found
        ]

    def check(self, problems: Sequence[Problem]) -> list[Fault | None]:
        """Every gold is graded against itself and against mutations of it."""
        golds = list(dict.fromkeys(p.answer for p in problems if p.answer and p.answer not in self._faults))
        self._faults.update(dict.fromkeys(golds))
        for failure in preflight(golds, pool=self.pool, mutations_per_row=self.mutations).failures if golds else []:
            if self._faults[failure.gold] is None:
                self._faults[failure.gold] = Fault(failure.check, failure.reason, failure.answer)
        faults = [self._faults[p.answer] if p.answer else Fault("answer", "missing") for p in problems]
        for index, rival in self._contradicted(problems):
            faults[index] = faults[index] or Fault("other gold for the same problem", "gold_contradicted", rival)
        return faults

    def _contradicted(self, problems: Sequence[Problem]) -> list[tuple[int, str]]:
        """Problems that another row asks with another gold, while neither gold is accepted for the other's."""
        rivals = [(index, p.answer, other) for index, p in enumerate(problems) for other in p.other_golds]
        both = [pair for _, gold, other in rivals for pair in ((gold, other), (other, gold))]
        verdicts = self.pool.grade_answers(both)
        pairs = zip(rivals, verdicts[::2], verdicts[1::2], strict=True)
        return [(index, other) for (index, _, other), forth, back in pairs if not (forth.correct or back.correct)]

    def remarks(self, problems: Sequence[Problem]) -> list[str]:
        """Golds whose commas may have been meant to part two numbers."""
        joined = read_as_one_number([problem.answer for problem in problems])
        return [f"{len(joined)} golds with commas, such as {joined[0]}, are read as one number"] if joined else []

    def batch_metrics(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """How many have a box, and how many the grader failed on."""
        boxes = {"grader/box_rate": _share_with_a_box(judgements)} if self.in_a_box else {}
        return {
            **boxes,
            "grader/excluded": float(sum(judgement.score is None for judgement in judgements)),
            "grader/timeouts": float(sum(judgement.reason == "timeout" for judgement in judgements)),
        }

    def summarize(self, samples: Sequence[Sequence[Judgement]], k: Sequence[int]) -> Summary:
        """Accuracy of majority votes, and the share of answers in a box."""
        votes: dict[int, list[float]] = {}
        for size in sorted(set(k)):
            counted = [judgements for judgements in samples if sum(j.score is not None for j in judgements) >= size]
            if counted:
                votes[size] = [majority_correct(each, size) for each in samples if len(each) >= size]
        everything = [judgement for judgements in samples for judgement in judgements]
        return {
            "maj_at_k": {size: sum(values) / len(values) for size, values in votes.items()},
            "maj_at_k_ci95": {size: mean_interval(values) for size, values in votes.items()},
            **({"box_rate": _share_with_a_box(everything)} if self.in_a_box else {}),
        }

    def describe(self, summary: Summary) -> tuple[list[str], list[str]]:
        """Majority votes, and boxes."""
        rates = [
            f"maj@{k} {value:.1%} [{low:.1%}, {high:.1%}]"
            for k, value in summary["maj_at_k"].items()
            if k > 1
            for low, high in [summary["maj_at_k_ci95"][k]]
        ]
        return rates, [f"boxed {summary['box_rate']:.1%}"] if "box_rate" in summary else []

    def close(self) -> None:
        """End the grader's processes."""
        self.pool.close()


def majority_correct(judgements: Sequence[Judgement], k: int) -> float:
    """Credit of the most frequent answer among the first k; ties share it, no extracted answer at all earns 0."""
    votes = Counter(each.extracted for each in judgements[:k] if each.extracted is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = {text for text, count in votes.items() if count == most}
    right = {each.extracted for each in judgements[:k] if each.score and each.extracted in leaders}
    return len(right) / len(leaders)


def _share_with_a_box(judgements: Sequence[Judgement]) -> float:
    boxed = sum(isinstance(each, BoxJudgement) and each.boxes > 0 for each in judgements)
    return boxed / len(judgements) if judgements else 0.0
