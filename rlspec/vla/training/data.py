"""The data of a recipe: generated where it must be, opened, and from memory where it shall be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from numpy.typing import NDArray
from torch.utils.data import default_collate

from rlspec.config.vla_schema import VlaRecipe
from rlspec.display import Display
from rlspec.vla.training.policy import policy_config
from rlspec.vla.training.samples import Samples

OpenSamples = Callable[[VlaRecipe, Display], Samples]


@dataclass(frozen=True)
class Items:
    """A `LeRobotDataset` that is read item by item, in the data loader's workers."""

    dataset: Any

    @property
    def meta(self) -> Any:
        """LeRobot's metadata."""
        return self.dataset.meta

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, indices: NDArray[Any]) -> dict[str, Any]:
        """A batch of items; images are floats in [0, 1]."""
        batch: dict[str, Any] = default_collate([self.dataset[int(index)] for index in indices])
        return batch


def open_samples(recipe: VlaRecipe, display: Display) -> Samples:
    """Generate the demonstrations that are wanted and missing, compare with policy and simulator, and open the data.

    Raises:
        DataError: It cannot be generated or read, or does not agree with the policy or the simulator.
        ConfigError: The policy cannot be had, whose config tells the length of chunks.
    """
    from rlspec.vla.data.frames import FrameStore
    from rlspec.vla.data.opening import open_dataset, policy_delta_indices
    from rlspec.vla.data.preflight import preflight, read_env_facts

    config = policy_config(recipe.policy, device="cpu")
    root = _demonstrations(recipe, display)
    dataset = open_dataset(recipe.dataset, root=root)
    for note in preflight(dataset.meta, policy=config, env=read_env_facts(recipe.env) if recipe.env else None):
        display.warn(note)
    deltas = policy_delta_indices(config, dataset.meta.features)
    dataset = open_dataset(recipe.dataset, root=root, delta_indices=deltas)
    return FrameStore(dataset) if recipe.dataset.in_memory else Items(dataset)


def _demonstrations(recipe: VlaRecipe, display: Display) -> Path | None:
    """The folder of generated demonstrations; the main process generates them while the others wait."""
    from rlspec.vla.data.demonstrations import collect, demonstrations_root

    settings = recipe.dataset.demonstrations
    if settings is None or recipe.env is None:
        return None
    root = demonstrations_root(recipe)
    with PartialState().main_process_first():
        collect(recipe.env, settings, root, display)
    return root
