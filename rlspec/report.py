"""Runs and sweeps as one page to share: `python -m rlspec.report RUN`, curves, symmetry, spectra, answers or films."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.entry import command

NAME = "report.html"


def _page(path: Path | None) -> Path | None:
    if path is None:
        return None
    path = path.expanduser()
    if path.is_dir():
        raise ValueError(f"it is a folder; give a file, for example out={path / NAME}")
    if path.suffix not in (".html", ".htm"):
        raise ValueError("the page is HTML: give a name that ends with .html")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}")
    return path


class ReportCommand(CommandLine):
    """Writes one self-contained page, which needs no network: how the runs learned, the symmetry table, sizes and
    spectra of the updates, answers or films with verdicts, the environment, and the command to run them again.
    Of a sweep, or of several runs: the arms side by side.
    """  # noqa: D205

    command = "report"
    synopsis = ("RUN|SWEEP [RUN|SWEEP ...] [out=FILE.html] [watch=true]",)
    example = "out=report.html"
    positional = "run"

    run: Annotated[list[Path], Key("folders of runs or sweeps, also without the key", "DIR[,DIR]")] = Field(
        min_length=1
    )
    out: Annotated[
        Path | None, AfterValidator(_page), Key(f"the page (default: {NAME} in the folder, of several: here)", "FILE")
    ] = None
    watch: Annotated[bool, Key("write it again while something of it runs; the page follows", "true")] = False
    every: Annotated[float, Key("between two pages", "S")] = Field(10.0, ge=1, le=86_400)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C."""
    return command(ReportCommand, _report, argv)


def _report(line: ReportCommand) -> int:
    from rlspec.reporting.page import Content, watch, write_report

    out = line.out or (line.run[0].expanduser() / NAME if len(line.run) == 1 else Path(NAME))
    words = shlex.join(["python", "-m", "rlspec.report", *map(str, line.run)])

    def write() -> Content:
        return write_report(line.run, out, command=words, reload_seconds=line.every if line.watch else None)

    if line.watch:
        sys.stdout.write(f"watching; the page follows: {out}\n")
    content = watch(write, line.every) if line.watch else write()
    for problem in content.problems:
        sys.stderr.write(f"WARNING: {problem}\n")
    sys.stdout.write(f"{out} ({out.stat().st_size / 1e6:.1f} MB)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
