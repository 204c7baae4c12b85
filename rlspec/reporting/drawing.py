"""Figures as SVG inside of a page: matplotlib draws, the page's style sheet colours.

Colours are written as placeholders, which become CSS variables: one drawing fits a light page, a dark one and paper.
Text stays text, so that it can be searched, and read aloud.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter, PercentFormatter

from rlspec.reporting.series import Line, Values
from rlspec.reporting.text import clean

COLOURS = 10
DASHES = ("solid", "dashed", "dotted")  # names of CSS and of matplotlib alike
_WIDTH = 4.4  # inches of a panel, which a phone shows at about its size
_WIDE = 5.2  # where two stand side by side
_INK, _AXIS, _GRID = "#0a0a01", "#0a0a02", "#0a0a03"
_VARIABLES = {_INK: "var(--ink)", _AXIS: "var(--axis)", _GRID: "var(--grid)"}
_VARIABLES |= {f"#0a0b{number:02d}": f"var(--s{number})" for number in range(COLOURS)}
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _AXIS,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "text.color": _INK,
    "xtick.color": _AXIS,
    "xtick.labelcolor": _INK,
    "ytick.color": _AXIS,
    "ytick.labelcolor": _INK,
}
_numbers = itertools.count(1)  # of figures: identifiers are unique in a page


@dataclass(frozen=True)
class Chart:
    """A drawn figure.

    Attributes:
        title: Of the figure.
        svg: The drawing.
        caption: What else has to be said of it.
        table: Header and rows of its numbers, for those who cannot see it.
        legend: (label, number of the style) of each line, where the figure does not share the legend of its section.
    """

    title: str
    svg: Markup
    caption: str = ""
    table: list[list[str]] = field(default_factory=list)
    legend: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class ScoreRow:
    """A row of a plot of scores: a mean, its interval, and the single values."""

    label: str
    mean: float | None
    low: float | None
    high: float | None
    values: Sequence[float]


def colour(style: int) -> str:
    """The placeholder of a line's colour."""
    return f"#0a0b{style % COLOURS:02d}"


def dash(style: int) -> str:
    """How a line is dashed: the second ten lines are told apart from the first."""
    return DASHES[style // COLOURS % len(DASHES)]


def draw_lines(
    title: str,
    lines: Sequence[Line],
    *,
    log: bool = False,
    percent: bool = False,
    log_x: bool = False,
    along: str = "optimizer step",
    about: str = "",
    own_legend: bool = False,
) -> Chart | None:
    """Lines over steps, with their bands; None where no line has two points.

    Args:
        title: Of the figure.
        lines: Those without a point are left out.
        log: The values' axis is logarithmic, where a value is above zero.
        percent: Values are shares.
        log_x: The other axis is logarithmic.
        along: What it holds.
        about: The caption.
        own_legend: It does not share the legend of its section.
    """
    kept = [line for line in lines if len(line.steps)]
    if not any(len(line.steps) > 1 for line in kept):
        return None
    with _panel() as (figure, axes):
        for line in kept:
            _draw_line(axes, line)
        _scale_values(axes, kept, log=log, percent=percent)
        _scale_steps(axes, kept, log=log_x)
        axes.set_xlabel(along)
        form = _percent if percent else _short
        table = [["", "first", "least", "greatest", "last"]]
        table += [[line.label, *map(form, _ends(line.values))] for line in kept]
        legend = [(line.label, line.style) for line in kept] if own_legend and len(kept) > 1 else []
        return Chart(title, _markup(figure, title, table), about, table, legend=legend)


def _scale_values(axes: Axes, lines: Sequence[Line], *, log: bool, percent: bool) -> None:
    if log and any((line.values > 0).any() for line in lines):
        axes.set_yscale("log", nonpositive="mask")
        _label_powers(axes.yaxis)
    elif percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(max(high, 0.1), 1.02))


def _scale_steps(axes: Axes, lines: Sequence[Line], *, log: bool) -> None:
    if not log:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return
    axes.set_xscale("log")
    _label_powers(axes.xaxis)
    places = np.unique(np.concatenate([line.steps for line in lines]))
    if len(places) <= 8:  # each of them can be read
        axes.set_xticks(places, _labels_apart(places))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _labels_apart(places: Values) -> list[str]:
    """A number for each place on a logarithmic axis, empty where it would be printed over the one before."""
    labels, last, least = [], -math.inf, 0.12 * math.log(places[-1] / places[0])
    for place in places:
        near = math.log(place) - last < least
        labels.append("" if near else f"{place:g}")
        last = last if near else math.log(place)
    return labels


