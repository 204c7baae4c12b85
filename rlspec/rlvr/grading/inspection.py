"""A column of golds looked at before training: which of them can be graded, and how fast."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rlspec.errors import DataError
from rlspec.rlvr.grading.gold_check import PreflightReport, only_plain, preflight, read_as_one_number
from rlspec.rlvr.grading.pool import GraderPool
from rlspec.rlvr.tables import cell_text, read_file

_COLUMNS = ("answer", "gold", "solution")
_PROBLEMS = ("problem", "question", "prompt")


def inspect_golds(
    path: Path,
    column: str | None,
    *,
    problem: str | None = None,
    mutations: int,
    workers: int,
    timeout: float,
    show: int,
    report: Path | None,
) -> tuple[bool, list[str]]:
    """Grade every gold against itself and against certainly wrong variants of it; name rows that contradict another.

    Args:
        path: JSONL, JSON, CSV or Parquet.
        column: Name; None: the first there is of `answer`, `gold`, `solution`.
        problem: Name of the column of problems; None: the first there is of `problem`, `question`, `prompt`, or none.
        mutations: Wrong variants of each gold.
        workers: Processes.
        timeout: Seconds for a verdict.
        show: Rows that fail and are told.
        report: Where all rows that fail go, as JSON.

    Returns:
        Whether every gold can be used, and what to print.

    Raises:
        DataError: The file cannot be read, or the report not be written.
    """
    name, golds, problems = read_golds(path, column, problem)
    with GraderPool(workers=workers, timeout=timeout, warm=not only_plain(golds)) as pool:
        pool.grade_answers([("1", "1")] * workers)  # so that the rate does not include the start
        found = preflight(golds, problems=problems, pool=pool, mutations_per_row=mutations)
    if report is not None:
        rows = [asdict(failure) for failure in found.failures]
        try:
            report.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"report={report}: {error.strerror}") from error
    lines = list(_lines(path, name, found, show))
    if joined := read_as_one_number(golds):
        lines.append(f"{len(joined)} golds with commas, such as {joined[0]!r}, are read as one number")
    return not found.failures, lines


def _lines(path: Path, column: str, report: PreflightReport, show: int) -> Iterator[str]:
    yield f"{path}, column {column}: {len(report.accepted)} of {report.rows} golds usable"
    yield f"{report.mutated} wrong answers tried; {report.unmutated} golds without any"
    for reason, count in report.reasons.most_common():
        yield f"  {reason:18} {count}"
    yield f"{report.verdicts_per_second:.0f} verdicts per second ({report.seconds:.2f} s)"
    for failure in report.failures[:show]:
        row = f"row {failure.index}: {failure.check} -> {failure.reason}"
        yield f"{row}: answer {failure.answer!r}, gold {failure.gold!r}"
    if len(report.failures) > show:
        yield f"... and {len(report.failures) - show} more: report=PATH writes all of them"


def read_golds(path: Path, column: str | None, problem: str | None = None) -> tuple[str, list[str], list[str] | None]:
    """The column's name, its values as text, and the problems as text where there are any.

    Raises:
        DataError: the file is missing or unreadable, or has no such column.
    """
    if not path.is_file():
        raise DataError(f"data={path}: no such file")
    rows = read_file(path)
    names = list(rows[0][1])
    name = column or next((one for one in _COLUMNS if one in names), None)
    for wanted, given in ((name or "answer", True), (problem, problem is not None)):
        if given and any(wanted not in row for _, row in rows):
            raise DataError(f"data={path}: not every row has a column {wanted}; there are {', '.join(names)}")
    assert name is not None
    stated = problem or next((one for one in _PROBLEMS if all(isinstance(row.get(one), str) for _, row in rows)), None)
    remedy = "gold=COLUMN names another"
    golds = [cell_text(row[name], name, place, numbers=True, remedy=remedy) for place, row in rows]
    return name, golds, [str(row[stated]) for _, row in rows] if stated else None
