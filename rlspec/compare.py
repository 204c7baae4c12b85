"""Compare recipes, optimizers, seeds: `python -m rlspec.compare recipe=A,B optim=X,Y seed=0,1,2`, as a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.entry import command


class CompareCommand(CommandLine):
    """Trains every combination of the comma-separated values, each in a process of its own, and writes report.md and
    report.json. A combination that has a summary in DIR is not run again; one that was stopped is resumed:
    after Ctrl-C the same command goes on.
    """  # noqa: D205

    command = "compare"
    synopsis = ("recipe=NAME[,NAME] [optim=NAME[,NAME]] [seed=0,1,2] [key=value[,value]] [workers=N] [out=DIR]",)
    example = "optim=pion,adamw"
    recipe = True

    workers: Annotated[int, Key("runs at a time; the cores are divided among them")] = Field(1, ge=1)
    out: Annotated[Path, Key("of the runs and the report", "DIR")] = Path("checkpoints/compare")
    overrides: list[str] = []


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if a run failed, 2 for a mistake of the user, 130 after Ctrl-C."""
    return command(CompareCommand, _compare, argv)


def _compare(line: CompareCommand) -> int:
    from rlspec.runtime.sweep import sweep

    values = dict(override.partition("=")[::2] for override in line.overrides)
    return sweep(values, line.out, workers=line.workers)


if __name__ == "__main__":
    sys.exit(main())
