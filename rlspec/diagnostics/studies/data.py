"""`what=data`: which training problems give gradients that agree with the others', and which give noise or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from rlspec.diagnostics.measures.ranks import singular_values, stable_rank
from rlspec.diagnostics.result import StudyResult, Table, mean
from rlspec.diagnostics.subject import Subject, add_to, blocks_of
from rlspec.optim.map.spec import ParameterSpec

SHOWN = 8
"""Problems that the table shows from each end."""

_LABEL = 48  # letters of a problem in a table


def study(subject: Subject) -> StudyResult:
    """Two passes: the sum of all gradients, then each one against the rest."""
    specs = subject.specs()
    rows = sorted(measure(subject, specs), key=lambda row: -_last(row["agreement"]))
    heard = [row for row in rows if row["norm"] > 0]
    silent = len(rows) - len(heard)
    against = sum(row["agreement"] < 0 for row in heard)
    tables = [
        Table(f"{len(rows)} {subject.unit}: gradients that agree most with the others'", _shown(heard[:SHOWN])),
        Table("that agree least", _shown(heard[SHOWN:][-SHOWN:])),
    ]
    rates = {row["pass_rate"] for row in rows if "pass_rate" in row}
    if rates:
        tables.append(Table("by pass rate", [_by_rate(rate, rows) for rate in sorted(rates)]))
    notes = [
        "agreement: cosine with the sum of all other gradients; stable: stable rank, mean over blocks by their energy",
        f"{silent} of {len(rows)} give no gradient at all, {against} point against the others",
    ]
    return StudyResult(tables, notes, {"parts": rows}, _drawing(heard), (11.0, 4.4))


def measure(subject: Subject, specs: Sequence[ParameterSpec]) -> list[dict[str, Any]]:
    """A row per part, in the order of the parts."""
    names = [spec.name for spec in specs]
    total: dict[str, Tensor] = {}
    for _, gradients in subject.gradients("data, first pass"):
        add_to(total, {name: gradients[name] for name in names if name in gradients})
    rows = []
    for part, gradients in subject.gradients("data, second pass"):
        mine = {name: gradients[name] for name in total if name in gradients}
        square = sum(float(value.double().square().sum()) for value in mine.values())
        row: dict[str, Any] = {"label": part.label, **part.facts, "norm": math.sqrt(square)}
        row["stable"] = _stable(specs, mine, square)
        row["agreement"] = _agreement(mine, total, square)
        rows.append(row)
    return rows


def _agreement(mine: Mapping[str, Tensor], total: Mapping[str, Tensor], square: float) -> float:
    """Cosine of a gradient with the sum of the others."""
    if square == 0:
        return math.nan
    inner = sum(float((mine[name].double() * total[name].double()).sum()) for name in mine) - square
    whole = sum(float(value.double().square().sum()) for value in total.values())
    others = whole - 2 * (inner + square) + square  # ||total - mine||^2
    return inner / math.sqrt(square * others) if others > 1e-12 * square else math.nan


def _stable(specs: Sequence[ParameterSpec], mine: Mapping[str, Tensor], square: float) -> float:
    if square == 0:
        return math.nan
    found = 0.0
    for spec in specs:
        if spec.name in mine:
            values = singular_values(blocks_of(spec, mine[spec.name]))
            found += float((stable_rank(values) * values.square().sum(-1)).sum())
    return found / square


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "label": _short(str(row["label"]))} for row in rows]


def _short(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 3]}..."


def _by_rate(rate: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mine = [row for row in rows if row["pass_rate"] == rate]
    means = {key: mean(row[key] for row in mine) for key in ("norm", "stable", "agreement")}
    return {"pass rate": rate, "problems": len(mine), **means}


def _last(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _drawing(rows: Sequence[Mapping[str, Any]]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        colours = [row.get("pass_rate", 0.5) for row in rows]
        points = left.scatter(
            [row["stable"] for row in rows],
            [row["agreement"] for row in rows],
            c=colours,
            cmap="viridis",
            vmin=0,
            vmax=1,
        )
        left.set(xlabel="stable rank of the gradient", ylabel="agreement with the others")
        right.scatter(
            [row["norm"] for row in rows], [row["agreement"] for row in rows], c=colours, cmap="viridis", vmin=0, vmax=1
        )
        right.set(xlabel="norm of the gradient", ylabel="agreement with the others")
        for axis in (left, right):
            axis.axhline(0, color="0.3", lw=0.8)
            axis.grid(alpha=0.3)
        if rows and "pass_rate" in rows[0]:
            figure.colorbar(points, ax=right, label="pass rate")

    return draw
