"""Grade one answer, or check a column of golds before training: `python -m rlspec.grade answer=A gold=B`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.entry import command

UNDECIDED = 3
_OPTIONS = {  # what each kind of call takes beside its own key
    "answer": ("gold", "timeout"),
    "completion": ("gold", "thinking", "timeout"),
    "data": ("gold", "problem", "mutations", "workers", "timeout", "show", "report"),
}


class GradeCommand(CommandLine):
    """The first two print the verdict, its reason and what was compared. The third reads JSONL, JSON, CSV or Parquet as
    training does, reads every gold, grades it against itself and against certainly wrong variants of it, compares golds
    of the same problem, and prints counts by reason, the rows that fail and verdicts per second. Exit code: 0 correct
    (or every row usable), 1 wrong (or some rows fail), 2 a mistake in the arguments, 3 no judgement was possible.
    """  # noqa: D205

    command = "grade"
    synopsis = (
        r"answer='\frac43' gold='\frac{4}{3}'",
        r"completion='so \boxed{4}' gold=4 [thinking=true]",
        "data=PATH [gold=COLUMN] [key=value ...]",
    )
    example = "answer=4"

    answer: Annotated[str | None, Key("of a model", empty=True)] = None
    completion: Annotated[str | None, Key("of a model, with the answer in it", empty=True)] = None
    data: Annotated[Path | None, Key("a file with a column of golds")] = None
    gold: Annotated[
        str | None,
        Key("the reference answer; with data= the column (default: answer, else gold, else solution)", empty=True),
    ] = None
    problem: Annotated[
        str | None, Key("with data= the column of problems (default: problem, else question, else prompt)")
    ] = None
    thinking: Annotated[bool, Key("the completion is of a thinking model", "true")] = False
    mutations: Annotated[int, Key("wrong variants of each gold")] = Field(2, ge=0, le=999_999)
    workers: Annotated[int, Key("processes")] = Field(2, ge=1, le=999_999)
    timeout: Annotated[float, Key("seconds for a verdict, at most 3")] = Field(3.0, gt=0, le=3)
    show: Annotated[int, Key("rows that fail and are shown")] = Field(20, ge=0, le=999_999)
    report: Annotated[Path | None, Key("where all rows that fail go, as JSON")] = None

    @model_validator(mode="after")
    def _one_kind(self) -> GradeCommand:
        given = self.model_fields_set
        kinds = [kind for kind in _OPTIONS if kind in given]
        if len(kinds) != 1:
            raise ValueError("give exactly one of answer=, completion= and data=")
        if idle := sorted(given - {kinds[0], *_OPTIONS[kinds[0]]}):
            raise ValueError(f"{idle[0]}= does nothing with {kinds[0]}=; leave it out")
        if self.data is None and self.gold is None:
            raise ValueError("gold= is missing: the reference answer to compare with")
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command(GradeCommand, _grade, argv)


def _grade(line: GradeCommand) -> int:
    if line.data is None:
        return _grade_one(line)
    from rlspec.rlvr.grading.inspection import inspect_golds

    usable, lines = inspect_golds(
        line.data,
        line.gold,
        problem=line.problem,
        mutations=line.mutations,
        workers=line.workers,
        timeout=line.timeout,
        show=line.show,
        report=line.report,
    )
    _say(*lines)
    return 0 if usable else 1


def _grade_one(line: GradeCommand) -> int:
    from rlspec.rlvr.grading.pool import GraderPool

    gold = line.gold or ""
    with GraderPool(workers=1, timeout=line.timeout, warm=False) as pool:
        if line.completion is not None:
            (verdict,) = pool.grade_many([(line.completion, gold)], thinking=line.thinking)
        else:
            (verdict,) = pool.grade_answers([(line.answer or "", gold)])
    words = {True: "correct", False: "wrong", None: "undecided"}
    _say(f"{words[verdict.correct]}  reason: {verdict.reason}", f"answer: {verdict.extracted}  gold: {gold}")
    return UNDECIDED if verdict.correct is None else 0 if verdict.correct else 1


def _say(*lines: str) -> None:
    sys.stdout.writelines(_printable(line) + "\n" for line in lines)


def _printable(text: str) -> str:
    """Text that any terminal takes: control characters and lone surrogates as escapes."""
    safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in safe)


if __name__ == "__main__":
    sys.exit(main())
