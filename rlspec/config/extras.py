"""The extras of the package: which one brings what is missing here, and how it is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rlspec

_OTHER_NAMES = {"OpenGL": "pyopengl", "franky": "franky-control", "libero": "hf-libero", "serial": "pyserial"}


def install(*extras: str) -> str:
    """The command, in backticks, that brings the base and extras in versions that fit."""
    if (Path(rlspec.__file__).parents[1] / "uv.lock").is_file():  # a source checkout
        return f"`{' --extra '.join(['uv sync', *extras])}`"
    named = f"[{','.join(extras)}]" if extras else ""
    return f"`pip install {shlex.quote(_origin() + named)}`"


def _origin() -> str:
    """What pip installed: the clone or the wheel that its record names (PEP 610), for no index has rlspec."""
    try:
        record = metadata.distribution("rlspec").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        record = None
    url = urlsplit(json.loads(record)["url"]) if record else urlsplit("")
    return url2pathname(url.path) if url.scheme == "file" else "rlspec"


def not_installed(package: str, extra: str) -> str:
    """The line for a package that a command needs and an extra brings."""
    return f"{package} is not installed: install rlspec with its extra, {install(extra)}"


def extra_of(package: str) -> str | None:
    """The extra that brings a top-level package; None where none does, or where it is installed."""
    name = canonicalize_name(_OTHER_NAMES.get(package, package))
    found = [
        extra[1]
        for requirement in map(Requirement, metadata.requires("rlspec") or [])
        if canonicalize_name(requirement.name) == name
        and (extra := re.search(r'extra == "([\w-]+)"', str(requirement.marker)))
    ]
    if not found or importlib.util.find_spec(package) is not None:
        return None
    return "train" if "train" in found else found[0]  # it brings more than torch, which is seldom missing alone
