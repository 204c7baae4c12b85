"""The reward of a completion: 1 if the grader accepts its final answer, 0 if not, None if it could not judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rlspec.errors import UserError
from rlspec.rlvr.grading.pool import GraderPool

# So many batches in a row with many timeouts say something about the policy or the machine, not about single answers.
_MAX_BAD_BATCHES = 3


class MathReward:
    """TRL reward function that grades the last box of each completion against the column `answer`.

    None marks a sample that the grader failed on: TRL leaves it out of its group's baseline and gives it advantage 0.
    """

    __name__ = "math"  # TRL names the metric after the function

    def __init__(self, pool: GraderPool, *, thinking: bool = False) -> None:
        self.pool = pool
        self.thinking = thinking
        self._bad_batches = 0

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        answer: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """Rewards in the order of `completions` (conversational or plain text).

        Raises:
            UserError: More than 5% of the verdicts timed out in three batches in a row.
        """
        texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
        verdicts = self.pool.grade_many(list(zip(texts, answer, strict=True)), thinking=self.thinking)
        reasons = Counter(verdict.reason for verdict in verdicts)
        self._check_timeouts()
        if log_metric is not None:
            log_metric("grader/box_rate", sum(verdict.boxes > 0 for verdict in verdicts) / len(verdicts))
            log_metric("grader/excluded", float(sum(verdict.correct is None for verdict in verdicts)))
            log_metric("grader/timeouts", float(reasons["timeout"]))
        return [None if verdict.correct is None else float(verdict.correct) for verdict in verdicts]

    def _check_timeouts(self) -> None:
        self._bad_batches = self._bad_batches + 1 if self.pool.tripped else 0
        if self._bad_batches >= _MAX_BAD_BATCHES:
            raise UserError(
                f"grader: {self.pool.timeout_share:.0%} of the answers timed out, {_MAX_BAD_BATCHES} batches in a row; "
                "the machine is overloaded (lower grader.workers) or the policy writes answers that cannot be checked"
            )
