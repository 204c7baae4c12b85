"""Exact statistics of a LeRobotDataset: `python -m rlspec.stats path=DIR [--fix] [against=CHECKPOINT]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.entry import command


class StatsCommand(CommandLine):
    """Statistics over all frames of a LeRobotDataset v3 (mean, std, min, max, q01, q99 of every number), and which of
    those that it stores are others: LeRobot 0.6.1 merges the quantiles of episodes wrongly. Exit code 1 where any is
    wrong.
    """  # noqa: D205

    command = "stats"
    synopsis = ("path=DIR|OWNER/NAME [--fix] [against=CHECKPOINT] [norm_stats=FILE]",)
    example = "path=DIR, or --fix"
    extra = "vla"

    path: Annotated[str, Key("a data set's folder, or its id on the hub (a local copy where there is one)", "DIR")]
    fix: Annotated[bool, Key("replace wrong statistics in meta/stats.json, in one step")] = False
    against: Annotated[
        str | None,
        Key(
            "a policy (run directory, checkpoint or folder) or openpi's norm_stats.json: compare units, ranges, action "
            "space and rate with it; exit code 2 where they do not go together",
            "CHECKPOINT",
        ),
    ] = None
    norm_stats: Annotated[
        Path | None, Key("write mean, std, q01 and q99 of state and actions as openpi's norm_stats.json", "FILE")
    ] = None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 where stored statistics are wrong, 2 for a mistake or a refusal."""
    return command(StatsCommand, _stats, argv)


def _stats(line: StatsCommand) -> int:
    from rlspec.display import Display
    from rlspec.vla.data.statistics_report import report_statistics

    return report_statistics(
        line.path, fix=line.fix, against=line.against, norm_stats=line.norm_stats, display=Display()
    )


if __name__ == "__main__":
    sys.exit(main())
