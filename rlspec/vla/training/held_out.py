"""The loss on episodes that are not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlspec.contract.records import DATA_RECORD
from rlspec.errors import ConfigError
from rlspec.vla.data.files import read_json
from rlspec.vla.training.order import HELD_OUT, derive_seed
from rlspec.vla.training.samples import Samples
from rlspec.vla.training.state import TrainingState
from rlspec.vla.training.step import StepRunner

BATCHES = 8


@dataclass(frozen=True)
class SomeSamples:
    """Frames of a data set, by their numbers in it."""

    samples: Samples
    indices: NDArray[np.int64]

    @property
    def meta(self) -> Any:
        """LeRobot's metadata, of the whole."""
        return self.samples.meta

    @property
    def episodes(self) -> NDArray[Any]:
        """(N,) episode of each frame."""
        return np.asarray(self.samples.episodes)[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: NDArray[Any]) -> dict[str, Any]:
        """A batch."""
        return self.samples.take(self.indices[indices])


def hold_out(samples: Samples, share: float) -> tuple[Samples, SomeSamples | None]:
    """Split by whole recordings, of which a data set may hold several episodes, the same for every seed of a run.

    Returns:
        What is trained on, and the rest; all and None with share 0.

    Raises:
        ConfigError: There is only one recording.
    """
    if not share:
        return samples, None
    recordings = _recordings(samples)
    numbers = np.unique(recordings)
    if len(numbers) < 2:
        raise ConfigError(f"training.held_out={share:g}: the data has one recording, of which nothing can be held out")
    count = min(max(1, round(share * len(numbers))), len(numbers) - 1)
    chosen = np.random.default_rng(derive_seed(0, HELD_OUT)).permutation(numbers)[:count]
    held = np.isin(recordings, chosen)
    return SomeSamples(samples, np.flatnonzero(~held)), SomeSamples(samples, np.flatnonzero(held))


def _recordings(samples: Samples) -> NDArray[np.int64]:
    """(N,) number of each frame's recording: that of the first episode which is of it, by the data set's record."""
    path = Path(samples.meta.root) / DATA_RECORD
    about = read_json(path).get("episodes", []) if path.is_file() else []
    first: dict[Any, int] = {}
    owners = np.array([first.setdefault(each.get("source", number), number) for number, each in enumerate(about)])
    episodes = np.asarray(samples.episodes, dtype=np.int64)
    return owners[episodes] if len(owners) == samples.meta.total_episodes else episodes


class HeldOutLoss:
    """The mean loss on always the same frames, noise and times, with the weights that are evaluated and kept.

    The policy stays in the mode that it is trained in, so that the number may be compared with the loss of training.

    Args:
        samples: the episodes that are held out.
        runner: of the run.
        every: steps between two measurements.
    """

    def __init__(self, samples: SomeSamples, runner: StepRunner, every: int) -> None:
        self._samples, self._runner, self._every = samples, runner, every
        order = np.random.default_rng(derive_seed(1, HELD_OUT)).permutation(len(samples))
        size = runner.shape.size
        self._parts = [order[start : start + size] for start in range(0, min(len(order), BATCHES * size), size)]
        self.describe = f"{len(np.unique(samples.episodes))} episodes are held out"

    def due(self, step: int, steps: int) -> bool:
        """Whether it is measured after a step, counted from 1."""
        return step % self._every == 0 or step == steps

    @torch.no_grad()
    def measure(self, state: TrainingState) -> float:
        """The loss now."""
        policy, total = state.loaded.policy, 0.0
        with state.averaged():
            for number, part in enumerate(self._parts):
                batch = self._samples.take(part)
                # A pass that no step has: its noise is the same each time.
                loss, _ = self._runner.forward(policy, batch, step=0, number=1_000_000 + number)
                total += float(loss) * len(part)
        return total / sum(map(len, self._parts))
