"""The seam: a verifier judges attempts in batches, and looks at a data set before training.

Training, evaluation and preflight know nothing else of a reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlspec.rlvr.data.problems import Problem

Message = Mapping[str, Any]
Summary = dict[str, Any]  # what a verifier adds to an evaluation's metrics, as JSON


@dataclass(frozen=True)
class Attempt:
    """One completion of one problem.

    Attributes:
        problem: what was asked, with its gold and the row's other columns.
        text: what the model wrote last.
        tokens: ids of the completion.
        prompt: the messages that asked.
        completion: all messages of the completion; those of tools are among them.
        environment: in which it was given, where the recipe has one.
    """

    problem: Problem
    text: str
    tokens: Sequence[int] = ()
    prompt: Sequence[Message] = ()
    completion: Sequence[Message] = ()
    environment: Any = None

    @property
    def messages(self) -> Sequence[Message]:
        """The completion as messages, whatever it came as."""
        return self.completion or [{"role": "assistant", "content": self.text}]


@dataclass(frozen=True)
class Judgement:
    """What one attempt is worth.

    Attributes:
        score: None where no judgement was possible: the attempt is left out of its group and never gets a 0 for it.
        reason: a short code, the same for the same case, that is counted and written down.
        extracted: what was judged, where that is less than the whole.
    """

    score: float | None
    reason: str
    extracted: str | None = None


@dataclass(frozen=True)
class Fault:
    """Why a problem cannot be trained on.

    Attributes:
        check: what failed.
        reason: a code.
        tried: the answer for which it failed, where there was one.
    """

    check: str
    reason: str
    tried: str = ""


class Verifier:
    """What every verifier has; one of them overrides `judge` and, where it can, the rest.

    Attributes:
        name: as in the recipe; metrics are named after it.
        passes: score from which an evaluation counts an attempt as right.
        slow_is_a_fault: many timeouts say something about the machine or the data, and not about single attempts.
    """

    name: str
    passes: float = 1.0
    slow_is_a_fault = False

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        """One judgement per attempt, in order.

        Args:
            attempts: of any problems.
            surroundings: what TRL hands a reward function beside them (`trainer_state`, `log_metric`, ...); None
                outside of training.
        """
        raise NotImplementedError

    def check(self, problems: Sequence[Problem]) -> list[Fault | None]:
        """What is wrong with each problem, in order; None: nothing."""
        return [None] * len(problems)

    def remarks(self, problems: Sequence[Problem]) -> list[str]:
        """What a user should know of problems that passed, a line each."""
        return []

    def batch_metrics(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """Numbers of a training batch to log, beside mean and spread."""
        return {}

    def summarize(self, samples: Sequence[Sequence[Judgement]], k: Sequence[int]) -> Summary:
        """What an evaluation says beside accuracy. `samples` holds the sampled attempts of each problem."""
        return {}

    def describe(self, summary: Summary) -> tuple[list[str], list[str]]:
        """`summarize` for the terminal: rates with their intervals, and phrases on how the answers look."""
        return [], []

    def right(self, judgement: Judgement) -> bool | None:
        """Whether an evaluation counts it as right; None: not judged."""
        return None if judgement.score is None else judgement.score >= self.passes

    def close(self) -> None:
        """End its processes."""


@dataclass(frozen=True)
class Verifiers:
    """Those of a run, in the recipe's order; the first decides what an evaluation calls right."""

    members: Sequence[Verifier]
    weights: Sequence[float] = field(default_factory=list)

    @property
    def main(self) -> Verifier:
        """By which an evaluation goes."""
        return self.members[0]

    def check(self, problems: Sequence[Problem]) -> list[Fault | None]:
        """The first fault that any member finds in each problem."""
        found = [member.check(problems) for member in self.members]
        return [next((fault for fault in faults if fault), None) for faults in zip(*found, strict=True)]

    def judge(self, attempts: Sequence[Attempt]) -> tuple[list[float], list[bool]]:
        """The weighted sum of all members' scores, one that could not judge adds nothing; and what the first passes."""
        judged = [member.judge(attempts) for member in self.members]
        totals = [
            sum(weight * (each.score or 0.0) for weight, each in zip(self.weights, found, strict=True))
            for found in zip(*judged, strict=True)
        ]
        return totals, [each.score is not None and each.score >= self.main.passes for each in judged[0]]

    def remarks(self, problems: Sequence[Problem]) -> list[str]:
        """Of all members."""
        return [line for member in self.members for line in member.remarks(problems)]

    def close(self) -> None:
        """End the processes of all members."""
        for member in self.members:
            member.close()
