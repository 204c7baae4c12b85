"""Serve a policy to robots: a WebSocket that openpi's and RoboArena's clients understand."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlspec.config.command import CommandLine
from rlspec.entry import command
from rlspec.serving.settings import ServedPolicy, ServerSettings


class ServeCommand(CommandLine, ServerSettings, ServedPolicy):
    """A policy answers observations with chunks of actions until SIGTERM or Ctrl-C."""

    command = "serve"
    synopsis = ("checkpoint=WHAT [key=value ...]", "policy=hold|zeros|replay:FILE [key=value ...]")
    example = "checkpoint=DIR"
    below = {"camera": "wire_keys"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 after SIGTERM, 130 after Ctrl-C, 2 for a mistake of the user."""
    return command(ServeCommand, _serve, argv)


def _serve(line: ServeCommand) -> int:
    from rlspec.serving.settings import tls_context

    tls_context(line)  # before a model is loaded for minutes
    if line.policy is not None:
        from rlspec.serving.choosing import built_in_policy as build
    else:
        from rlspec.vla.served import trained_policy as build
    policy = build(line)
    from rlspec.serving.run import serve_policy

    return serve_policy(policy, line)


if __name__ == "__main__":
    sys.exit(main())
