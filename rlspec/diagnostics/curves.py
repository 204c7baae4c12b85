"""The curves of a run as one PNG, from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

MOST_ROLES = 16  # lines that one can still tell apart
MATRIX_KINDS = ("attention", "mlp", "linear", "conv", "output", "embed")

Rows = Sequence[Mapping[str, Any]]


def plot_curves(rows: Rows, path: Path, *, title: str) -> None:
    """Draw reward or loss, accuracy or success, update size and pass energy over optimizer steps.

    Panels without data are left out.
    """
    panels = [panel for panel in _PANELS if panel[1](rows)]
    if not panels:
        return
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(6.2 * columns, 3.6 * lines), squeeze=False, layout="constrained"
    )
    # One colour per label in all panels; ten colours repeat, and the line style tells the second ten apart.
    labels = dict.fromkeys(label for _, series, _ in panels for label in series(rows))
    styles = {label: (f"C{index % 10}", ("-", "--", ":")[index // 10 % 3]) for index, label in enumerate(labels)}
    for axis, (name, series, log_scale) in zip(axes.flat, panels, strict=False):
        _draw(axis, series(rows), styles, name, log_scale=log_scale)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


Series = dict[str, list[tuple[int, float]]]  # label -> (step, value)


def _values(rows: Rows, key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]


def _reward(rows: Rows) -> Series:
    named = {"mean reward": "reward", "share with a box": "grader/box_rate", "truncated": "completions/clipped_ratio"}
    return {label: values for label, key in named.items() if (values := _values(rows, key))}


def _loss(rows: Rows) -> Series:
    """Only where there is no reward: a policy gradient's loss says nothing about progress."""
    named = {"loss": "loss", "on held-out episodes": "held_out/loss"}
    return {} if _reward(rows) else {label: values for label, key in named.items() if (values := _values(rows, key))}


def _success(rows: Rows) -> Series:
    """Success of robots' policies, over all tasks and of each; evaluations beside training come in late."""
    keys = sorted({key for row in rows for key in row if key.startswith("eval/") and key.endswith("success")})
    return {"all tasks" if key == "eval/success" else key.split("/")[1]: sorted(_values(rows, key)) for key in keys}


def _accuracy(rows: Rows) -> Series:
    keys = sorted({key for row in rows for key in row if key.startswith("eval/") and "pass_at_1" in key})
    return {key.removeprefix("eval/").replace("_", " "): _values(rows, key) for key in keys}


def _alignment(rows: Rows) -> Series:
    named = {"mean over layers": "alignment/mean", "largest": "alignment/largest"}
    return {label: values for label, key in named.items() if (values := _values(rows, key))}


def _per_role(rows: Rows, metric: str) -> Series:
    """Each role by itself; of many, as policies with several parts have, the mean over those of one kind."""
    keys = sorted({key for row in rows for key in row if key.startswith("optim/") and key.endswith(f"/{metric}")})
    series = {key.split("/")[1]: values for key in keys if (values := _values(rows, key))}
    return series if len(series) <= MOST_ROLES else _by_kind(series)


def _by_kind(series: Series) -> Series:
    """`action:attention.q` and `.k` become `action:attention`; roles of vectors (norms, biases, ...) are left out."""
    kinds: dict[str, dict[int, list[float]]] = {}
    for role, points in series.items():
        if kind := kind_of(role):
            for step, value in points:
                kinds.setdefault(kind, {}).setdefault(step, []).append(value)
    return {kind: [(step, fmean(values)) for step, values in steps.items()] for kind, steps in kinds.items()}


def kind_of(role: str) -> str:
    """What roles of matrices are summed up as: `action:attention.q` as `action:attention`; empty for vectors."""
    kind = role.partition(".")[0]
    return kind if kind.rpartition(":")[2] in MATRIX_KINDS else ""


_PANELS: tuple[tuple[str, Any, bool], ...] = (
    ("reward", _reward, False),
    ("loss", _loss, False),
    ("held-out accuracy", _accuracy, False),
    ("success in the simulator", _success, False),
    ("update RMS per role, over the learning rate", lambda rows: _per_role(rows, "update_rms"), True),
    (
        "largest singular value of the update, over the learning rate",
        lambda rows: _per_role(rows, "update_spectral"),
        True,
    ),
    ("inputs on one side of a layer's strongest direction", _alignment, False),
    ("pass energy per role (directions per block)", lambda rows: _per_role(rows, "pass_energy"), False),
)


def _draw(axis: Axes, series: Series, styles: Mapping[str, tuple[str, str]], name: str, *, log_scale: bool) -> None:
    for label, points in series.items():
        steps, values = zip(*points, strict=True)
        color, line = styles[label]
        marker = "o" if len(points) < 12 else None
        axis.plot(steps, values, linestyle=line, color=color, marker=marker, ms=3, label=label)
    # A log axis cannot show updates that are exactly zero; symlog would hide how small they are.
    if log_scale and any(value > 0 for points in series.values() for _, value in points):
        axis.set_yscale("log")
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("optimizer step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=1 if len(series) < 7 else 2)
