"""Values of a command line."""

from __future__ import annotations

import re
from typing import Any


def read_value(text: str) -> Any:
    """A value as YAML reads it, but `1e-2` is a number; what is no YAML stays text."""
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", text):
        return float(text)
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
