"""What a conversion is told, from `key=value` arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rlspec.config.arguments import split_setting
from rlspec.contract.actions import ACTION_SPACES, EXECUTION_LAWS, JOINT_VELOCITY
from rlspec.contract.features import CAMERAS
from rlspec.contract.pictures import DROID_SIZE
from rlspec.errors import ConfigError, nearest

SOURCES = ("droid_raw", "droid_rlds", "lerobot")


@dataclass(frozen=True)
class ConvertSettings:
    """One conversion; `rlspec.convert.USAGE` explains them."""

    source: str
    path: Path
    out: Path
    action_space: str = JOINT_VELOCITY
    cameras: tuple[str, ...] = CAMERAS
    instruction: str = "first"
    success: str = "only"
    idle: str = "keep"
    bgr: bool = False
    image_size: tuple[int, int] = DROID_SIZE
    fps: int | None = None
    source_fps: float | None = None
    source_action: str | None = None
    execution_law: str | None = None
    annotations: Path | None = None
    video: bool = True
    limit: int | None = None
    seed: int = 0
    workers: int = 2

    def what_matters(self) -> dict[str, Any]:
        """All that decides what is in the data set, as JSON holds it; workers and the target do not."""
        values = {key: value for key, value in asdict(self).items() if key not in ("workers", "out")}
        return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.expanduser().resolve())
    return list(value) if isinstance(value, tuple) else value


def parse_settings(arguments: Sequence[str]) -> ConvertSettings:
    """Arguments as settings.

    Raises:
        ConfigError: An unknown key or value, with the nearest one, or one that is missing.
    """
    known = [field.name for field in fields(ConvertSettings)]
    given: dict[str, str] = {}
    for argument in arguments:
        key, value = split_setting(argument, "source=droid_raw")
        if key not in known:
            raise ConfigError(f"{argument}: unknown key; {nearest(key, known)}")
        given[key] = value
    for key, example in (("source", "|".join(SOURCES)), ("path", "DIR"), ("out", "DIR")):
        if not given.get(key):
            raise ConfigError(f"{key}: required; add {key}={example}")
    values = {key: _READERS[key](key, value) for key, value in given.items()}
    return _checked(ConvertSettings(**values))


def _checked(settings: ConvertSettings) -> ConvertSettings:
    if not settings.path.is_dir():
        raise ConfigError(f"path={settings.path}: no such folder; give the folder of the recordings")
    if settings.path.resolve() == settings.out.resolve():
        raise ConfigError(f"out={settings.out}: that is path=; choose another folder")
    if settings.annotations is not None and settings.source != "droid_raw":
        raise ConfigError("annotations: only source=droid_raw has its instructions in a file apart; leave it out")
    if settings.source_action is not None and settings.source != "lerobot":
        raise ConfigError("source_action: only source=lerobot has actions without a name; leave it out")
    if settings.video and (settings.image_size[0] % 2 or settings.image_size[1] % 2):
        size = "x".join(map(str, settings.image_size))
        raise ConfigError(f"image_size={size}: H.264 wants even numbers; choose others, or video=false")
    return settings


def _one_of(allowed: Sequence[str]) -> Callable[[str, str], str]:
    def read(key: str, value: str) -> str:
        if value not in allowed:
            raise ConfigError(f"{key}={value}: {nearest(value, allowed)}")
        return value

    return read


def _folder(key: str, value: str) -> Path:
    return Path(value).expanduser()


def _file(key: str, value: str) -> Path:
    path = Path(value).expanduser()
    if not path.is_file():
        raise ConfigError(f"{key}={value}: no such file; correct the path")
    return path


def _flag(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"{key}={value}: write {key}=true or {key}=false")
    return value.lower() == "true"


def _at_least(lowest: int) -> Callable[[str, str], int]:
    def read(key: str, value: str) -> int:
        if not re.fullmatch(r"\d+", value) or int(value) < lowest:
            raise ConfigError(f"{key}={value}: a whole number of at least {lowest} is wanted")
        return int(value)

    return read


def _rate(key: str, value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1e4:
        raise ConfigError(f"{key}={value}: frames per second are wanted, for example {key}=15")
    return rate


def _size(key: str, value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", value)
    if found is None or not (8 <= int(found[1]) <= 4096 and 8 <= int(found[2]) <= 4096):
        raise ConfigError(f"{key}={value}: height and width in pixels are wanted, for example {key}=180x320")
    return int(found[1]), int(found[2])


def _cameras(key: str, value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    for name in names:
        if name not in CAMERAS:
            raise ConfigError(f"{key}={value}: no camera {name}; {nearest(name, CAMERAS)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"{key}={value}: a camera is named twice")
    return names


def _instruction(key: str, value: str) -> str:
    choices = ("first", "random", "all")
    if value not in choices and not re.fullmatch(r"\d", value):
        raise ConfigError(f"{key}={value}: {nearest(value, choices)}, or an index from 0")
    return value


_READERS: Mapping[str, Callable[[str, str], Any]] = {
    "source": _one_of(SOURCES),
    "path": _folder,
    "out": _folder,
    "action_space": _one_of(tuple(ACTION_SPACES)),
    "cameras": _cameras,
    "instruction": _instruction,
    "success": _one_of(("only", "all")),
    "idle": _one_of(("keep", "drop")),
    "bgr": _flag,
    "image_size": _size,
    "fps": _at_least(1),
    "source_fps": _rate,
    "source_action": _one_of(tuple(ACTION_SPACES)),
    "execution_law": _one_of(tuple(EXECUTION_LAWS)),
    "annotations": _file,
    "video": _flag,
    "limit": _at_least(1),
    "seed": _at_least(0),
    "workers": _at_least(1),
}
