"""The picture of a deployment. Imports matplotlib only when it draws."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from rlspec.contract.actions import JOINT_POSITION
from rlspec.deploy.log.reader import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PHASES = {"start": "#cfe8ff", "hold": "#ffe9b0", "stop": "#ffc9c0", "fault": "#ff8f80"}
_MOST_REASONS = 12
_LEAST_RANGE = 0.02  # rad of a joint's axis: a joint that stands still is a line, not its encoder's noise
_MOST_POINTS = 4000  # per curve


def draw(log: RunLog) -> bytes:
    """Draw joints, reasons, ages, lateness and the gripper; returns a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 15))
    FigureCanvasAgg(figure)
    axes = figure.subplots(5, 2)
    for joint in range(7):
        _draw_joint(axes.flat[joint], log, joint, legend=joint == 0)
    _draw_gripper(axes.flat[7], log)
    _draw_reasons(axes.flat[8], log)
    _draw_delays(axes.flat[9], log)
    robot, law, mode = log.robot, log.header.get("law"), log.header.get("mode")
    ended = log.footer.get("outcome", "no outcome recorded")
    key = "blue: start, yellow: held, red: stopped, fault; red marks below the curves: changed by the safety filter"
    title = f"{robot}, {mode}, {log.header.get('action_space')} by {law}, {log.control_hz:g} Hz: {ended}"
    figure.suptitle(f"{title}\n{key}", fontsize=11)
    figure.subplots_adjust(left=0.11, right=0.99, top=0.94, bottom=0.04, hspace=0.25, wspace=0.25)
    file = io.BytesIO()
    figure.savefig(file, dpi=80)
    return file.getvalue()


def _thin(count: int) -> slice:
    return slice(None, None, max(1, count // _MOST_POINTS))


def _draw_joint(axis: Axes, log: RunLog, joint: int, *, legend: bool) -> None:
    time, some = log.time, _thin(len(log.ticks))
    curves = (
        ("target", log.column("target", size=7), {"color": "tab:orange", "lw": 1.0}),
        ("sent", log.column("sent", size=7), {"color": "tab:blue", "lw": 1.2, "ls": "--"}),
        ("measured", log.column("state", "joints", size=7), {"color": "black", "lw": 1.4}),
    )
    for label, values, style in curves:
        if np.isfinite(values[:, joint]).any():
            axis.plot(time[some], values[some, joint], label=label, **_style(style))
    requested = _requested_angles(log)
    if requested is not None:
        axis.plot(time[some], requested[some, joint], ".", ms=2, color="tab:red", label="requested")
    _shade(axis, log)
    axis.set_title(f"joint{joint + 1}, rad", fontsize=9)
    axis.margins(x=0)
    low, high = axis.get_ylim()
    if high - low < _LEAST_RANGE:
        axis.set_ylim((low + high - _LEAST_RANGE) / 2, (low + high + _LEAST_RANGE) / 2)
    if legend:
        axis.legend(fontsize=8, ncols=4, loc="best")


def _style(style: dict[str, Any]) -> dict[str, Any]:
    return {"color": style["color"], "linewidth": style["lw"], "linestyle": style.get("ls", "-")}


def _requested_angles(log: RunLog) -> np.ndarray | None:
    """Joint angles that the policy asked for; None where its actions are of another kind (`target` shows them)."""
    if log.header.get("action_space") != JOINT_POSITION:
        return None
    return log.column("requested", size=8)[:, :7]


def _shade(axis: Axes, log: RunLog) -> None:
    """Colour what was no ordinary running; mark ticks that the filter changed."""
    time = np.append(log.time, log.time[-1] + 1.0 / log.control_hz)
    for phase, start, end in _stretches([str(tick.get("phase")) for tick in log.ticks]):
        if phase in _PHASES:
            axis.axvspan(time[start], time[end], color=_PHASES[phase], lw=0)
    changed = [i for i, tick in enumerate(log.ticks) if tick.get("reasons")]
    axis.plot(time[changed], np.zeros(len(changed)), "|", color="tab:red", ms=6, transform=axis.get_xaxis_transform())


def _stretches(values: list[str]) -> Iterable[tuple[str, int, int]]:
    start = 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[start]:
            yield values[start], start, i
            start = i


def _draw_gripper(axis: Axes, log: RunLog) -> None:
    time, requested = log.time, _requested_closure(log)
    axis.plot(time, requested, ".", ms=5, color="tab:red", label="requested")
    axis.step(time, _carried(log.column("closure_sent")), where="post", color="tab:blue", lw=1.2, ls="--", label="sent")
    axis.plot(time, log.column("state", "closure"), color="black", lw=1.4, label="measured")
    _shade(axis, log)
    axis.set_title("gripper, 0 open to 1 closed", fontsize=9)
    axis.set_ylim(-0.1, 1.1)
    axis.margins(x=0)
    axis.legend(fontsize=8, ncols=3)


def _carried(values: np.ndarray) -> np.ndarray:
    """Each gap filled with the value before it: a hand keeps its command."""
    known = np.where(np.isfinite(values), np.arange(len(values)), -1)
    last = np.maximum.accumulate(known)
    return np.where(last >= 0, values[last], np.nan)


def _requested_closure(log: RunLog) -> np.ndarray:
    from rlspec.contract.actions import ACTION_SPACES

    space = ACTION_SPACES.get(str(log.header.get("action_space")))
    opened, closed = space.gripper if space else (0.0, 1.0)
    last = [tick["requested"][-1] if tick.get("requested") else None for tick in log.ticks]
    values = np.array([np.nan if value is None else value for value in last], dtype=np.float64)
    return (values - opened) / (closed - opened)


def _draw_reasons(axis: Axes, log: RunLog) -> None:
    """One row per reason, a mark for each tick."""
    rows: dict[str, list[float]] = {}
    for when, tick in zip(log.time, log.ticks, strict=True):
        for reason in tick.get("reasons") or ():
            rows.setdefault(str(reason), []).append(float(when))
    kept = sorted(rows, key=lambda name: -len(rows[name]))[:_MOST_REASONS]
    for height, name in enumerate(kept):
        axis.plot(rows[name], [height] * len(rows[name]), "|", ms=9, color=f"C{height % 10}")
    axis.set_yticks(range(len(kept)), [f"{name} ({len(rows[name])})" for name in kept], fontsize=8)
    axis.set_ylim(-0.7, max(len(kept), 1) - 0.3)
    axis.set_xlim(0.0, max(float(log.time[-1]), 1e-3))
    axis.set_title("changed by the safety filter" if kept else "changed by the safety filter: nothing", fontsize=9)
    axis.set_xlabel("s", fontsize=8)


def _draw_delays(axis: Axes, log: RunLog) -> None:
    """Histograms of lateness and ages on one logarithmic axis."""
    columns = {
        "tick's lateness": "late_ms",
        "action's age": "action_age_ms",
        "observation's age": "observation_age_ms",
        "inference": "inference_ms",
    }
    edges = np.geomspace(0.01, 10_000.0, 61)
    for label, key in columns.items():
        values = log.column(key)
        values = values[np.isfinite(values)]
        if len(values):
            axis.hist(np.clip(values, edges[0], edges[-1]), edges.tolist(), histtype="step", lw=1.4, label=label)
    axis.set_xscale("log")
    axis.set_title("delays, ms: number of ticks (what is below 0.01 ms stands at the left edge)", fontsize=9)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
