"""Numbers over steps: read off rows, thinned so that a page stays small, smoothed, averaged over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlspec.reporting.reading import Row, number

MOST_POINTS = 240  # of a line; a panel is hardly wider in pixels
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A line of a panel.

    Attributes:
        label: In the legend.
        steps, values: (points,) each.
        low, high: Ends of the band around it, (points,); None: there is none.
        style: Number of its colour and dashes; lines of one label have one style in all panels.
    """

    label: str
    steps: Values
    values: Values
    low: Values | None = None
    high: Values | None = None
    style: int = 0


class StepNumbers:
    """The rows of a run by key.

    Args:
        rows: With a step each, in order.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self.keys = tuple(dict.fromkeys(key for row in rows for key in row))

    def keys_like(self, start: str, end: str) -> list[str]:
        """Keys that begin and end so, in the order in which they first come."""
        return [key for key in self.keys if key.startswith(start) and key.endswith(end)]

    def points(self, key: str) -> tuple[Values, Values]:
        """Steps and values of a key, without rows in which it is no finite number."""
        found = [(row["step"], value) for row in self._rows if (value := number(row.get(key))) is not None]
        table = np.array(found, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def over_time(self, keys: Sequence[str], most: int = 96) -> tuple[Values, Values]:
        """A heat map's values: the last step of each column, and (keys, columns) means; NaN where there is none."""
        kept = [row for row in self._rows if any(key in row for key in keys)]
        steps = np.array([row["step"] for row in kept], dtype=np.float64)
        if not len(steps):
            return steps, np.empty((len(keys), 0))
        table = np.array([[number(row.get(key)) for key in keys] for row in kept], dtype=np.float64)
        starts = buckets(len(steps), most)
        known = np.isfinite(table)
        counts = np.add.reduceat(known.astype(np.float64), starts)
        sums = np.add.reduceat(np.where(known, table, 0.0), starts)
        means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        return steps[np.append(starts[1:] - 1, len(steps) - 1)], means.T


def buckets(count: int, most: int = MOST_POINTS) -> NDArray[np.intp]:
    """Where the parts begin into which `count` points are cut: at most `most` parts of equal size or nearly so."""
    return np.unique(np.linspace(0, count, min(count, most), endpoint=False).astype(np.intp))


def thinned(label: str, steps: Values, values: Values, *, style: int = 0) -> Line:
    """A line of at most `MOST_POINTS` points, means of what lies between."""
    if len(steps) <= MOST_POINTS:
        return Line(label, steps, values, style=style)
    starts = buckets(len(steps))
    counts = np.diff(np.append(starts, len(steps)))
    return Line(label, np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts, style=style)


def smoothed(label: str, steps: Values, values: Values, *, style: int = 0) -> Line:
    """The running mean over a twentieth of the points, with the band of one standard deviation in that window."""
    window = max(1, len(values) // 20)
    mean = running_mean(values, window)
    spread = np.sqrt(np.maximum(running_mean(values**2, window) - mean**2, 0.0))
    starts = buckets(len(steps))
    low, high = np.maximum(mean - spread, values.min()), np.minimum(mean + spread, values.max())
    if window == 1:
        return Line(label, steps[starts], mean[starts], style=style)
    return Line(label, steps[starts], mean[starts], low[starts], high[starts], style)


def running_mean(values: Values, window: int) -> Values:
    """The mean of the `window` values around each, of fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def over_seeds(label: str, runs: Sequence[tuple[Values, Values]], *, style: int = 0, window: int = 1) -> Line | None:
    """The mean over runs at the steps of the one that goes farthest, with the band from the least to the greatest.

    A run counts only up to its own end.

    Args:
        label: In the legend.
        runs: Steps and values of each.
        style: Number of its colour.
        window: Points of a running mean over each run beforehand.
    """
    known = [(steps, running_mean(values, min(window, len(values)))) for steps, values in runs if len(steps)]
    if not known:
        return None
    grid = max((steps for steps, _ in known), key=lambda steps: (steps[-1], len(steps)))
    grid = grid[buckets(len(grid))]
    table = np.stack([np.interp(grid, steps, values, right=np.nan) for steps, values in known])
    mean = np.nanmean(table, axis=0)  # never of nothing: the farthest run reaches every step
    if len(known) == 1:
        return Line(label, grid, mean, style=style)
    return Line(label, grid, mean, np.nanmin(table, axis=0), np.nanmax(table, axis=0), style)
