"""The part of a page about one comparison: its table, its figures, and a run of each of its best arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlspec.reporting.drawing import Chart, ScoreRow, draw_estimates, draw_lines
from rlspec.reporting.evaluations import percent
from rlspec.reporting.reading import items, mapping, number, read_run
from rlspec.reporting.run_section import Fact, Panels, RunSection, describe_run, duration, roles_of
from rlspec.reporting.series import Line, StepNumbers, Values, over_seeds
from rlspec.reporting.sweeps import Arm, Member, SweepRecord

MOST_DETAILED = 4  # arms of which a run is shown
Points = tuple[Values, Values]


@dataclass(frozen=True)
class SweepSection:
    """What the template shows of a comparison."""

    key: str
    sweep: SweepRecord
    facts: list[Fact]
    header: list[str]
    rows: list[list[str]]
    scores: list[Chart]
    curves: Panels
    tuning: list[list[str]] = field(default_factory=list)
    details: list[tuple[str, RunSection]] = field(default_factory=list)


@dataclass
class _Curves:
    """What is drawn of one arm: of each figure, steps and values of each run."""

    by_figure: dict[str, list[Points]] = field(default_factory=dict)

    def add(self, figure: str, points: Points) -> None:
        if len(points[0]):
            self.by_figure.setdefault(figure, []).append(points)


_FIGURES = {  # title -> whether values are shares, whether the axis is logarithmic, window of a running mean
    "mean reward": (False, False, 5),
    "loss": (False, False, 5),
    "held-out score": (True, False, 1),
    "update RMS / learning rate": (False, True, 1),
    "update spectral norm / learning rate": (False, True, 1),
    "pass energy": (False, False, 1),
    "stable rank of the momentum": (False, False, 1),
}
_OF_ROLES = {
    "update RMS / learning rate": "update_rms",
    "update spectral norm / learning rate": "update_spectral",
    "pass energy": "pass_energy",
    "stable rank of the momentum": "stable_rank",
}


def describe_sweep(sweep: SweepRecord, key: str, *, film_bytes: int) -> SweepSection:
    """Read the runs of a comparison and draw its figures.

    Args:
        sweep: As its files tell it.
        key: Begins the names of anchors.
        film_bytes: That all its films may take.
    """
    ranked = sorted(sweep.arms, key=lambda arm: -(number(arm.statistics.get("mean")) or -1.0))
    estimates = [_estimate(arm) for arm in ranked]
    about = "Diamonds are means over seeds, lines their 95% intervals, dots single seeds."
    scores = draw_estimates(f"{sweep.score} after training, by arm", estimates, about=about)
    header, rows = _table(sweep, ranked)
    shown = [(arm.name, run) for arm in ranked if (run := _first_run(arm)) is not None][:MOST_DETAILED]
    details = [
        (name, describe_run(read_run(run.folder), f"{key}r{place}-", film_bytes=film_bytes // len(shown)))
        for place, (name, run) in enumerate(shown)
        if run.folder is not None
    ]
    return SweepSection(
        key=key,
        sweep=sweep,
        facts=_facts(ranked, sweep),
        header=header,
        rows=rows,
        scores=[chart for chart in (scores, _tuning(ranked, sweep.score)) if chart is not None],
        curves=_curves(ranked),
        tuning=[[arm.name, *_tuning_row(run)] for arm in ranked for run in arm.tuning],
        details=details,
    )


def _estimate(arm: Arm) -> ScoreRow:
    return ScoreRow(arm.name, number(arm.statistics.get("mean")), *_interval(arm.statistics), arm.scores)


def _interval(statistics: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Student's where it is stored, cut to what a share can be: the bootstrap's is too narrow for a few seeds."""
    ends = [number(end) for end in items(statistics.get("student"))]
    if len(ends) != 2 or None in ends:
        ends = [number(statistics.get(name)) for name in ("low", "high")]
    low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in ends)
    return low, high


def _facts(ranked: Sequence[Arm], sweep: SweepRecord) -> list[Fact]:
    members = [run for arm in ranked for run in arm.members]
    ended = sum(run.score is not None for run in members)
    facts = [Fact("arms", str(len(ranked))), Fact("runs with a score", str(ended), f"of {len(members)}")]
    if tuning := [run for arm in ranked for run in arm.tuning]:
        scored = sum(run.score is not None for run in tuning)
        facts.append(Fact("tuning runs with a score", str(scored), f"of {len(tuning)}"))
    if ranked and (mean := number(ranked[0].statistics.get("mean"))) is not None:
        facts.insert(0, Fact(f"best mean {sweep.score}", percent(mean), ranked[0].name))
    return facts


def _first_run(arm: Arm) -> Member | None:
    there = [member for member in (*arm.members, *arm.tuning) if member.folder is not None]
    return next((member for member in there if member.status == "finished"), there[0] if there else None)


_COLUMNS = (
    "arm",
    "mean",
    "95% interval",
    "by seed",
    "to the baseline",
    "p (Holm)",
    "collapsed",
    "learning rate",
    "runs",
)
_MEANS = {
    "peak": "peak",
    "area": "area under the curve",
    "mean_reward": "mean reward",
    "to_target": "steps to the target",
    "seconds": "time",
}


