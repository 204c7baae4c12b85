"""Demonstrations of a data set as something to replay."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.config.paths import resolve_path
from rlspec.config.vla_schema import VlaRecipe
from rlspec.contract.features import STATE
from rlspec.contract.records import DATA_RECORD
from rlspec.errors import ConfigError, DataError
from rlspec.vla.data.demonstrations import demonstrations_root
from rlspec.vla.data.episodes import load_episode_actions
from rlspec.vla.data.exact_statistics import read_columns
from rlspec.vla.droid.prepared import recordings_root
from rlspec.vla.evaluation.checks import TrainingConditions
from rlspec.vla.evaluation.episodes import EpisodePlan


@dataclass(frozen=True)
class Record:
    """One demonstration.

    Attributes:
        actions: (T, a) as they were executed.
        states: (T, n) as they were observed before each action; None where the data set has none.
    """

    actions: NDArray[np.float32]
    states: NDArray[np.float32] | None


@lru_cache(maxsize=4)
def load_record(root: Path, episode: int) -> Record:
    """Read one demonstration.

    Raises:
        DataError: There is no such episode, or its start is unknown.
    """
    actions = load_episode_actions(root, episode).actions
    return Record(actions, _states(root, episode))


def _states(root: Path, episode: int) -> NDArray[np.float32] | None:
    info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
    if STATE not in info["features"]:
        return None
    columns = read_columns(root, ["episode_index", STATE])
    states: NDArray[np.float32] = columns[STATE][columns["episode_index"][:, 0] == episode].astype(np.float32)
    return states


def dataset_folder(recipe: Any) -> Path | None:
    """Where the data set of a recipe is, if it is in a folder."""
    if not isinstance(recipe, VlaRecipe):
        return None
    if recipe.dataset.demonstrations is not None and recipe.env is not None:
        return demonstrations_root(recipe.dataset, recipe.env)
    if recipe.dataset.recordings is not None and recipe.env is not None:
        return recordings_root(recipe.dataset, recipe.env)
    return resolve_path(recipe.dataset.root) if recipe.dataset.root else None


def has_starts(root: Path) -> bool:
    """Whether the data set says how its episodes began, so that they can be replayed; converted ones do not."""
    if not (root / DATA_RECORD).is_file():
        return False
    episodes = read_starts(root).get("episodes") or []
    return bool(episodes) and all("seed" in episode for episode in episodes)


def read_starts(root: Path) -> dict[str, Any]:
    """What the data set says of its environment and of the starts of its episodes.

    Raises:
        DataError: It says nothing, or cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads((root / DATA_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"dataset={root}: its {DATA_RECORD} cannot be read ({error}); replays need a data set of rlspec.collect"
        ) from None
    return content


def plan_replays(root: Path, suite: str, tasks: list[str], per_task: int) -> list[EpisodePlan]:
    """The first `per_task` recorded episodes of every task.

    Raises:
        DataError: The data set cannot be read.
        ConfigError: It was made in another suite.
    """
    content = read_starts(root)
    if not has_starts(root):
        raise DataError(
            f"dataset={root}: it does not say how its episodes began; replays need a data set of rlspec.collect"
        )
    if content["suite"] != suite:
        raise ConfigError(f"dataset={root}: demonstrations of {content['suite']}, the environment is of {suite}")
    plans: list[EpisodePlan] = []
    counts = dict.fromkeys(tasks, 0)
    for number, start in enumerate(content["episodes"]):
        task = str(start["task"])
        if counts.get(task, per_task) < per_task:
            plans.append(EpisodePlan(task, counts[task], start["seed"], start.get("initial_state"), number))
            counts[task] += 1
    return sorted(plans, key=lambda plan: (tasks.index(plan.task), plan.index))


def training_of(root: Path) -> TrainingConditions:
    """Rate and action space of a data set, as far as it says."""
    if (root / DATA_RECORD).is_file():
        content = read_starts(root)
        return TrainingConditions(content.get("control_hz"), content.get("action_space"))
    info = root / "meta" / "info.json"
    if not info.is_file():
        return TrainingConditions()
    return TrainingConditions(fps=float(json.loads(info.read_text(encoding="utf-8"))["fps"]))
