"""Arguments of a command line."""

from __future__ import annotations

from rlspec.errors import ConfigError


def split_setting(argument: str, example: str) -> tuple[str, str]:
    """The key and the value, as text, of `key=value`.

    Args:
        argument: Of the command line.
        example: A setting that the command knows, for the message.

    Raises:
        ConfigError: There is no `=`.
    """
    key, separator, value = argument.partition("=")
    if not separator:
        raise ConfigError(f"{argument!r} is no setting: write key=value, for example {example}")
    return key, value
