"""The folder of one run: where everything is, how a new one is named, and what a resumed one keeps.

<run>/
  recipe.yaml          the resolved recipe, itself a valid recipe=PATH
  symmetry.md, .json   which rule updates which parameter
  preflight.jsonl      problems that were dropped, with the reason
  problems.json        which problems were read, and by how many processes: a resumed run has to have the same
  metrics.jsonl        a line per logged step
  evaluations/         before, step-N and after: metrics as JSON, completions with verdicts as JSONL
  curves.png           reward, accuracy, update size and pass energy
  tensorboard/         the same numbers as events
  checkpoints/         checkpoint-N folders and best/, with a model card (README.md) in the last one and in best/
  summary.json         what came out
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspec.checkpoint import (
    CHECKPOINTS,
    MANIFEST,
    list_checkpoints,
    named_folder,
    newest_whole_checkpoint,
    no_such_folder,
    verify_checkpoint,
    write_text_atomically,
)
from rlspec.errors import CheckpointError, ConfigError

RECIPE = "recipe.yaml"
SUMMARY = "summary.json"
PREFLIGHT = "preflight.jsonl"
PROBLEMS = "problems.json"
BEST = "best"


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoint-N folders and of best/."""
        return self.path / CHECKPOINTS

    @property
    def best(self) -> Path:
        """Weights with the best evaluation so far."""
        return self.checkpoints / BEST

    @property
    def evaluations(self) -> Path:
        """Folder of evaluation results."""
        return self.path / "evaluations"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def tracker_id(self) -> str:
        """Of the run in Weights & Biases, drawn once and kept in its folder: who resumes it goes on there."""
        path = self.path / "tracker_id"
        with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(secrets.token_hex(4))
        return f"{self.path.name[:100]}-{path.read_text(encoding='utf-8')}"

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; NaN and infinity become null, which JSON has a word for."""
        clean = {key: _finite(value) for key, value in row.items()}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl that can be read; `lost_metrics` says whether that is all of it."""
        return [row for row in self._metrics_lines() if isinstance(row, dict)]

    def lost_metrics(self) -> int:
        """Lines of metrics.jsonl that cannot be read, but for a last one, which a kill may have cut short."""
        return sum(not isinstance(row, dict) for row in self._metrics_lines()[:-1])

    def _metrics_lines(self) -> list[Any]:
        if not self.metrics.is_file():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                rows.append(None)
        return rows

    def logged(self, key: str) -> list[float]:
        """One number of all rows of metrics.jsonl that have it."""
        return [row[key] for row in self.read_metrics() if isinstance(row.get(key), float)]

    def forget_metrics_after(self, step: int) -> None:
        """Drop the rows of steps that a resumed run takes again."""
        rows = [row for row in self.read_metrics() if row.get("step", 0) <= step]
        write_text_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on."""

    run: RunDirectory
    checkpoint: Path
    step: int
    notes: list[str]  # lines for the user: newer checkpoints that were passed over, with the reason


def create_run(output_dir: Path, name: str, *, explicit: bool) -> RunDirectory:
    """Make a new run directory; nothing that exists is touched.

    Args:
        output_dir: Parent folder.
        name: Wanted name.
        explicit: The user chose the name: a taken one is an error. Otherwise it gets a number behind it.

    Raises:
        ConfigError: The name is taken, or the folder cannot be made.
    """
    path = place_of_run(output_dir, name, explicit=explicit)
    with _that_can_be_made(path):
        path.mkdir(parents=True, exist_ok=True)
    return RunDirectory(path)


def place_of_run(output_dir: Path, name: str, *, explicit: bool) -> Path:
    """Where `create_run` would make a run; nothing is made yet.

    Raises:
        ConfigError: The name is taken, or the folder cannot be made.
    """
    path, number = output_dir / name, 2
    with _that_can_be_made(path):
        if explicit and _is_taken(path):
            remedy = f"choose another name, or continue it with resume={shlex.quote(str(path))}"
            raise ConfigError(f"run={name}: {path} exists already; {remedy}")
        while _is_taken(path):
            path, number = output_dir / f"{name}-{number}", number + 1
        above = next(folder for folder in path.parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise PermissionError(errno.EACCES, f"{above} is no folder that can be written to")
    return path


@contextmanager
def _that_can_be_made(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fault = f"cannot make {path} ({error.strerror})"
        raise ConfigError(f"output_dir={path.parent}: {fault}; choose another, or another run=NAME") from error


def _is_taken(path: Path) -> bool:
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def find_resume_point(resume: str, output_dir: Path, name: str) -> ResumePoint | None:
    """Resolve `resume=`.

    A checkpoint; a run directory: its newest whole checkpoint; `auto`: of the newest run of this name that has one.
    None where there is no such run.

    Raises:
        CheckpointError: Nothing to resume from, or the named checkpoint is not whole.
    """
    if resume == "auto":
        return _newest_run(output_dir, name)
    path = resume_folder(resume)
    if (path / MANIFEST).is_file() and path.parent.name == CHECKPOINTS:
        if path.name == BEST:
            raise CheckpointError(f"resume={resume}: best/ holds weights only; resume from a checkpoint-N beside it")
        manifest = verify_checkpoint(path)
        return ResumePoint(RunDirectory(path.parent.parent), path, manifest["step"], [])
    return _from_run(RunDirectory(path))


def resume_folder(resume: str) -> Path:
    """The folder of a run or checkpoint that `resume=` names; what is in it is not looked at.

    Raises:
        CheckpointError: There is none.
    """
    path = named_folder(Path(resume).expanduser().absolute())
    if not path.is_dir():
        raise CheckpointError(f"resume={resume}: {no_such_folder(path)}; give a run directory or a checkpoint in one")
    return path


def _from_run(run: RunDirectory) -> ResumePoint:
    checkpoint, refused = newest_whole_checkpoint(run.checkpoints)
    if checkpoint is None:
        detail = refused[0] if refused else "it holds no checkpoint"
        raise CheckpointError(f"{run.path}: nothing to resume from: {detail}")
    notes = [f"passed over a damaged checkpoint: {line}" for line in refused]
    return ResumePoint(run, checkpoint, verify_checkpoint(checkpoint)["step"], notes)


def restart_run(output_dir: Path, name: str) -> RunDirectory | None:
    """The newest run of that name, which ended before its first checkpoint, emptied; None: there is none."""
    runs = [path for path in _runs_called(name, output_dir) if (path / RECIPE).is_file()]
    if not runs:
        return None
    run = RunDirectory(max(runs, key=lambda path: (path / RECIPE).stat().st_mtime))
    for path in (run.metrics, run.path / PREFLIGHT, run.path / SUMMARY):
        path.unlink(missing_ok=True)
    return run


def _runs_called(name: str, output_dir: Path) -> list[Path]:
    found = output_dir.glob(f"{name}*")
    return [path for path in found if path.name == name or path.name.removeprefix(f"{name}-").isdigit()]


def _newest_run(output_dir: Path, name: str) -> ResumePoint | None:
    ours = [path for path in _runs_called(name, output_dir) if list_checkpoints(RunDirectory(path).checkpoints)]
    if not ours:
        return None
    newest = max(ours, key=lambda path: list_checkpoints(RunDirectory(path).checkpoints)[-1].stat().st_mtime)
    return _from_run(RunDirectory(newest))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
