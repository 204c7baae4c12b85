"""The choice of an arm's learning rate from scores of its tuning runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlspec.comparison.plan import Tune

Score = float | None  # None: the run failed, or measured nothing
FLAT = 0.05  # of the best score: rates that lie closer together choose by chance


@dataclass(frozen=True)
class Tuned:
    """What was tried and what won."""

    scores: Mapping[float, float]  # rate -> mean over the tuning seeds; minus infinity where a run failed
    best: float | None  # None: every run failed
    edge: str | None  # the best rate is the lowest or the highest that was tried: on which side

    @property
    def flat(self) -> bool:
        """Three rates or more score alike: nothing says that the best one lies among them."""
        found = [score for score in self.scores.values() if math.isfinite(score)]
        return len(found) >= 3 and max(found) - min(found) <= FLAT * max(map(abs, found))


def tune(settings: Tune, arm: str, run: Callable[[Sequence[float]], Mapping[float, Sequence[Score]]]) -> Tuned:
    """Try an arm's rates; where a grid's best one lies at an end, go on beyond it by its factor, as often as allowed.

    A range is not left.

    Args:
        settings: Grid or range, and how often it may be extended.
        arm: Whose rates.
        run: Trains at some rates; returns the scores over the tuning seeds of each.
    """
    scores = {rate: _mean(values) for rate, values in run(settings.rates(arm)).items()}
    for _ in range(settings.extend if settings.range is None else 0):
        edge = _edge(scores)
        if edge is None:
            break
        rate = _beyond(sorted(scores), edge)
        scores |= {rate: _mean(values) for rate, values in run([rate]).items()}
    best = _best(scores)
    return Tuned(dict(sorted(scores.items())), best, _edge(scores))


def _mean(values: Sequence[Score]) -> float:
    """A rate with a failed run, or with a score that is no number, loses to every other."""
    present = [value for value in values if value is not None and not math.isnan(value)]
    return sum(present) / len(present) if len(present) == len(values) else float("-inf")


def _best(scores: Mapping[float, float]) -> float | None:
    """Of rates that score equally the middle one, of two the lower: where all do alike, an end of them is no edge."""
    highest = max(scores.values())
    alike = sorted(rate for rate, score in scores.items() if score == highest)
    return None if highest == float("-inf") else alike[(len(alike) - 1) // 2]


def _edge(scores: Mapping[float, float]) -> str | None:
    best = _best(scores)
    return {min(scores): "lowest", max(scores): "highest"}.get(best) if best is not None else None


def _beyond(rates: Sequence[float], edge: str) -> float:
    """The next rate in a grid that goes on: by the factor between its last two."""
    last, before = (rates[0], rates[1]) if edge == "lowest" else (rates[-1], rates[-2])
    return float(f"{last * last / before:.2g}")
