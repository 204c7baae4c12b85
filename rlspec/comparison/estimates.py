"""What a few seeds say: means with intervals, and differences of arms by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlspec.intervals import Interval, t_interval

RESAMPLES = 10_000
ROUNDING = 1e-9  # differences of shares, which are stored with four digits, that are one number


@dataclass(frozen=True)
class Paired:
    """An arm less the baseline, over the seeds that both have."""

    n: int
    mean: float
    low: float | None  # 95%, Student's; None, as are the others: the differences are one number, not 0
    high: float | None
    p: float | None  # of a paired t-test
    p_holm: float | None  # the same, for as many arms as are compared (Holm 1979)


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


def has_spread(values: Sequence[float]) -> bool:
    """Whether they differ by more than rounding: of equal ones no interval can be estimated."""
    return len(values) > 1 and max(values) - min(values) >= ROUNDING


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """Percentile bootstrap (95%) of the mean; None for one value or equal ones. Seeded: the same values, the same ends.

    With n values it is too narrow by about sqrt(1 - 1/n): Student's stands beside it.
    """
    if not has_spread(values):
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
    arms: Mapping[str, Mapping[int, float]], baseline: str, *, planned: int = 0
) -> dict[str, Paired]:
    """Every other arm less the baseline, seed by seed, with the p-values corrected for their number.

    Args:
        arms: Name -> seed -> score.
        baseline: Name of the arm to subtract.
        planned: Arms that are going to be compared; p-values are corrected for as many at least.
    """
    ours = arms[baseline]
    found: dict[str, Paired] = {}
    for name in arms:
        shared = sorted(ours.keys() & arms[name].keys())
        if name == baseline or len(shared) < 2:
            continue
        differences = [arms[name][seed] - ours[seed] for seed in shared]
        found[name] = _paired(differences)
    tested = {name: each.p for name, each in found.items() if each.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values()), number=max(planned, len(found))), strict=True))
    return {name: replace(each, p_holm=corrected.get(name)) for name, each in found.items()}


def _paired(differences: Sequence[float]) -> Paired:
    """Not corrected. Equal differences, up to rounding, are no estimate of the spread."""
    from scipy import stats

    mean = math.fsum(differences) / len(differences)
    if not has_spread(differences):
        return Paired(len(differences), mean, None, None, None, None)
    low, high = t_interval(differences)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Paired(len(differences), mean, low, high, p, p)


def holm(values: Sequence[float], number: int = 0) -> list[float]:
    """p-values corrected for their number (Holm 1979): step-down Bonferroni, monotone, at most 1.

    Args:
        values: The p-values.
        number: Of all tests, also of those whose p-value is not known yet; at least that of `values`.
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    corrected, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (max(number, len(values)) - rank) * values[index]))
        corrected[index] = largest
    return corrected
