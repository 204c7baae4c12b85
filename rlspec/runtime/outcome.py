"""The end of a run: its summary, its curves, and the lines that say where everything is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlspec.checkpoint import list_checkpoints, read_manifest, write_json_atomically
from rlspec.diagnostics.curves import plot_curves
from rlspec.run_directory import SUMMARY, RunDirectory
from rlspec.runtime.card import CardRow, Origin
from rlspec.runtime.provenance import described_folder
from rlspec.runtime.starting import Run
from rlspec.versions import library_versions

Scores = dict[str, Any]  # what an evaluation found, as JSON
Status = Literal["finished", "interrupted", "collapsed"]


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    steps: int
    status: Status
    seconds: float  # without imports; of all sessions of a resumed run, as far as they wrote a summary
    before: Scores | None
    after: Scores | None


@dataclass(frozen=True)
class Ending:
    """What one kind of run says of its outcome."""

    subject: str  # what was trained, for the title of the curves
    entries: Mapping[str, Any]  # of summary.json, besides those of every run
    lines: Sequence[str]  # what it reached, for the terminal
    evaluations: str  # what the folder of evaluations holds
    further: str  # override that lets the finished run go on
    origin: Origin  # for the model card,
    measured: Sequence[CardRow] = ()  # and what it says of the weights


def earlier_seconds(run: RunDirectory) -> float:
    """What the sessions before this one took, as far as they ended by themselves."""
    path = run.path / SUMMARY
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0


def write_outcome(outcome: RunOutcome, ending: Ending, run: Run) -> None:
    """Write summary.json and curves.png."""
    recipe, directory = run.recipe, run.directory
    newest = list_checkpoints(directory.checkpoints)
    summary = {
        "recipe": recipe.recipe,
        "status": outcome.status,
        "optim": recipe.optim.name,
        "seed": recipe.seed,
        "steps": outcome.steps,
        "seconds": outcome.seconds,
        "versions": library_versions(),
        **ending.entries,
        "checkpoint": str(newest[-1]) if newest else None,
        "best": str(directory.best) if directory.best.is_dir() else None,
    }
    write_json_atomically(directory.path / SUMMARY, summary)
    title = f"{directory.path.name}: {ending.subject}, {recipe.optim.name}, seed {recipe.seed}"
    plot_curves(directory.read_metrics(), directory.path / "curves.png", title=title)


def show_outcome(outcome: RunOutcome, ending: Ending, run: Run) -> None:
    """The last lines of a run: what it reached, where its files are, how to measure it and how to go on."""
    path, show = run.directory.path, run.display.line
    run.display.heading(f"{outcome.status} after {outcome.steps} steps and {outcome.seconds:.0f} s")
    for line in ending.lines:
        show(line)
    show(f"summary   {path / SUMMARY}")
    show(f"curves    {path / 'curves.png'}")
    if run.directory.evaluations.is_dir():
        show(f"{ending.evaluations:<10}{run.directory.evaluations}")
    typed = shlex.quote(str(path))
    show(f"report    python -m rlspec.report {typed}")
    show(f"evaluate  python -m rlspec.evaluate checkpoint={typed}")
    further = f" {ending.further}" if outcome.status == "finished" else ""
    show(f"resume    {resume_command(run.directory)}{further}")


def resume_command(run: RunDirectory) -> str:
    """What is typed to go on with a run."""
    return f"python -m rlspec.train resume={shlex.quote(str(run.path))}"


def keep_best(run: Run, step: int, score: tuple[str, float], write: Callable[[Path], None]) -> None:
    """Let `write` fill best/ with the weights of a step whose score, named and in [0, 1], beats all before."""
    name, value = score
    best = run.directory.best
    if value > (float(read_manifest(best)[name]) if best.is_dir() else -1.0):
        with described_folder(best, run, step, **{name: value}) as folder:
            write(folder)
