"""Whether a run may go on under a recipe: only what does not change its course may differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

# Keys, or beginnings of keys, that a resumed run may change: where and how often things are written and measured, how
# long it runs, and how fast the grader answers.
_FREE = (
    "run",
    "output_dir",
    "resume",
    "push",
    "launch.",
    "sharding",
    "report.",
    "checkpoints.",
    "evaluation.",
    "guard.",
    "grader.",
    "trainer.max_steps",
    "trainer.num_train_epochs",
    "trainer.logging_steps",
    "training.steps",
    "training.log_every",
    "training.num_workers",
    "dataset.in_memory",
    "grpo.workers",
    "grpo.films",
    "dataset.video_backend",
)


def as_written_today(stored: Mapping[str, Any], schema: type[BaseModel]) -> dict[str, Any]:
    """A stored recipe with the defaults of keys that have come since; as it is where it is no such recipe."""
    try:
        return schema.model_validate_json(json.dumps(stored)).model_dump(mode="json")
    except ValueError:
        return dict(stored)


def differing_keys(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, stored value, current value) of every difference that would change the course of a run."""
    old, new = _flatten(stored), _flatten(current)
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [(key, old.get(key), new.get(key)) for key in keys if not key.startswith(_FREE)]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
