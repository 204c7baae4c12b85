"""The data of a recipe: generated where it must be, opened, and from memory where it shall be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch.utils.data import default_collate

from rlspec.config.paths import resolve_path
from rlspec.config.vla_checks import without_expert
from rlspec.config.vla_schema import Dataset, Env, Policy
from rlspec.display import Display
from rlspec.errors import ConfigError
from rlspec.vla.training.policy import policy_config
from rlspec.vla.training.samples import Samples

OpenSamples = Callable[[Policy, Dataset, Env | None, Display], Samples]


@dataclass(frozen=True)
class Items:
    """A `LeRobotDataset` that is read item by item, in the data loader's workers."""

    dataset: Any

    @property
    def meta(self) -> Any:
        """LeRobot's metadata."""
        return self.dataset.meta

    @property
    def episodes(self) -> NDArray[np.int64]:
        """(N,) episode of each frame."""
        column: NDArray[np.int64] = (
            self.dataset.hf_dataset.with_format(None).data.table.column("episode_index").to_numpy()
        )
        return column

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, indices: NDArray[Any]) -> dict[str, Any]:
        """A batch of items; images are floats in [0, 1]."""
        batch: dict[str, Any] = default_collate([self.dataset[int(index)] for index in indices])
        return {key: value.float() if _is_double(value) else value for key, value in batch.items()}


def _is_double(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64


def open_samples(policy: Policy, dataset: Dataset, env: Env | None, display: Display) -> Samples:
    """Generate the data that is wanted and missing, compare it with policy and simulator, and open it.

    Raises:
        DataError: It cannot be generated or read, or does not agree with the policy or the simulator.
        ConfigError: The policy cannot be had, whose config tells the length of chunks.
    """
    from rlspec.vla.data.frames import FrameStore
    from rlspec.vla.data.opening import open_dataset, policy_delta_indices

    config = policy_config(policy, device="cpu")
    root = _generated(dataset, env, display)
    section = _selected(dataset, root, env, display)
    if root is None:
        _check_foreign(section, display)
    meta = open_dataset(section, root=root).meta
    for note in _preflight(policy, env, config, meta):
        display.warn(note)
    opened = open_dataset(section, root=root, delta_indices=policy_delta_indices(config, meta.features))
    if not dataset.in_memory:
        return Items(opened)
    return FrameStore(opened, image_size=first_size(config))


def _selected(dataset: Dataset, root: Path | None, env: Env | None, display: Display) -> Dataset:
    """The data set with the episodes of the tasks that are asked for."""
    from rlspec.vla.data.opening import read_metadata
    from rlspec.vla.data.selection import with_tasks

    if not dataset.tasks:
        return dataset
    meta = read_metadata(dataset, root)
    chosen = with_tasks(dataset, env, meta)
    display.line(f"dataset.tasks: {len(chosen.episodes or [])} of {meta.total_episodes} episodes")
    return chosen


def first_size(config: Any) -> tuple[int, int] | None:
    """The size to which a policy of ours resizes pictures before anything else; frames are kept in it."""
    size = config.image_size if config.type in ("rlspec_adapter", "rlspec_flow") else None
    return None if size is None else (size, size)


def _preflight(policy: Policy, env: Env | None, config: Any, meta: Any) -> list[str]:
    """Compare the data with policy, checkpoint and simulator."""
    from rlspec.vla.data.facts import read_facts
    from rlspec.vla.data.preflight import checkpoint_statistics, preflight, read_env_facts

    folder = resolve_path(policy.path) if policy.path else None
    local = folder is not None and folder.is_dir()
    checkpoint = checkpoint_statistics(folder) if folder is not None and local else None
    return preflight(
        meta,
        policy=config,
        checkpoint=checkpoint,
        chosen=_chosen(policy, checkpoint, meta),
        facts=read_facts(folder) if folder is not None and local else None,
        env=read_env_facts(env) if env else None,
    )


def _chosen(policy: Policy, checkpoint: Any, meta: Any) -> tuple[str, Any] | None:
    """Statistics that the recipe takes instead of the data's."""
    from rlspec.vla.data.norm_stats import read_norm_stats, vector_sizes

    key = f"policy.norm_stats={policy.norm_stats}"
    if policy.norm_stats == "checkpoint":
        return None if checkpoint is None else (key, checkpoint)
    if policy.norm_stats is None:
        return None
    return key, read_norm_stats(resolve_path(policy.norm_stats), vector_sizes(meta.features))


def _check_foreign(dataset: Dataset, display: Display) -> None:
    """Look for faults in a folder that we have not generated; what is on the hub is checked when it is here."""
    from rlspec.vla.data.checking import check_dataset
    from rlspec.vla.data.files import INFO

    if dataset.root is None:
        return
    root = Path(dataset.root).expanduser()
    if dataset.repo_id is None or (root / INFO).is_file():
        report = check_dataset(root, episodes=dataset.episodes, renamed=dataset.rename, say=display.line)
        display.line(f"checked {root}: {report.describe()}")


def _generated(dataset: Dataset, env: Env | None, display: Display) -> Path | None:
    """The folder of generated data; the main process generates it while the others wait."""
    from rlspec.vla.data.demonstrations import collect, demonstrations_root
    from rlspec.vla.droid.prepared import prepare_recordings

    if env is None or (dataset.demonstrations is None and dataset.recordings is None):
        return None
    for fault in without_expert(env, f"dataset={dataset.name}"):
        raise ConfigError(fault)
    with PartialState().main_process_first():
        if dataset.recordings is not None:
            return prepare_recordings(dataset, env, display)
        assert dataset.demonstrations is not None
        return collect(env, dataset.demonstrations, demonstrations_root(dataset, env), display)
