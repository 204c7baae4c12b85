"""What works for LIBERO on this machine, and the remedy for what does not; loads no scene."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any

from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.libero.assets import find_assets
from rlspec_envs.libero.bootstrap import INSTALL, cache_folder, package_folder
from rlspec_envs.rendering import choose_gl

TESTED_VERSIONS = {"hf-libero": "0.1.4", "robosuite": "1.4.0"}


def describe_libero() -> dict[str, Any]:
    """Report on LIBERO without importing it, JSON-safe.

    Returns:
        `versions` {distribution: version or None}, `package` and `assets` (folders or None), `assets_source`, `cache`,
        `gl` (renderer or None), and `problems`, a list of {"problem", "remedy"}; empty when LIBERO can run.
    """
    report: dict[str, Any] = {"versions": {}, "package": None, "assets": None, "assets_source": None, "gl": None}
    problems: list[dict[str, str]] = []
    for name, tested in TESTED_VERSIONS.items():
        version = report["versions"][name] = _version(name)
        if version is not None and version != tested:
            problems.append({"problem": f"{name} {version} was never tested, {tested} was", "remedy": INSTALL})
    try:
        package = package_folder()
        report["package"] = str(package)
        assets = find_assets(package, allow_download=False)
        report.update(assets=str(assets.folder), assets_source=assets.source)
    except EnvironmentUnavailable as error:
        problems.append(_as_problem(error))
    report["cache"] = str(cache_folder())
    if "XDG_CACHE_HOME" in os.environ and not report["cache"].startswith(os.environ["XDG_CACHE_HOME"]):
        problems.append({"problem": "XDG_CACHE_HOME cannot be written", "remedy": "set it to a folder of your own"})
    try:
        report["gl"] = choose_gl()
    except EnvironmentUnavailable as error:
        problems.append(_as_problem(error))
    return report | {"problems": problems}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _as_problem(error: EnvironmentUnavailable) -> dict[str, str]:
    """Messages of `EnvironmentUnavailable` read "problem: remedy"."""
    problem, _, remedy = str(error).rpartition(": ")
    return {"problem": problem or remedy, "remedy": remedy}
