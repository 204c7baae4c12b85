"""The part of a page about one run: figures, tables and texts, ready for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlspec.diagnostics.curves import MOST_ROLES, kind_of
from rlspec.reporting.drawing import Chart, draw_heat_map, draw_lines
from rlspec.reporting.evaluations import (
    Answers,
    Films,
    RateTable,
    interval_words,
    order_of,
    percent,
    rate_tables,
    read_answers,
    read_films,
    with_interval,
)
from rlspec.reporting.reading import RunRecord, items, mapping, number, read_mapping
from rlspec.reporting.reproduce import Reproduction, reproduce
from rlspec.reporting.series import Line, StepNumbers, Values, smoothed, thinned
from rlspec.reporting.studies import StudySection, read_studies

FILM_BYTES = 3_000_000  # of all films of a page
MOST_ROWS = 40  # of a heat map


@dataclass(frozen=True)
class Fact:
    """A number that a reader looks for first."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Panels:
    """Figures that share a legend.

    Attributes:
        legend: (label, number of the style) of each line.
        charts: In order.
        missing: What was not recorded, or is not there.
    """

    title: str
    about: str
    legend: list[tuple[str, int]]
    charts: list[Chart]
    missing: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """The tables of one evaluation."""

    label: str
    facts: list[Fact]
    tables: list[RateTable]


@dataclass(frozen=True)
class RunSection:
    """What the template shows of a run."""

    key: str  # begins the names of its anchors
    run: RunRecord
    chips: list[tuple[str, str]]
    facts: list[Fact]
    learning: Panels
    measured: list[EvaluationResult]
    updates: Panels
    spectra: Panels
    filters: Panels
    studies: list[StudySection]
    answers: list[Answers]
    films: list[Films]
    environment: list[tuple[str, str]]
    reproduction: Reproduction
    progress: float | None = None
    symmetry: list[dict[str, str]] = field(default_factory=list)


def describe_run(run: RunRecord, key: str, *, film_bytes: int = FILM_BYTES) -> RunSection:
    """Read its evaluations and draw its figures.

    Args:
        run: As its files tell it.
        key: Begins the names of anchors, another one for every run of a page.
        film_bytes: That its films may take.
    """
    metrics = StepNumbers(run.rows)
    answers = read_answers(run.evaluations) if run.evaluations.is_dir() else []
    total = _planned_steps(run.recipe)
    return RunSection(
        key=key,
        run=run,
        chips=_chips(run),
        facts=_facts(run, metrics),
        learning=_learning(metrics),
        measured=_measured(run),
        updates=_updates(metrics),
        spectra=_spectra(metrics),
        filters=_filters(metrics),
        studies=read_studies(run),
        answers=answers,
        films=read_films(run.evaluations, film_bytes),
        environment=[(name, str(version)) for name, version in mapping(run.summary.get("versions")).items()],
        reproduction=reproduce(run),
        progress=min(1.0, run.last_step / total) if total and run.running else None,
        symmetry=[_symmetry_row(mapping(row)) for row in items(run.symmetry.get("rows"))],
    )


def _planned_steps(recipe: Mapping[str, Any]) -> int | None:
    steps = mapping(recipe.get("trainer")).get("max_steps") or mapping(recipe.get("training")).get("steps")
    return steps if isinstance(steps, int) and steps > 0 else None


def _chips(run: RunRecord) -> list[tuple[str, str]]:
    recipe = run.recipe
    named = {
        part: mapping(recipe.get(part)).get("name") for part in ("model", "policy", "data", "dataset", "env", "optim")
    }
    chips = [(part, str(name)) for part, name in named.items() if name]
    optim = mapping(recipe.get("optim"))
    chips += [(name, f"{optim[name]:g}") for name in ("lr",) if number(optim.get(name)) is not None]
    return chips + [(name, str(recipe[name])) for name in ("algorithm", "seed") if name in recipe]


SCORES = {"sampled_pass_at_1": ("sampled pass@1", "sampled_ci95"), "success_rate": ("success", "ci95")}


