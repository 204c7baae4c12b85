"""Convert DROID-format recordings: `python -m rlspec.convert source=droid_raw path=DIR out=DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlspec.entry import command
from rlspec.vla.droid.settings import ConvertSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a mistake of the user or no usable episode, 130 after Ctrl-C."""
    return command(ConvertSettings, _convert, argv)


def _convert(settings: ConvertSettings) -> int:
    from rlspec.display import Display
    from rlspec.vla.droid.conversion import convert

    convert(settings, Display())
    return 0


if __name__ == "__main__":
    sys.exit(main())
