"""An environment that judges by itself what was done in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlspec.rlvr.verifiers.foreign import finished, judgement_of, named
from rlspec.rlvr.verifiers.verifier import Attempt, Judgement, Verifier


class EnvironmentVerifier(Verifier):
    """Asks `get_reward()` of the environment that an answer was given in; where that says nothing: not judged."""

    name = "environment"

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        """What each environment says."""
        return [self._judge(attempt.environment) for attempt in attempts]

    def _judge(self, environment: Any) -> Judgement:
        who = f"environment {type(environment).__name__}"
        with named(who):
            score = finished(environment.get_reward()) if hasattr(environment, "get_reward") else None
        return judgement_of(score, who)
