"""What all entry points do alike: usage, one line for a mistake of the user, the exit code after Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rlspec.config.command import CommandLine
from rlspec.errors import INTERRUPTED, UserError


def command[Line: CommandLine](
    schema: type[Line], body: Callable[[Line], int], argv: Sequence[str] | None = None, *, bare: bool = False
) -> int:
    """Run a command; returns its exit code: the body's, 2 for a mistake of the user, 130 after Ctrl-C.

    Args:
        schema: Of the command line.
        body: Takes what was read.
        argv: Arguments; None: the process's.
        bare: It may go without arguments, where others show their usage.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if {"-h", "--help"} & set(arguments) or not (arguments or bare):
            from rlspec.config.usage import usage

            sys.stdout.write(usage(schema))
            return 0
        return body(schema.read(arguments))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except ModuleNotFoundError as error:
        from rlspec.config.extras import extra_of, not_installed

        package = (error.name or "").partition(".")[0]
        if (extra := extra_of(package)) is None:
            raise
        sys.stderr.write(f"rlspec {schema.command}: {not_installed(package, schema.extra or extra)}\n")
        return UserError.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
