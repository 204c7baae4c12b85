"""What a run shows: a live progress bar with lines above it on a terminal, plain lines in a pipe or a log file."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DisplayMode = Literal["auto", "rich", "plain"]


class _Relay(logging.Handler):
    def __init__(self, display: Display) -> None:
        super().__init__()
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        show = self.display.warn if record.levelno >= logging.WARNING else self.display.line
        show(record.getMessage())


class Display:
    """Writes lines to stdout; `steps` adds a bar where stdout is a terminal."""

    def __init__(self, mode: DisplayMode = "auto", *, quiet: bool = False) -> None:
        from rich.console import Console  # a robot's loop is imported without it

        live = mode == "rich" or (mode == "auto" and sys.stdout.isatty())
        # Markup and highlighting off: lines hold brackets and numbers of their own.
        self.console = Console(force_terminal=live or None, markup=False, highlight=False, soft_wrap=True, quiet=quiet)
        self._live = live
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def line(self, text: str = "") -> None:
        """One line, at once, also into a pipe."""
        self.console.print(text)
        self.console.file.flush()

    def heading(self, text: str) -> None:
        """A line that starts a part of the output."""
        self.console.print(text, style="bold" if self._live else None)
        self.console.file.flush()

    def warn(self, text: str) -> None:
        """A line that must not be overlooked."""
        self.console.print(f"WARNING: {text}", style="bold yellow" if self._live else None)
        self.console.file.flush()

    def relay_messages_of(self, package: str) -> None:
        """Show what the package logs and warns about; other libraries' warnings keep their way."""
        logger = logging.getLogger(package)
        logger.handlers = [_Relay(self)]
        logger.setLevel(logging.INFO)
        logger.propagate = False
        theirs = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
            if f"/{package}/" in filename.replace("\\", "/"):
                self.warn(str(message))
            else:
                theirs(message, category, filename, *rest)

        warnings.showwarning = show  # type: ignore[assignment]

    @contextmanager
    def steps(self, total: int, start: int = 0) -> Iterator[None]:
        """Show a bar over `total` optimizer steps while the body runs."""
        if not self._live:
            yield
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            self._progress, self._task = progress, progress.add_task("", total=total, completed=start)
            try:
                yield
            finally:
                self._progress = self._task = None

    def step(self, row: Mapping[str, Any], total: int, panel: str = "") -> None:
        """The line of one logged step; `panel` is what probes say of it."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=row["step"], description=_headline(row))
        self.line(format_step(row, total, panel))


def _headline(row: Mapping[str, Any]) -> str:
    value = row.get("reward", row.get("loss"))
    name = "reward" if "reward" in row else "loss"
    return f"{name} {value:.3f}" if isinstance(value, float) else ""


# column heading, key of the metric, format
_COLUMNS = (
    ("reward", "reward", ".3f"),
    ("loss", "loss", "+.4f"),
    ("length", "completions/mean_length", ".1f"),
    ("truncated", "completions/clipped_ratio", ".0%"),
    ("boxed", "grader/box_rate", ".0%"),
    ("entropy", "entropy", ".3f"),
    ("seconds", "step_time", ".2f"),
)


def format_step(row: Mapping[str, Any], total: int, panel: str = "") -> str:
    """`step  12/60  reward 0.531  ...`, and behind it what probes say."""
    width = len(str(total))
    parts = [f"step {row['step']:>{width}}/{total}"]
    parts += [f"{name} {row[key]:{form}}" for name, key, form in _COLUMNS if isinstance(row.get(key), (int, float))]
    return "  ".join([*parts, panel] if panel else parts)
