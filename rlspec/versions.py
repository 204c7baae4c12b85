"""Versions of rlspec and of the libraries that decide a run's numbers."""

from __future__ import annotations

import platform
from importlib import metadata

from rlspec import __version__

_LIBRARIES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "math-verify"),
    *("lerobot", "gymnasium", "mujoco", "robosuite", "hf-libero"),
)


def library_versions() -> dict[str, str]:
    """Name -> version of what is installed, without importing it."""
    versions = {"rlspec": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