def _facts(run: RunRecord, metrics: StepNumbers) -> list[Fact]:
    """The score with its gain, other scores, and how long it took."""
    facts = []
    before, after = mapping(run.summary.get("before")), mapping(run.summary.get("after"))
    for name, (words, interval) in SCORES.items():
        scored = after or before
        if (value := number(scored.get(name))) is None:
            continue
        start = number(before.get(name)) if after else None
        note = (
            "before training"
            if not after
            else ""
            if start is None
            else f"{100 * (value - start):+.1f} points from {100 * start:.1f}%"
        )
        ends = scored.get(interval) or mapping(scored.get("total")).get("ci95")
        facts.append(Fact(words, percent(value), "; ".join(filter(None, [note, interval_words(ends)]))))
    if (greedy := number(after.get("pass_at_1"))) is not None:
        facts.append(Fact("greedy pass@1", percent(greedy), interval_words(after.get("ci95"))))
    for k, value in mapping(after.get("pass_at_k")).items():
        if k != "1":
            facts.append(Fact(f"pass@{k}", percent(value), interval_words(mapping(after.get("pass_at_k_ci95")).get(k))))
    facts += _last_values(metrics) if not after else []
    steps = number(run.summary.get("steps")) or run.last_step
    planned = _planned_steps(run.recipe)
    facts.append(Fact("steps", f"{steps:,.0f}", f"of {planned:,}" if planned and planned != steps else ""))
    if (seconds := number(run.summary.get("seconds"))) is not None:
        facts.append(Fact("time", duration(seconds)))
    return facts


def _last_values(metrics: StepNumbers) -> list[Fact]:
    found: list[Fact] = []
    for key, words in (("reward", "reward, last step"), ("loss", "loss, last step")):
        _, values = metrics.points(key)
        if len(values) and not (key == "loss" and found):
            found.append(Fact(words, f"{values[-1]:.4g}", f"best {values.max():.4g}" if key == "reward" else ""))
    return found


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# title, keys (or a beginning and an end of them), shares, caption
_LEARNING: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("mean reward", ("reward",), False),
    ("loss", ("loss",), False),
    ("answers with a box, and cut off", ("grader/box_rate", "completions/clipped_ratio"), True),
    ("mean length of completions, tokens", ("completions/mean_length",), False),
    ("entropy of the policy", ("entropy",), False),
    ("KL divergence to the start", ("kl",), False),
    ("norm of the gradient", ("grad_norm",), False),
)
_WORDS = {"grader/box_rate": "with a box", "completions/clipped_ratio": "cut off", "reward": "reward", "kl": "KL"}


def _learning(metrics: StepNumbers) -> Panels:
    charts: list[Chart | None] = []
    for title, keys, shares in _LEARNING:
        # A policy gradient's loss says nothing about progress.
        hidden = title == "loss" and len(metrics.points("reward")[0])
        known = [key for key in keys if len(metrics.points(key)[0]) and not hidden]
        lines = [smoothed(_WORDS.get(key, key), *metrics.points(key), style=style) for style, key in enumerate(known)]
        charts.append(draw_lines(title, lines, percent=shares, own_legend=True))
        if title == "loss":
            charts += [_held_out(metrics, "pass_at_1", "held-out accuracy"), _held_out(metrics, "success", "success")]
    drawn = [chart for chart in charts if chart is not None]
    about = "Lines are running means over a twentieth of the logged steps, bands one standard deviation in that window."
    return Panels("Learning", about, [], drawn, "" if drawn else "No step has been logged yet.")


def _held_out(metrics: StepNumbers, end: str, title: str) -> Chart | None:
    keys = metrics.keys_like("eval/", end)
    names = [key.removeprefix("eval/").replace("_", " ") for key in keys]
    lines = [
        Line(name, *_sorted(metrics.points(key)), style=k)
        for k, (key, name) in enumerate(zip(keys, names, strict=True))
    ]
    return draw_lines(title, lines, percent=True, own_legend=True)


def _sorted(points: tuple[Values, Values]) -> tuple[Values, Values]:
    order = np.argsort(points[0], kind="stable")  # evaluations beside training come in late
    return points[0][order], points[1][order]


def _measured(run: RunRecord) -> list[EvaluationResult]:
    """Every evaluation whose metrics tell tasks, factors or the like apart, the newest first."""
    found = []
    for path in sorted(
        run.evaluations.glob("*/metrics.json"), key=lambda path: order_of(path.parent.name), reverse=True
    ):
        metrics = read_mapping(path, run.problems)
        if tables := rate_tables(metrics):
            total = mapping(metrics.get("total"))
            facts = [Fact("success", with_interval(metrics.get("success_rate"), total.get("ci95")))]
            found.append(EvaluationResult(path.parent.name, facts, tables))
    return found


def roles_of(metrics: StepNumbers, name: str) -> dict[str, str]:
    """Role -> key of a number of the optimizer."""
    return {key.split("/")[1]: key for key in metrics.keys_like("optim/", f"/{name}") if key.count("/") == 2}


