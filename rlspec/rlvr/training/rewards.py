"""From judgements to rewards: each verifier of a run as a reward function of TRL's."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from rlspec.errors import UserError
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.sampling.conversation import last_words
from rlspec.rlvr.verifiers.verifier import Attempt, Judgement, Verifier

# So many batches in a row with many timeouts say something about the policy or the machine, not about single answers.
_MAX_BAD_BATCHES = 3
_TIMEOUT_SHARE = 0.05
_FROM_TRL = ("trainer_state", "log_extra", "log_metric", "environments")
_REMEMBERED = 50  # batches whose reasons are kept, to say why nothing is learnt


class VerifierReward:
    """One verifier's scores as rewards. TRL logs their mean and spread under its name.

    None marks an attempt that could not be judged: TRL leaves it out of its group's baseline and gives it advantage 0.
    """

    def __init__(self, verifier: Verifier, problems: Sequence[Problem]) -> None:
        self.__name__ = verifier.name  # TRL names metrics after the function
        self.verifier = verifier
        self.problems = {problem.id: problem for problem in problems}
        self.recent: deque[Counter[str]] = deque(maxlen=_REMEMBERED)  # reasons of the last batches
        self.recent_scores: deque[set[float]] = deque(maxlen=_REMEMBERED)
        self._bad_batches = 0

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        rlspec_id: Sequence[str],
        **surroundings: Any,
    ) -> list[float | None]:
        """Rewards in the order of `completions` (conversational or plain text); `rlspec_id` is the column of problems.

        Raises:
            UserError: More than 5% of the judgements timed out in three batches in a row.
        """
        tokens = completion_ids or [()] * len(completions)
        environments = surroundings.get("environments") or [None] * len(completions)
        attempts = [
            Attempt(self.problems[which], last_words(completion), ids, prompt, _messages(completion), environment)
            for which, completion, ids, prompt, environment in zip(
                rlspec_id, completions, tokens, prompts, environments, strict=True
            )
        ]
        trl = {name: surroundings[name] for name in _FROM_TRL if name in surroundings}  # and not the data's columns
        judgements = self.verifier.judge(attempts, surroundings=trl)
        self.recent.append(Counter(judgement.reason for judgement in judgements))
        self.recent_scores.append({judgement.score for judgement in judgements if judgement.score is not None})
        self._check_timeouts(judgements)
        if (log_metric := surroundings.get("log_metric")) is not None:
            for name, value in self.verifier.batch_metrics(judgements).items():
                log_metric(name, value)
        return [judgement.score for judgement in judgements]

    def _check_timeouts(self, judgements: Sequence[Judgement]) -> None:
        share = sum(judgement.reason == "timeout" for judgement in judgements) / len(judgements)
        self._bad_batches = self._bad_batches + 1 if self.verifier.slow_is_a_fault and share > _TIMEOUT_SHARE else 0
        if self._bad_batches >= _MAX_BAD_BATCHES:
            raise UserError(
                f"grader: {share:.0%} of the answers timed out, {_MAX_BAD_BATCHES} batches in a row; "
                "the machine is overloaded (lower grader.workers) or the policy writes answers that cannot be checked"
            )


def _messages(completion: str | Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return () if isinstance(completion, str) else completion
