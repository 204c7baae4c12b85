"""Proportions, pass@k and their 95% confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

_Z95 = NormalDist().inv_cdf(0.975)

Interval = tuple[float, float]


def wilson_interval(correct: int, total: int) -> Interval:
    """Wilson score interval of a proportion (95%); (0, 1) without any trial."""
    if total == 0:
        return (0.0, 1.0)
    share = correct / total
    denominator = 1 + _Z95**2 / total
    centre = share + _Z95**2 / (2 * total)
    half = _Z95 * math.sqrt(share * (1 - share) / total + _Z95**2 / (4 * total**2))
    # The ends are 0 and 1 exactly where no or every trial succeeded; rounding would leave 1e-17.
    low = 0.0 if correct == 0 else (centre - half) / denominator
    high = 1.0 if correct == total else (centre + half) / denominator
    return (low, high)


def mean_interval(values: Sequence[float]) -> Interval:
    """Normal interval (95%) of the mean of per-problem scores in [0, 1], cut to that range.

    Problems are the independent unit: several samples of one problem are averaged before, not counted as trials. Where
    all scores agree their variance says nothing, and the Wilson interval stands in.
    """
    total = len(values)
    if total < 2:
        return (0.0, 1.0)
    mean = math.fsum(values) / total
    variance = math.fsum((value - mean) ** 2 for value in values) / (total - 1)
    if variance == 0.0:
        return wilson_interval(round(mean * total), total)
    half = _Z95 * math.sqrt(variance / total)
    return (max(0.0, mean - half), min(1.0, mean + half))


# Two-sided 97.5% quantiles of Student's t by degrees of freedom; beyond 30 `_quantile` is as good.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def t_interval(values: Sequence[float]) -> Interval:
    """Student's interval (95%) of the mean of a few independent values, such as results of seeds.

    A single value says nothing about the spread: its interval is infinite.
    """
    total = len(values)
    mean = math.fsum(values) / total
    if total < 2:
        return (-math.inf, math.inf)
    variance = math.fsum((value - mean) ** 2 for value in values) / (total - 1)
    half = _quantile(total - 1) * math.sqrt(variance / total)
    return (mean - half, mean + half)


def _quantile(freedom: int) -> float:
    """Of Student's t: the table's, or the normal one's expansion in 1 / freedom (Cornish and Fisher 1937)."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = _Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples, drawn without replacement, is correct (arXiv:2107.03374, eq. 1).

    Raises:
        ValueError: k exceeds `samples`.
    """
    if k > samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {samples}")
    if samples - correct < k:
        return 1.0
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
