"""A soft limit of length (DAPO, arXiv 2503.14476, equation 13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlspec.config.rewards import LengthOptions
from rlspec.rlvr.verifiers.verifier import Attempt, Judgement, Verifier


class LengthVerifier(Verifier):
    """0 for completions of at most limit - tolerance tokens, -1 for limit and more, a straight line between."""

    name = "length"
    passes = 0.0

    def __init__(self, options: LengthOptions) -> None:
        self.limit = options.limit
        self.tolerance = options.tolerance

    def judge(self, attempts: Sequence[Attempt], *, surroundings: Mapping[str, Any] | None = None) -> list[Judgement]:
        """By the number of tokens."""
        return [self._judge(len(attempt.tokens)) for attempt in attempts]

    def _judge(self, tokens: int) -> Judgement:
        over = tokens - (self.limit - self.tolerance)
        if over <= 0:
            return Judgement(0.0, "short")
        if over >= self.tolerance:
            return Judgement(-1.0, "too_long")
        return Judgement(-over / self.tolerance, "long")
