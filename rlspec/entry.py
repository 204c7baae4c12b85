"""What all entry points do alike: usage, one line for a mistake of the user, the exit code after Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rlspec.errors import INTERRUPTED, UserError


def run_command(argv: Sequence[str] | None, usage: Callable[[], str], body: Callable[[list[str]], int]) -> int:
    """Run a command; returns its exit code: the body's, 2 for a mistake of the user, 130 after Ctrl-C.

    Args:
        argv: Arguments; None: the process's.
        usage: Text that is shown without arguments and for --help.
        body: Takes the arguments.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(usage())
        return 0
    try:
        return body(arguments)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
