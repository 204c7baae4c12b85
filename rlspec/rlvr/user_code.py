"""Functions and classes of the user's, named in a recipe by module or file."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlspec.errors import ConfigError, nearest


def load_callable(name: str, key: str) -> Callable[..., Any]:
    """What stands behind `module:function` or `file.py:Class`; the current folder counts as a place of modules.

    Args:
        name: as the recipe has it.
        key: of the recipe, for messages.

    Raises:
        ConfigError: There is none, or its module fails.
    """
    place, _, attribute = name.rpartition(":")
    given = f"{key}={name}"
    if os.getcwd() not in sys.path:  # an installed command has its own folder there instead
        sys.path.append(os.getcwd())
    try:
        found: Any = _import_file(Path(place).expanduser()) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever a user's module raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{given}: {place} cannot be imported ({reason})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{given}: {place} has no {attribute}; {nearest(part, vars(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{given}: not a function but {type(found).__name__}")
    return found


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import would, for dataclasses and pickling
    spec.loader.exec_module(module)
    return module


def finish(awaitable: Awaitable[Any]) -> Any:
    """What an asynchronous function gives in the end, in a notebook too, in whose thread a loop is running."""

    async def wait() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()
