"""What a few seeds say: means with intervals, and differences of arms by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlspec.intervals import Interval, t_interval

RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """An arm less the baseline, over the seeds that both have."""

    n: int
    mean: float
    low: float  # 95%, Student's
    high: float
    p: float  # of a paired t-test
    p_holm: float  # the same, for as many arms as are compared (Holm 1979)


@dataclass(frozen=True)
class Estimate:
    """Of an arm's scores."""

    n: int
    mean: float
    low: float | None  # 95%, bootstrap over seeds; None: one seed
    high: float | None
    student: Interval | None  # 95%, wider than the bootstrap's where seeds are few
    collapsed: float  # share of runs
    paired: Paired | None

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """Percentile bootstrap (95%) of the mean; None for fewer than two values. Seeded: the same values, the same ends.

    With n values it is too narrow by about sqrt(1 - 1/n): Student's stands beside it.
    """
    if len(values) < 2:
        return None
    import numpy

    draws = numpy.random.default_rng(0).choice(numpy.asarray(values), size=(RESAMPLES, len(values)))
    low, high = numpy.quantile(draws.mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def estimate(scores: Sequence[float], collapsed: float, paired: Paired | None = None) -> Estimate | None:
    """Of the scores of an arm's runs; None without any."""
    if not scores:
        return None
    ends = bootstrap_interval(scores)
    low, high = ends or (None, None)
    student = t_interval(scores) if ends else None
    return Estimate(len(scores), math.fsum(scores) / len(scores), low, high, student, collapsed, paired)


def paired_differences(
    arms: Mapping[str, Mapping[int, float]], baseline: str, *, of: Sequence[str] = ()
) -> dict[str, Paired]:
    """Every other arm less the baseline, seed by seed, with the p-values corrected for their number.

    Args:
        arms: Name -> seed -> score.
        baseline: Name of the arm to subtract.
        of: Arms that are compared; empty: all.
    """
    from scipy import stats

    ours = arms[baseline]
    found: dict[str, Paired] = {}
    for name in of or arms:
        shared = sorted(ours.keys() & arms[name].keys())
        if name == baseline or len(shared) < 2:
            continue
        differences = [arms[name][seed] - ours[seed] for seed in shared]
        low, high = t_interval(differences)
        if len(set(differences)) == 1:  # no spread: the test divides by zero
            p = 1.0 if differences[0] == 0 else 0.0
        else:
            p = float(stats.ttest_1samp(differences, 0.0).pvalue)
        found[name] = Paired(len(shared), math.fsum(differences) / len(shared), low, high, p, p)
    return {
        name: Paired(each.n, each.mean, each.low, each.high, each.p, corrected)
        for (name, each), corrected in zip(found.items(), holm([each.p for each in found.values()]), strict=True)
    }


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): step-down Bonferroni, monotone, at most 1."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    corrected, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected
