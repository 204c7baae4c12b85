r"""`python -m rlspec.grade`: grade one answer, or check a column of golds before training.

Usage:
    python -m rlspec.grade answer='\frac43' gold='\frac{4}{3}'
    python -m rlspec.grade completion='so \boxed{4}' gold=4 [thinking=true]
    python -m rlspec.grade data=PATH [gold=COLUMN] [mutations=2] [workers=2] [show=20] [report=PATH]

The first two print the verdict, its reason and what was compared. The third reads JSONL, JSON, CSV or Parquet as
training does, grades every gold against itself and against certainly wrong variants of it, and prints counts by
reason, the rows that fail (all of them, as JSON, with report=) and verdicts per second. Default column: `answer`,
else `gold`, else `solution`.

Every key: timeout=3.0 (seconds for a verdict, at most 3).
Exit status: 0 correct (or every row usable), 1 wrong (or some rows fail), 2 wrong usage, 3 no judgement was possible.
"""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rlspec.errors import ConfigError, DataError, UserError

if TYPE_CHECKING:
    from rlspec.rlvr.grading.gold_check import PreflightReport

_KEYS = (
    "answer",
    "completion",
    "data",
    "gold",
    "thinking",
    "mutations",
    "workers",
    "timeout",
    "show",
    "report",
)
_OPTIONS = {  # what each kind of call takes beside its own key
    "answer": ("gold", "timeout"),
    "completion": ("gold", "thinking", "timeout"),
    "data": ("gold", "mutations", "workers", "timeout", "show", "report"),
}
_COLUMNS = ("answer", "gold", "solution")
UNDECIDED = 3


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or any(argument in ("-h", "--help", "help") for argument in arguments):
        _say(__doc__ or "")
        return 0
    try:
        options = _parse(arguments)
        if "data" in options:
            return _check_data(options)
        return _grade_one(options)
    except UserError as error:
        sys.stderr.write(_printable(f"error: {error}\n"))
        return error.exit_code


def _parse(arguments: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            raise ConfigError(f"{argument[:60]}: expected key=value with one of {', '.join(_KEYS)}{hint}")
        if key in options:
            raise ConfigError(f"{key}= is given twice")
        options[key] = value
    kinds = [kind for kind in _OPTIONS if kind in options]
    if len(kinds) != 1:
        raise ConfigError("give exactly one of answer=, completion= and data=")
    idle = [key for key in options if key not in (*kinds, *_OPTIONS[kinds[0]])]
    if idle:
        raise ConfigError(f"{idle[0]}= does nothing with {kinds[0]}=; leave it out")
    if "data" not in options and "gold" not in options:
        raise ConfigError("gold= is missing: the reference answer to compare with")
    return options


def _number(options: dict[str, str], key: str, default: float) -> float:
    try:
        return float(options.get(key, default))
    except ValueError:
        raise ConfigError(f"{key}={options[key]}: expected a number") from None


def _count(options: dict[str, str], key: str, default: int) -> int:
    value = options.get(key, str(default))
    if not (value.isascii() and value.isdigit() and len(value) <= 6):
        raise ConfigError(f"{key}={value[:60]}: expected a whole number from 0 to 999999")
    return int(value)


def _truth(options: dict[str, str], key: str) -> bool:
    value = options.get(key, "false").lower()
    if value not in ("true", "false"):
        raise ConfigError(f"{key}={value}: expected true or false")
    return value == "true"


def _grade_one(options: dict[str, str]) -> int:
    from rlspec.rlvr.grading.pool import GraderPool

    thinking, timeout = _truth(options, "thinking"), _number(options, "timeout", 3.0)
    with GraderPool(workers=1, timeout=timeout, warm=False) as pool:
        if "completion" in options:
            (verdict,) = pool.grade_many([(options["completion"], options["gold"])], thinking=thinking)
        else:
            (verdict,) = pool.grade_answers([(options["answer"], options["gold"])])
    words = {True: "correct", False: "wrong", None: "undecided"}
    _say(f"{words[verdict.correct]}  reason: {verdict.reason}")
    _say(f"answer: {verdict.extracted}  gold: {options['gold']}")
    return UNDECIDED if verdict.correct is None else 0 if verdict.correct else 1


def _check_data(options: dict[str, str]) -> int:
    path = Path(options["data"])
    count, workers = _count(options, "mutations", 2), _count(options, "workers", 2)
    timeout, show = _number(options, "timeout", 3.0), _count(options, "show", 20)
    column, golds = read_golds(path, options.get("gold"))

    from rlspec.rlvr.grading.gold_check import only_plain, preflight, read_as_one_number
    from rlspec.rlvr.grading.pool import GraderPool

    with GraderPool(workers=workers, timeout=timeout, warm=not only_plain(golds)) as pool:
        pool.grade_answers([("1", "1")] * workers)  # so that the rate does not include the start
        report = preflight(golds, pool=pool, mutations_per_row=count)
    if "report" in options:
        rows = [asdict(failure) for failure in report.failures]
        try:
            Path(options["report"]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"report={options['report']}: {error.strerror}") from error
    _print_report(path, column, report, show)
    if joined := read_as_one_number(golds):
        _say(f"{len(joined)} golds with commas, such as {joined[0]!r}, are read as one number")
    return 1 if report.failures else 0


def _print_report(path: Path, column: str, report: PreflightReport, show: int) -> None:
    _say(f"{path}, column {column}: {len(report.accepted)} of {report.rows} golds usable")
    _say(f"{report.mutated} wrong answers tried; {report.unmutated} golds without any")
    for reason, count in report.reasons.most_common():
        _say(f"  {reason:18} {count}")
    _say(f"{report.verdicts_per_second:.0f} verdicts per second ({report.seconds:.2f} s)")
    for failure in report.failures[:show]:
        _say(
            f"row {failure.index}: {failure.check} -> {failure.reason}:"
            f" answer {failure.answer!r}, gold {failure.gold!r}"
        )
    if len(report.failures) > show:
        _say(f"... and {len(report.failures) - show} more: report=PATH writes all of them")


def read_golds(path: Path, column: str | None) -> tuple[str, list[str]]:
    """The column's name and its values as text.

    Raises:
        DataError: the file is missing or unreadable, or has no such column.
    """
    if not path.is_file():
        raise DataError(f"data={path}: no such file")
    from rlspec.rlvr.tables import cell_text, read_file

    rows = read_file(path)
    names = list(rows[0][1])
    name = column or next((one for one in _COLUMNS if one in names), None)
    if name is None or any(name not in row for _, row in rows):
        raise DataError(f"data={path}: not every row has a column {name or 'answer'}; there are {', '.join(names)}")
    return name, [cell_text(row[name], name, place, numbers=True) for place, row in rows]


def _say(line: str) -> None:
    sys.stdout.write(_printable(line) + "\n")


def _printable(text: str) -> str:
    """Text that any terminal takes: control characters and lone surrogates as escapes."""
    safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in safe)


if __name__ == "__main__":
    sys.exit(main())
