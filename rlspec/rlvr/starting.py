"""How a resumed run of TRL's trainers may differ from its stored recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlspec.config.schema import Recipe

_LENGTH = ("max_steps", "num_train_epochs")


def stretched_schedule(recipe: Recipe, stored: Mapping[str, Any]) -> str | None:
    """The schedule of the learning rate, if it spans the run and the run's length has changed."""
    schedule = str(recipe.trainer.get("lr_scheduler_type", "linear"))
    same = all(stored["trainer"].get(key) == recipe.trainer.get(key) for key in _LENGTH)
    return None if same or schedule.startswith("constant") else schedule
