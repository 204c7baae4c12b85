"""What a study found: a table for the terminal, numbers as JSON, a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import matplotlib

from rlspec.checkpoint import write_json_atomically
from rlspec.display import Display
from rlspec.errors import ConfigError

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - the backend first
from matplotlib.figure import Figure  # noqa: E402

Row = Mapping[str, Any]
_SILENT = 5.0  # seconds without a line of progress


@dataclass(frozen=True)
class Table:
    """Rows of a table.

    Attributes:
        title: a line above it.
        rows: name of a column -> value; columns are those of the first row.
    """

    title: str
    rows: Sequence[Row]

    def lines(self) -> Iterator[str]:
        """As text: words to the left, numbers to the right with three digits that count."""
        if not self.rows:
            return
        columns = list(self.rows[0])
        cells = [[_cell(row.get(name)) for name in columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        words = [any(isinstance(row.get(name), str) for row in self.rows) for name in columns]
        yield self.title
        for line in (columns, *cells):
            pairs = zip(line, widths, words, strict=True)
            parts = [cell.ljust(width) if word else cell.rjust(width) for cell, width, word in pairs]
            yield ("  " + "  ".join(parts)).rstrip()


@dataclass(frozen=True)
class StudyResult:
    """The outcome of a study.

    Attributes:
        tables: what the terminal shows.
        notes: sentences below them.
        numbers: all that was measured, in plain types, for the JSON file.
        draw: fills an empty figure; None: nothing to draw.
        size: of the figure, in inches.
    """

    tables: Sequence[Table]
    notes: Sequence[str]
    numbers: Mapping[str, Any]
    draw: Callable[[Figure], None] | None = None
    size: tuple[float, float] = (12.0, 4.5)
    files: Mapping[str, str] = field(default_factory=dict)  # further texts to write: name -> content


def show_result(result: StudyResult, display: Display) -> None:
    """Print tables and notes."""
    for table in result.tables:
        display.line()
        for line in table.lines():
            display.line(line)
    if result.notes:
        display.line()
    for note in result.notes:
        display.line(note)


def write_result(result: StudyResult, folder: Path, name: str, *, title: str) -> list[Path]:
    """Write `name.json`, and `name.png` where there is something to draw; returns what was written.

    Raises:
        ConfigError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{name}.json"]
        content = {"title": title, "tables": {table.title: list(table.rows) for table in result.tables}}
        write_json_atomically(written[0], plain({**content, "notes": list(result.notes), **result.numbers}))
        for file, text in result.files.items():
            written.append(folder / file)
            written[-1].write_text(text, encoding="utf-8")
        if result.draw is not None:
            figure = plt.figure(figsize=result.size, layout="constrained")
            result.draw(figure)
            figure.suptitle(title, fontsize=11)
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=110)
            plt.close(figure)
    except OSError as error:
        raise ConfigError(f"out={folder}: cannot be written: {error.strerror}") from error
    return written


def plain(value: Any) -> Any:
    """The same in JSON's types: six digits of a number, null for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def watched[Item](items: Sequence[Item], display: Display, what: str) -> Iterator[Item]:
    """The items, with a line of progress where nothing has been said for some seconds."""
    said = monotonic()
    for number, item in enumerate(items):
        if monotonic() - said > _SILENT:
            display.line(f"  {what}: {number}/{len(items)}")
            said = monotonic()
        yield item


def mean(values: Iterable[float]) -> float:
    """Of those that are finite; NaN where there is none."""
    kept = [value for value in values if math.isfinite(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e5):
        return f"{value:.1e}"
    return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:.0f}"
