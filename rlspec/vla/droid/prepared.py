"""The data of `dataset=droid`: raw recordings generated from the simulation, and what they are converted into."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rlspec.config.vla_schema import Dataset, Env
from rlspec.contract.features import CAMERAS
from rlspec.contract.pictures import DROID_SIZE
from rlspec.display import Display
from rlspec.errors import ConfigError, nearest
from rlspec.vla.droid.generator import default_recordings_name, generate_recordings, recording_settings

_DATA = Path("checkpoints/data")


def recordings_root(dataset: Dataset, env: Env | None) -> Path:
    """Where the converted recordings of a recipe are kept: equal ones are shared by all runs.

    Raises:
        ConfigError: The recipe has no recordings, no environment, or an environment that DROID's robots are not.
    """
    settings = dataset.recordings
    if settings is None or env is None:
        raise ConfigError("dataset.recordings: the recipe has none, or no env to generate them in")
    if dataset.root is not None:
        return Path(dataset.root).expanduser()
    matters = {"recordings": recording_settings(env, settings), "conversion": _conversion(dataset, env)}
    text = json.dumps(matters, sort_keys=True, default=list)
    tasks = "-".join(env.tasks) or "all"
    return _DATA / f"droid-{tasks[:40]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def prepare_recordings(dataset: Dataset, env: Env, display: Display) -> Path:
    """Generate and convert the recordings of a recipe, go on with it, or find it done; returns the data set's folder.

    Raises:
        DataError: The expert fails, or a folder holds something else or cannot be written.
        ConfigError: The environment cannot be made, or is not what DROID's robots are.
    """
    from rlspec.vla.droid.conversion import convert
    from rlspec.vla.droid.settings import ConvertSettings

    root, settings = recordings_root(dataset, env), dataset.recordings
    assert settings is not None, "recordings_root has looked"
    raw = _DATA / default_recordings_name(env, settings)
    if dataset.root is not None:
        raw = root.with_name(f"{root.name}-raw")
    generate_recordings(env, settings, raw, display)
    how = _conversion(dataset, env)
    return convert(
        ConvertSettings(source="droid_raw", path=raw, out=root, **how, seed=settings.seed, workers=settings.workers),
        display,
    )


def _conversion(dataset: Dataset, env: Env) -> dict[str, Any]:
    """Settings of the conversion that the recipe decides."""
    cameras = tuple(dataset.cameras or CAMERAS)
    for name in cameras:
        if name not in CAMERAS:
            raise ConfigError(f"dataset.cameras={name}: recordings have no such camera; {nearest(name, CAMERAS)}")
    size = env.options.get("image_size", DROID_SIZE)
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return {"cameras": cameras, "image_size": (height, width), "instruction": "random"}
