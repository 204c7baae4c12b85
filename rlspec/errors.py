"""Errors that a user can cause. Entry points print them as one line on stderr and exit with `exit_code`."""

import difflib
from collections.abc import Iterable

INTERRUPTED = 130  # exit code after Ctrl-C, as in a shell
ONE_SIGNAL = 1.0  # seconds: a scheduler signals all processes, and those that launched another pass it on


class UserError(Exception):
    """Something the user can mend: the message names the offender and the remedy, in one line."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A recipe, an override or an argument is wrong."""


class DataError(UserError, ValueError):
    """A data file is missing, corrupt or has the wrong columns."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete, foreign, or does not match the recipe."""


class RobotError(UserError):
    """A robot is absent, locked, of the wrong model, or refuses; nothing moves."""


class ServerError(UserError):
    """A policy server cannot be reached, refuses, or broke the protocol."""


_ALSO_KNOWN_AS = {"libero_long": "libero_10"}  # names of papers and peers that no likeness of letters finds


def nearest(name: str, allowed: Iterable[str], *, most: int = 48) -> str:
    """The end of a message about an unknown word: the nearest name, and all of them where they are at most `most`.

    A word counts as near at two letters in three, or as the beginning of a name: below, guesses mislead.
    """
    names = sorted(set(allowed))
    name = _ALSO_KNOWN_AS.get(name.lower(), name)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.66)
    if not close and len(name) > 2:
        close = [known for known in names if known.startswith(name)][:1]
    hints = [f"did you mean {close[0]}?"] if close else []
    if len(names) <= most:
        hints.append(f"allowed: {', '.join(names)}")
    return " ".join(hints) or f"{len(names)} are known, none of them similar"