def _label_powers(axis: Axis) -> None:
    """Plain numbers, also between powers of ten where the axis spans few of them."""
    axis.set_major_formatter(_PlainPowers())
    axis.set_minor_formatter(_PlainPowers(minor_thresholds=(1.2, 0.5)))


class _PlainPowers(LogFormatter):
    def _num_to_string(self, x: float, vmin: float, vmax: float) -> str:
        return f"{x:.3g}"


def _ends(values: Values) -> tuple[float, float, float, float]:
    return float(values[0]), float(values.min()), float(values.max()), float(values[-1])


def _draw_line(axes: Axes, line: Line) -> None:
    marker = "o" if len(line.steps) < 12 else None
    axes.plot(
        line.steps,
        line.values,
        color=colour(line.style),
        linestyle=dash(line.style),
        marker=marker,
        ms=3,
        gid=f"line:{line.style}",
    )
    if line.low is not None and line.high is not None:
        band = axes.fill_between(line.steps, line.low, line.high, color=colour(line.style), alpha=0.18, lw=0)
        band.set_gid(f"band:{line.style}")


def draw_heat_map(
    title: str,
    values: Values,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    along: str,
    about: str = "",
    limits: tuple[float, float | None] | None = None,
) -> Chart | None:
    """A table of numbers as colours; None where no number is finite.

    Args:
        title: Of the figure.
        values: (rows, columns); NaN leaves a gap.
        rows: Labels of them.
        columns: Labels of them.
        along: What the columns are.
        about: The caption.
        limits: Of the colours; None: the least, the greatest value.
    """
    if not np.isfinite(values).any():
        return None
    height = max(1.2, 0.55 + 0.2 * len(rows))
    with _panel(height) as (figure, axes):
        low, high = limits or (None, None)
        image = axes.imshow(
            np.ma.masked_invalid(values), aspect="auto", cmap="viridis", interpolation="none", vmin=low, vmax=high
        )
        axes.grid(False)
        axes.set_yticks(range(len(rows)), [clean(row) for row in rows], parse_math=False)
        shown = np.unique(np.linspace(0, len(columns) - 1, min(6, len(columns))).astype(int))
        axes.set_xticks(shown, [columns[index] for index in shown])
        axes.set_xlabel(along)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=8 * height)
        bar.outline.set_visible(False)
        table = [["", f"first {along}", f"last {along}"]]
        table += [[row, _short(numbers[0]), _short(numbers[-1])] for row, numbers in zip(rows, values, strict=True)]
        return Chart(title, _markup(figure, title, table), about, table)


def draw_estimates(title: str, estimates: Sequence[ScoreRow], *, about: str = "") -> Chart | None:
    """Shares with their intervals, the best on top; dots are single values. None where there is no mean."""
    known = sorted((each for each in estimates if each.mean is not None), key=lambda each: each.mean or 0.0)
    if not known:
        return None
    with _panel(max(2.2, 0.6 + 0.24 * len(known)), _WIDE) as (figure, axes):
        for place, each in enumerate(known):
            axes.plot(each.values, [place] * len(each.values), "o", color=colour(0), alpha=0.45, ms=4, mew=0)
            if each.low is not None and each.high is not None:
                axes.plot([each.low, each.high], [place, place], color=_INK, lw=1.6)
            axes.plot([each.mean or 0.0], [place], "D", color=_INK, ms=4.5)
        axes.set_yticks(range(len(known)), [clean(each.label) for each in known], parse_math=False)
        axes.set_ylim(-0.6, len(known) - 0.4)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        table = [["", "mean", "interval"]]
        for each in reversed(known):
            interval = "" if each.low is None or each.high is None else f"{_percent(each.low)} to {_percent(each.high)}"
            table.append([each.label, _percent(each.mean or 0.0), interval])
        return Chart(title, _markup(figure, title, table), about, table)


@contextmanager
def _panel(height: float = 2.5, width: float = _WIDTH) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def _markup(figure: Figure, title: str, table: list[list[str]]) -> Markup:
    """The drawing without what belongs to a file of its own, its colours and identifiers made the page's."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(
        r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S
    )
    number = next(_numbers)
    text = re.sub(r'\bid="(line|band):(\d+)"', r'class="\1" data-series="\2"', text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="c{number}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\1c{number}-", text)
    text = re.sub(r"#0a0[ab]\d\d", lambda match: _VARIABLES[match[0]], text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib writes one"
    label = escape(f"{title}. " + "; ".join(" ".join(row) for row in table[1:9]))
    head = f'<svg class="chart" {box[0]} role="img" aria-label="{clean(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(re.sub(r"^<svg[^>]*>", lambda _: head, text))


def _short(value: float) -> str:
    return "" if not np.isfinite(value) else f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"
