"""Values of a command line, and of the files that say the same."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def read_value(text: str) -> Any:
    """A value as YAML reads it, but `1e-2` is a number; what is no YAML stays text."""
    import yaml

    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


def read_yaml(text: str) -> Any:
    """YAML in which `1e-2` is a number, as in YAML 1.2 and JSON.

    Raises:
        yaml.YAMLError: The text is none.
    """
    import yaml

    return yaml.load(text, Loader=_loader())  # a safe one


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Of two equal keys one would be lost without a word."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            plain = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            keys = [self.construct_object(key) for key in plain]
            if twice := next((key for position, key in enumerate(keys) if key in keys[:position]), None):
                raise yaml.constructor.ConstructorError(None, None, f"{twice}: stands there twice", node.start_mark)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(rf"^(?:{_EXPONENT.pattern})$"), list("-+0123456789.")
    )
    return Loader
