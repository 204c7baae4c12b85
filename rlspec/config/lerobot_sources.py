"""Fields of configs of LeRobot and of our policies in its registry, read from source: importing it takes 20 seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rlspec.config.sources import Knob, own_fields, package_folder

_EXTRA = "vla"


def policy_types() -> list[str]:
    """Names that `policy.type` may have."""
    return sorted(_registered(_policy_files()))


def policy_fields(policy: str) -> dict[str, Knob]:
    """Fields of the config of a policy of that type, by name."""
    files = _policy_files()
    return _fields(_registered(files)[policy], _classes(files))


def scheduler_types() -> list[str]:
    """Names that `training.scheduler.type` may have."""
    return sorted(_registered(_scheduler_files()))


def scheduler_fields(scheduler: str) -> dict[str, Knob]:
    """Fields of the config of a scheduler of that type."""
    files = _scheduler_files()
    return _fields(_registered(files)[scheduler], _classes(files))


def transform_fields() -> dict[str, Knob]:
    """Fields of ImageTransformsConfig."""
    files = (package_folder("lerobot", _EXTRA) / "transforms" / "transforms.py",)
    return _fields("ImageTransformsConfig", _classes(files))


def _policy_files() -> tuple[Path, ...]:
    lerobot = package_folder("lerobot", _EXTRA)
    ours = package_folder("rlspec") / "vla" / "policies"
    patterns = ((lerobot, "policies/*/configuration_*.py"), (ours, "*/configuration_*.py"), (ours, "*/settings.py"))
    found = [path for folder, pattern in patterns for path in folder.glob(pattern)]
    return (lerobot / "configs" / "policies.py", *sorted(found))


def _scheduler_files() -> tuple[Path, ...]:
    return (package_folder("lerobot", _EXTRA) / "optim" / "schedulers.py",)


@cache
def _classes(files: tuple[Path, ...]) -> dict[str, ast.ClassDef]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files)
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


@cache
def _registered(files: tuple[Path, ...]) -> dict[str, str]:
    """Name in LeRobot's registry -> class."""
    return {name: node.name for node in _classes(files).values() for name in _names(node)}


def _names(node: ast.ClassDef) -> Iterator[str]:
    """What `@Base.register_subclass("name")` or `(name="name")` calls a class."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(".register_subclass"):
            values = [*decorator.args, *(word.value for word in decorator.keywords)]
            yield from (str(value.value) for value in values if isinstance(value, ast.Constant))


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, Knob]:
    knobs: dict[str, Knob] = {}
    for base in reversed(classes[name].bases):
        if isinstance(base, ast.Name) and base.id in classes:
            knobs |= _fields(base.id, classes)
    return knobs | own_fields(classes[name])
