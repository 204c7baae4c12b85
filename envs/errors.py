"""Errors of environments that a user can mend; wrong arguments are plain ValueErrors."""

from __future__ import annotations


class EnvironmentUnavailable(RuntimeError):
    """Something outside the program is missing (renderer, assets, package): the message names it and the remedy."""
