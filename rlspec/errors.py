"""Errors that a user can cause. Entry points print them as one line on stderr and exit with `exit_code`."""

INTERRUPTED = 130  # exit code after Ctrl-C, as in a shell


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
