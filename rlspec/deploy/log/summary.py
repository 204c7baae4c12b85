"""A deployment at a glance: one picture and one self-contained page from its tick log."""

from __future__ import annotations

import base64
import html
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlspec.checkpoint import write_bytes_atomically
from rlspec.contract.actions import JOINT_NAMES
from rlspec.deploy.log.reader import RunLog, read_log

SUMMARY_NAME = "summary"


@dataclass(frozen=True)
class Figures:
    """What the page says in numbers.

    Attributes:
        ticks: Of the loop, `acted` of them with an action of the policy.
        seconds: From the first tick to the last.
        reasons: Why the safety filter changed or refused actions -> ticks.
        phases: Phase -> ticks.
        events: (tick, seconds, text).
        late_ms, age_ms, inference_ms, observation_ms: 50th, 99th percentile and maximum; empty where nothing is known.
        lag: Largest |sent - measured| one tick later, (7,) rad; NaN where nothing was sent.
        changed: Largest |target - sent|, (7,) rad.
        speed: Largest measured |velocity|, (7,) rad/s.
    """

    ticks: int
    acted: int
    seconds: float
    reasons: dict[str, int]
    phases: dict[str, int]
    events: list[tuple[int, float, str]]
    late_ms: tuple[float, ...]
    age_ms: tuple[float, ...]
    inference_ms: tuple[float, ...]
    observation_ms: tuple[float, ...]
    lag: tuple[float, ...]
    changed: tuple[float, ...]
    speed: tuple[float, ...]


def write_summary(path: Path, out: Path | None = None) -> tuple[Path, Path]:
    """Write summary.png and summary.html.

    Args:
        path: Folder of the run, or its ticks.jsonl.
        out: Folder to write to; the run's own by default.

    Returns:
        The picture and the page.

    Raises:
        DataError: There is no usable log.
    """
    from rlspec.deploy.log.summary_plots import draw

    log = read_log(path)
    folder = out or log.folder
    folder.mkdir(parents=True, exist_ok=True)
    picture, page = folder / f"{SUMMARY_NAME}.png", folder / f"{SUMMARY_NAME}.html"
    drawn = draw(log)
    write_bytes_atomically(picture, drawn)
    write_bytes_atomically(page, _page(log, measure(log), drawn).encode())
    return picture, page


def measure(log: RunLog) -> Figures:
    """The figures of a run."""
    time = log.time
    sent, target = log.column("sent", size=7), log.column("target", size=7)
    measured, speed = log.column("state", "joints", size=7), log.column("state", "velocities", size=7)
    return Figures(
        ticks=len(log.ticks),
        acted=sum(tick.get("requested") is not None for tick in log.ticks),
        seconds=float(time[-1]),
        reasons=dict(Counter(reason for tick in log.ticks for reason in set(tick.get("reasons") or ())).most_common()),
        phases=dict(Counter(str(tick.get("phase")) for tick in log.ticks)),
        events=[
            (int(tick["tick"]), float(when), str(tick["event"]))
            for tick, when in zip(log.ticks, time, strict=True)
            if tick.get("event")
        ],
        late_ms=_percentiles(log.column("late_ms")),
        age_ms=_percentiles(log.column("action_age_ms")),
        inference_ms=_percentiles(_once_per_chunk(log)),
        observation_ms=_percentiles(log.column("observation_age_ms")),
        lag=_largest(sent[:-1] - measured[1:]),
        changed=_largest(target - sent),
        speed=_largest(speed),
    )


def _once_per_chunk(log: RunLog) -> np.ndarray:
    """Inference times, (chunks,) ms: a chunk that is carried out over several ticks was inferred once."""
    times = {tick.get("chunk"): tick.get("inference_ms") for tick in log.ticks if tick.get("inference_ms") is not None}
    return np.array(list(times.values()), dtype=np.float64)


def _percentiles(values: np.ndarray) -> tuple[float, ...]:
    known = values[np.isfinite(values)]
    return tuple(float(np.percentile(known, share)) for share in (50, 99, 100)) if len(known) else ()


def _largest(values: np.ndarray) -> tuple[float, ...]:
    known = np.isfinite(values)
    largest = np.where(known, np.abs(values), -1.0).max(axis=0, initial=-1.0)
    return tuple(float(value) if value >= 0 else float("nan") for value in largest)


def _page(log: RunLog, figures: Figures, picture: bytes) -> str:
    """One HTML file that needs nothing beside it."""
    title = f"Deployment on {log.robot}: {log.footer.get('outcome', 'no outcome recorded')}"
    facts = {
        "outcome": _outcome(log),
        "robot": log.robot,
        **{key: log.header.get(key) for key in ("mode", "action_space", "law", "control_hz")},
        "ticks": f"{figures.ticks} in {figures.seconds:.1f} s, {figures.acted} with an action of the policy",
        "phases": ", ".join(f"{name} {count}" for name, count in figures.phases.items()),
        "lateness": _spread(figures.late_ms),
        "age of actions": _spread(figures.age_ms),
        "age of observations": _spread(figures.observation_ms),
        "inference": _spread(figures.inference_ms),
        "versions": ", ".join(f"{name} {version}" for name, version in (log.header.get("versions") or {}).items()),
    }
    parts = [
        _table("", [(name, value) for name, value in facts.items() if value not in (None, "")]),
        *(f'<p class="problem">{html.escape(problem)}</p>' for problem in log.problems),
        f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(picture).decode()}">',
        _table("Changed by the safety filter", _reasons(figures) or [("nothing", "")]),
        _table("Joints", _joints(figures), ("", "|sent - measured| rad", "|target - sent| rad", "speed rad/s")),
        _table("Events", [(f"{when:.2f} s, tick {tick}", text) for tick, when, text in figures.events]),
    ]
    style = "body{font:15px sans-serif;margin:2em;max-width:1200px}td,th{padding:.15em .8em;text-align:left}"
    style += "tr:nth-child(even){background:#f3f3f3}img{max-width:100%}.problem{color:#b00}"
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
    return f"<!doctype html><html lang=en>{head}<body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"


def _outcome(log: RunLog) -> str:
    if not log.footer:
        return "unknown"
    return ": ".join(str(log.footer[key]) for key in ("outcome", "reason") if log.footer.get(key))


def _spread(values: tuple[float, ...]) -> str:
    return "median {:.1f} ms, p99 {:.1f} ms, largest {:.1f} ms".format(*values) if values else ""


def _reasons(figures: Figures) -> list[tuple[Any, ...]]:
    share = 100.0 / max(1, figures.acted)
    return [(reason, f"{count} ticks, {share * count:.1f}%") for reason, count in figures.reasons.items()]


def _joints(figures: Figures) -> list[tuple[Any, ...]]:
    columns = zip(JOINT_NAMES, figures.lag, figures.changed, figures.speed, strict=True)
    return [(name, *(f"{number:.3f}" for number in numbers)) for name, *numbers in columns]


def _table(title: str, rows: list[tuple[Any, ...]], head: tuple[str, ...] = ()) -> str:
    if not rows:
        return ""
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    if head:
        lines.insert(0, "".join(f"<th>{html.escape(cell)}</th>" for cell in head))
    caption = f"<h2>{html.escape(title)}</h2>" if title else ""
    return f"{caption}<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
