"""Trials of policies on a robot that count: `python -m rlspec.trials policies=A,B tasks=tabletop robot=NAME`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlspec.deploy.trials.series import TrialsCommand
from rlspec.display import Display
from rlspec.entry import command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a mistake of the user, 130 where the series was paused."""
    return command(TrialsCommand, _trials, argv)


def _trials(line: TrialsCommand) -> int:
    from rlspec.deploy.trials.series import Series

    return Series(line, Display()).run()


if __name__ == "__main__":
    sys.exit(main())
