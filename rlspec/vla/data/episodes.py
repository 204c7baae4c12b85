"""Stored episodes as what a simulator can repeat."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.features import ACTION, EXECUTED
from rlspec.contract.records import DATA_RECORD
from rlspec.errors import DataError
from rlspec.vla.data.files import INFO, read_columns


@dataclass(frozen=True)
class EpisodeActions:
    """A demonstration's start and what was done.

    Attributes:
        suite: of environments.
        task: its name in the suite.
        seed: of the reset.
        initial_state: index of a stored initial state, where the suite has such and one was used.
        actions: (T, a) float32, as they were executed.
    """

    suite: str
    task: str
    seed: int
    initial_state: int | None
    actions: NDArray[np.float32]


def load_episode_actions(root: Path | str, episode: int) -> EpisodeActions:
    """Read one demonstration from a data set that `rlspec collect` wrote.

    Raises:
        DataError: The data set says nothing about the starts of its episodes, or has no such episode.
    """
    root = Path(root)
    try:
        record = json.loads((root / DATA_RECORD).read_text(encoding="utf-8"))
        episodes = record["episodes"]
    except FileNotFoundError:
        raise DataError(
            f"{root}: no {DATA_RECORD}, so the starts of its episodes are unknown and cannot be replayed; "
            "set evaluation.replay=0"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{root / DATA_RECORD}: cannot be read ({error}); generate the data again") from None
    if not 0 <= episode < len(episodes):
        raise DataError(f"{root}: no episode {episode}; it has {len(episodes)}")
    names = json.loads((root / INFO).read_text(encoding="utf-8"))["features"]
    key = EXECUTED if EXECUTED in names else ACTION
    columns = read_columns(root, ["episode_index", key])
    chosen = columns["episode_index"][:, 0] == episode
    start = episodes[episode]
    return EpisodeActions(
        suite=record["suite"],
        task=start["task"],
        seed=start["seed"],
        initial_state=start["initial_state"],
        actions=columns[key][chosen].astype(np.float32),
    )