def _table(sweep: SweepRecord, arms: Sequence[Arm]) -> tuple[list[str], list[list[str]]]:
    """Columns in which no arm has anything are left out."""
    others = dict.fromkeys(name for arm in arms for run in arm.members for name in run.numbers)
    header = [*_COLUMNS, *(_MEANS.get(name, name) for name in others)]
    rows = [[*_cells(arm, arm.name == sweep.baseline), *(_mean_of(arm, name) for name in others)] for arm in arms]
    kept = [column for column in range(len(header)) if column == 0 or any(row[column] for row in rows)]
    return [header[column] for column in kept], [[row[column] for column in kept] for row in rows]


def _cells(arm: Arm, is_baseline: bool) -> list[str]:
    found = arm.statistics
    (low, high), paired = _interval(found), mapping(found.get("paired"))
    share, p = number(found.get("collapsed")), number(paired.get("p_holm"))
    states = [member.status for member in arm.members]
    return [
        arm.name,
        percent(found.get("mean")),
        "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}",
        ", ".join(f"{100 * score:.1f}" for score in arm.scores),
        "baseline" if is_baseline else _difference(paired),
        "" if p is None else f"{p:.3g}",
        "" if share is None else f"{share:.0%}",
        "" if arm.lr is None else f"{arm.lr:g}" + (" (edge of the grid)" if arm.at_edge else ""),
        ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states) if state) or "none yet",
    ]


def _difference(paired: dict[str, Any]) -> str:
    mean, low, high = (number(paired.get(name)) for name in ("mean", "low", "high"))
    if mean is None:
        return ""
    return f"{100 * mean:+.1f}" + ("" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]")


def _mean_of(arm: Arm, name: str) -> str:
    values = [run.numbers[name] for run in arm.members if name in run.numbers]
    if not values:
        return "never" if name == "to_target" and any("peak" in run.numbers for run in arm.members) else ""
    mean = sum(values) / len(values)
    if name == "seconds":
        return duration(mean)
    share = name in ("peak", "area") or name.startswith(("pass@", "forgotten"))
    of = f" ({len(values)} of {len(arm.scores)})" if len(values) < len(arm.scores) else ""
    return (percent(mean) if share else f"{mean:.4g}") + of


def _tuning_row(run: Member) -> list[str]:
    return ["" if run.lr is None else f"{run.lr:g}", run.seed, run.status, percent(run.score)]


def _curves(arms: Sequence[Arm]) -> Panels:
    styles = {arm.name: place for place, arm in enumerate(arms)}
    curves = {arm.name: _read_curves(arm.members or _best_tuning(arm)) for arm in arms}
    charts = []
    for title, (shares, log, window) in _FIGURES.items():
        lines = [
            over_seeds(name, drawn.by_figure.get(title, []), style=styles[name], window=window)
            for name, drawn in curves.items()
        ]
        charts.append(draw_lines(title, [line for line in lines if line is not None], percent=shares, log=log))
    about = "Means over the runs of an arm, bands from the least to the greatest run; a name shows its line and band."
    if waiting := [arm.name for arm in arms if not arm.members]:
        about += f" Of {', '.join(waiting)}: the best tuning run."
    drawn = [chart for chart in charts if chart is not None]
    missing = "" if drawn else "No step has been logged yet."
    return Panels("Curves by arm", about, list(styles.items()), drawn, missing)


def _best_tuning(arm: Arm) -> list[Member]:
    """What an arm shows as long as it has no runs of its own."""
    return sorted(arm.tuning, key=lambda run: -(run.score or 0.0))[:1]


def _read_curves(members: Sequence[Member]) -> _Curves:
    found = _Curves()
    for member in members:
        if member.folder is None:
            continue
        metrics = StepNumbers(read_run(member.folder).rows)
        reward = metrics.points("reward")
        found.add("mean reward", reward)
        if not len(reward[0]):
            found.add("loss", metrics.points("loss"))
        held_out = [*metrics.keys_like("eval/", "sampled_pass_at_1"), *metrics.keys_like("eval/success", "")]
        if held_out:
            found.add("held-out score", metrics.points(held_out[0]))
        for title, name in _OF_ROLES.items():
            steps, table = metrics.over_time(list(roles_of(metrics, name).values()))
            if table.size:
                known = np.isfinite(table).any(axis=0)
                found.add(title, (steps[known], np.nanmean(table[:, known], axis=0)))
    return found


def _tuning(arms: Sequence[Arm], score: str) -> Chart | None:
    lines = []
    for place, arm in enumerate(arms):
        scored = sorted((run.lr, run.score) for run in arm.tuning if run.lr is not None and run.score is not None)
        if scored:
            table = np.array(scored)
            lines.append(Line(arm.name, table[:, 0], table[:, 1], style=place))
    about = "Runs that chose the learning rates; their seeds are not among those of the table."
    title = f"{score}, by learning rate"
    return draw_lines(title, lines, percent=True, log_x=True, along="learning rate", own_legend=True, about=about)