def role_lines(metrics: StepNumbers, name: str, styles: dict[str, int]) -> list[Line]:
    """A line per role; of many, as policies with several parts have, the mean over those of one kind."""
    roles = roles_of(metrics, name)
    if len(roles) <= MOST_ROLES:
        return [thinned(role, *metrics.points(key), style=style_of(role, styles)) for role, key in roles.items()]
    kinds: dict[str, list[str]] = {}
    for role, key in roles.items():
        if kind := kind_of(role):
            kinds.setdefault(kind, []).append(key)
    lines = []
    for kind, keys in kinds.items():
        steps, table = metrics.over_time(keys)
        known = np.isfinite(table).any(axis=0)
        lines.append(Line(kind, steps[known], np.nanmean(table[:, known], axis=0), style=style_of(kind, styles)))
    return lines


def style_of(label: str, styles: dict[str, int]) -> int:
    """The number of a label's style, the next one for a new label."""
    return styles.setdefault(label, len(styles))


_UPDATES = (
    (
        "update RMS / learning rate",
        "update_rms",
        True,
        "How far a step moves an average weight, in units of the learning rate.",
    ),
    (
        "update spectral norm / learning rate",
        "update_spectral",
        True,
        "The largest singular value of a block's step.",
    ),
    ("change of the weights, RMS", "change_rms", True, "The same, with the learning rate."),
    ("largest operator norm, RMS to maximum", "weight_rms_to_inf", False, "Of the weights: how far one output moves."),
)
_SPECTRA = (
    ("stable rank of the momentum", "stable_rank", False, "Directions that carry its energy: 1 is one direction."),
    ("pass energy", "pass_energy", False, "Directions per block that pass the filter: 0 is no update at all."),
)


def _role_charts(
    metrics: StepNumbers, wanted: Sequence[tuple[str, str, bool, str]]
) -> tuple[list[Chart], list[tuple[str, int]]]:
    styles: dict[str, int] = {}
    drawn = [
        draw_lines(title, role_lines(metrics, name, styles), log=log, about=about) for title, name, log, about in wanted
    ]
    return [chart for chart in drawn if chart is not None], list(styles.items())


def _updates(metrics: StepNumbers) -> Panels:
    charts, legend = _role_charts(metrics, _UPDATES)
    missing = "" if charts else "The optimizer's numbers are not in metrics.jsonl."
    return Panels("Size of the updates", "A line per role of the symmetry table.", legend, charts, missing)


def _spectra(metrics: StepNumbers) -> Panels:
    charts, legend = _role_charts(metrics, _SPECTRA)
    missing = "" if charts else "Neither stable ranks nor pass energies are in metrics.jsonl."
    about = "What the rules see of the momentum, and what their filters let pass; a block is a matrix or a head."
    return Panels("Spectra", about, legend, charts, missing)


def _filters(metrics: StepNumbers) -> Panels:
    """Heat maps over all roles, which lines could not tell apart."""
    gated = [metrics.points(key)[1] for key in roles_of(metrics, "gated_share").values()]
    idle = any(values.any() for values in gated)
    maps = [
        _role_map(metrics, "pass_energy", "pass energy", None),
        _role_map(metrics, "gated_share", "share of blocks without an update", (0.0, 1.0)) if idle else None,
        _role_map(metrics, "stable_rank", "stable rank of the momentum", None),
    ]
    charts = [chart for chart in maps if chart is not None]
    about = "By role and step." + ("" if idle or not gated else " No block was left without an update.")
    return Panels(
        "Spectra and filters, role by role", about, [], charts, "" if charts else "Too few steps were logged."
    )


def _role_map(metrics: StepNumbers, name: str, title: str, limits: tuple[float, float] | None) -> Chart | None:
    roles = dict(list(roles_of(metrics, name).items())[:MOST_ROWS])
    steps, values = metrics.over_time(list(roles.values()))
    columns = [f"{step:.0f}" for step in steps]
    return draw_heat_map(title, values, list(roles), columns, along="step", limits=limits) if len(columns) > 1 else None


def _symmetry_row(row: Mapping[str, Any]) -> dict[str, str]:
    shape = " x ".join(str(size) for size in items(row.get("shape")))
    broken = [str(word) for word in items(row.get("broken"))]
    texts = {name: str(row.get(name, "")) for name in ("role", "group", "split", "rule")}
    counts = {
        name: f"{row[name]:,}" if isinstance(row.get(name), int) else ""
        for name in ("tensors", "matrices", "parameters")
    }
    bears = f"breaks {', '.join(broken)}" if broken else "yes"
    return texts | {"bears the group": bears, "shape": shape} | counts
