"""One self-contained page of runs and sweeps: read, drawn, written; again and again where it is watched."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlspec import __version__
from rlspec.checkpoint import write_text_atomically
from rlspec.errors import ConfigError, DataError
from rlspec.reporting.reading import RunRecord, find_run, read_run
from rlspec.reporting.run_section import FILM_BYTES, RunSection, describe_run
from rlspec.reporting.sweep_section import SweepSection, describe_sweep
from rlspec.reporting.sweeps import SweepRecord, compare_runs, is_sweep, read_sweep
from rlspec.reporting.text import clean


@dataclass(frozen=True)
class Content:
    """What a page is made of.

    Attributes:
        runs, sweeps: In the order in which they are shown, sweeps first.
        problems: A line for each file that could not be read.
    """

    title: str
    runs: list[RunRecord]
    sweeps: list[SweepRecord]
    problems: list[str] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether something may still change."""
        members = [run for sweep in self.sweeps for arm in sweep.arms for run in (*arm.members, *arm.tuning)]
        waiting = any(sweep.waiting for sweep in self.sweeps)
        return waiting or any(run.running for run in self.runs) or any(each.status == "running" for each in members)


def read_content(folders: Sequence[Path]) -> Content:
    """Read runs and sweeps; several runs are compared as well.

    Raises:
        DataError: A folder holds neither.
    """
    runs: list[RunRecord] = []
    sweeps: list[SweepRecord] = []
    for folder in dict.fromkeys(path.expanduser() for path in folders):
        if folder.is_dir() and not find_run(folder) and is_sweep(folder):
            sweeps.append(read_sweep(folder))
        else:
            runs.append(_read(folder))
    if len(runs) > 1:
        sweeps.append(compare_runs(runs, f"{len(runs)} runs"))
    problems = [*(each for sweep in sweeps for each in sweep.problems)]
    problems += [f"{run.name}: {each}" for run in runs for each in run.problems if len(runs) == 1]
    title = ", ".join([*(sweep.title for sweep in sweeps if sweep.folder), *(run.name for run in runs)])
    return Content(title, runs, sweeps, problems)


def _read(folder: Path) -> RunRecord:
    if folder.is_dir() and not find_run(folder):
        raise DataError(
            f"{folder}: neither a run (recipe.yaml, metrics.jsonl) nor a sweep (report.json, plan.yaml, folders of "
            "runs); give the folder that python -m rlspec.train or rlspec.compare wrote"
        )
    return read_run(folder)


def render(content: Content, *, reload_seconds: float | None = None, command: str = "") -> str:
    """The page.

    Args:
        content: What it shows.
        reload_seconds: After which it loads itself again; None: never.
        command: That made it.
    """
    parts = len(content.runs) + len(content.sweeps)
    compared = len(content.runs) > 1  # then a comparison shows some of them
    runs = [] if compared else [describe_run(run, "r-", film_bytes=FILM_BYTES // parts) for run in content.runs]
    sweeps = [describe_sweep(sweep, f"s{k}-", film_bytes=FILM_BYTES // parts) for k, sweep in enumerate(content.sweeps)]
    script, style = _asset("page.js"), _asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            content=content,
            runs=runs,
            sweeps=sweeps,
            style=Markup(style),
            script=Markup(script),
            digest=digest,
            reload_seconds=reload_seconds,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            command=command,
            version=__version__,
            contents=_contents(runs, sweeps),
        )
    )


_PARTS_OF_A_RUN = (
    ("learning", "learning"),
    ("measured", "evaluations"),
    ("symmetry", "symmetry"),
    ("updates", "updates"),
    ("spectra", "spectra"),
    ("filters", "filters"),
    ("studies", "heads"),
    ("samples", "samples"),
    ("environment", "environment"),
    ("reproduce", "reproduce"),
)


def _contents(runs: Sequence[RunSection], sweeps: Sequence[SweepSection]) -> list[tuple[str, str]]:
    """(anchor, words) of what the page jumps to."""
    entries = []
    for sweep in sweeps:
        name = f"{sweep.sweep.title}: " if len(sweeps) > 1 else ""
        parts = [("results", "results"), ("curves", "curves"), ("details", "single runs"), ("reproduce", "reproduce")]
        entries += [(f"{sweep.key}{anchor}", name + words) for anchor, words in parts]
    for run in runs:
        shown = {"measured": bool(run.measured), "samples": bool(run.answers or run.films)}
        entries += [(f"{run.key}{anchor}", words) for anchor, words in _PARTS_OF_A_RUN if shown.get(anchor, True)]
    return entries


def _environment() -> Environment:
    def harmless(value: Any) -> Any:
        return clean(value) if isinstance(value, str) else value

    environment = Environment(
        loader=PackageLoader("rlspec.reporting", "."),
        autoescape=True,
        finalize=harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["dictvalues"] = lambda row: list(row.values())
    return environment


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def write_report(
    folders: Sequence[Path], out: Path, *, command: str = "", reload_seconds: float | None = None
) -> Content:
    """Write the page; returns what it shows.

    Raises:
        DataError: A folder holds neither a run nor a sweep.
        ConfigError: The page cannot be written.
    """
    content = read_content(folders)
    again = reload_seconds if content.running else None
    page = render(content, reload_seconds=again, command=command)
    try:
        write_text_atomically(out, page)
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}); choose another file") from error
    return content


def watch(write: Callable[[], Content], seconds: float, *, sleep: Callable[[float], None] = time.sleep) -> Content:
    """Write the page again every so many seconds, until nothing of it is running any more; returns what it shows."""
    while (content := write()).running:
        sleep(seconds)
    return content
