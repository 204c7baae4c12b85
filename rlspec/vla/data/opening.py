"""Opening a LeRobotDataset v3 from a folder or from the hub, under the names that policy and environment use."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from rlspec.config.vla_schema import Dataset
from rlspec.contract.features import ACTION, STATE
from rlspec.contract.records import DATA_RECORD
from rlspec.errors import DataError, nearest
from rlspec.hub import refusal
from rlspec.vla.data.exact_statistics import NotFinite, numeric_statistics, statistics_fault
from rlspec.vla.data.files import INFO

log = logging.getLogger(__name__)

DeltaIndices = Mapping[str, Sequence[int]]  # feature -> frames around the present one


class RenamedDataset(LeRobotDataset):
    """A data set whose features go by other names in items, features and statistics; the files keep theirs."""

    renamed: dict[str, str]  # feature in the files -> name outside

    def rename(self, names: Mapping[str, str]) -> None:
        """Give features other names.

        Raises:
            DataError: There is no such feature, or two would share a name.
        """
        features = self.reader._meta.features
        for old in names:
            if old not in features:
                raise DataError(f"dataset.rename.{old}: the data set has no such feature; {nearest(old, features)}")
        final = [names.get(name, name) for name in features]
        if twice := sorted({name for name in final if final.count(name) > 1}):
            raise DataError(f"dataset.rename: two features would be called {twice[0]}")
        self.renamed = dict(names)
        meta = copy.copy(self.reader._meta)  # the reader goes on with the names in the files
        meta.info = copy.copy(meta.info)
        meta.info.features = {names.get(key, key): value for key, value in features.items()}
        if meta.stats is not None:
            meta.stats = {names.get(key, key): value for key, value in meta.stats.items()}
        meta.renamed = self.renamed
        self.meta = meta

    def __getitem__(self, index: int | slice) -> Any:
        """One item, or those of a slice."""
        item = super().__getitem__(index)
        if isinstance(item, list):  # made by this method, one by one
            return item
        pads = {f"{old}_is_pad": f"{new}_is_pad" for old, new in self.renamed.items()}
        return {self.renamed.get(key, pads.get(key, key)): value for key, value in item.items()}


def open_dataset(
    section: Dataset,
    *,
    root: Path | None = None,
    chunk_size: int | None = None,
    delta_indices: DeltaIndices | None = None,
) -> LeRobotDataset:
    """Open what a recipe's section `dataset` names.

    Args:
        section: source, episodes, names and video backend.
        root: folder of generated demonstrations; None: the section's own.
        chunk_size: items hold this many actions, from the present one on.
        delta_indices: feature (by the policy's name) -> frames around the present one; wins over `chunk_size`.

    Raises:
        DataError: The source cannot be found or read, an episode or a feature does not exist.
    """
    root = root or (Path(section.root).expanduser() if section.root else None)
    if root is not None and section.repo_id is None and not (root / INFO).is_file():
        raise DataError(f"dataset.root={root}: no LeRobotDataset there (no {INFO}); correct the folder")
    deltas = dict(delta_indices or {})
    if chunk_size is not None:
        deltas.setdefault(ACTION, list(range(chunk_size)))
    dataset = _open(section, root)
    _mend_statistics(dataset)
    dataset.rename(section.rename)
    _set_deltas(dataset, deltas)
    return dataset


def read_metadata(section: Dataset, root: Path | None) -> LeRobotDatasetMetadata:
    """What a data set says of itself, before any of its frames is fetched.

    Raises:
        DataError: The source cannot be found or read.
    """
    root = root or (Path(section.root).expanduser() if section.root else None)
    repo_id = section.repo_id or f"rlspec/{root.name if root else section.name}"
    with _explained(section, root):
        return LeRobotDatasetMetadata(repo_id, root=root, revision=section.revision)


def _open(section: Dataset, root: Path | None) -> RenamedDataset:
    repo_id = section.repo_id or f"rlspec/{root.name if root else section.name}"
    with _explained(section, root):
        if section.episodes is not None:
            meta = LeRobotDatasetMetadata(repo_id, root=root, revision=section.revision)
            _check_episodes(section.episodes, meta.total_episodes)
        return RenamedDataset(
            repo_id,
            root=root,
            episodes=section.episodes,
            revision=section.revision,
            video_backend=section.video_backend,
        )


@contextmanager
def _explained(section: Dataset, root: Path | None) -> Iterator[None]:
    """What LeRobot and the hub raise while the body runs, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from lerobot.datasets.utils import BackwardCompatibilityError, ForwardCompatibilityError

    place = section.repo_id or str(root)
    try:
        yield
    except DataError:
        raise
    except (BackwardCompatibilityError, NotImplementedError):
        remedy = "convert it with python -m lerobot.scripts.convert_dataset_v21_to_v30"
        raise DataError(f"dataset {place}: an older format than v3.0; {remedy}") from None
    except ForwardCompatibilityError as error:
        raise DataError(f"dataset {place}: a newer format than this LeRobot reads: {_line(error)}") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        if section.repo_id is None:
            raise DataError(f"dataset {place}: files are missing; generate or download it again") from None
        remedy = "check name, network and `hf auth login`, or give a local copy with dataset.root=FOLDER"
        raise DataError(f"dataset.repo_id={place}: {refusal(error, place)}; {remedy}") from None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"dataset {place}: cannot be read: {_line(error)}") from None


def _mend_statistics(dataset: RenamedDataset) -> None:
    """Put exact statistics of numbers in place of those that LeRobot has merged wrongly; the files stay as they are."""
    root, meta = Path(dataset.root), dataset.meta
    if (root / DATA_RECORD).is_file():  # our own are exact
        return
    try:
        exact = numeric_statistics(root)
    except NotFinite as error:  # which matters in none that is left out, nor in a feature that nobody reads
        try:
            chosen = numeric_statistics(root, dataset.episodes)
        except NotFinite:
            stored = (values for each in (meta.stats or {}).values() for values in each.values())
            if not all(np.isfinite(np.asarray(values, dtype=np.float64)).all() for values in stored):
                raise
            log.warning("statistics of %s are taken as they are stored: %s", dataset.repo_id, error)
            return
        meta.stats = {**(meta.stats or {}), **chosen}
        log.warning("statistics of %s are those of the chosen episodes: %s", dataset.repo_id, error)
        return
    if int(exact["index"]["count"][0]) != meta.total_frames:
        log.warning("only a part of %s is here: its statistics are taken as they are stored", dataset.repo_id)
        return
    if fault := statistics_fault(root, exact):
        log.warning("statistics of %s: %s; training takes those of all frames", dataset.repo_id, fault)
        meta.stats = {**(meta.stats or {}), **exact}


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def _check_episodes(episodes: Sequence[int], total: int) -> None:
    for episode in episodes:
        if not 0 <= episode < total:
            raise DataError(f"dataset.episodes: there is no episode {episode}; the data set has 0 to {total - 1}")


def _set_deltas(dataset: RenamedDataset, deltas: Mapping[str, Sequence[int]]) -> None:
    """Let items hold neighbouring frames; given by the names outside, kept by those in the files."""
    names = {new: old for old, new in dataset.renamed.items()}
    for key in deltas:
        if key not in dataset.meta.features:
            raise DataError(f"delta indices of {key}: no such feature; {nearest(key, dataset.meta.features)}")
    if deltas:
        fps = dataset.meta.fps
        dataset.reader.delta_indices = {names.get(key, key): list(indices) for key, indices in deltas.items()}
        dataset.delta_timestamps = {key: [index / fps for index in indices] for key, indices in deltas.items()}


def policy_delta_indices(config: Any, features: Mapping[str, Any]) -> dict[str, list[int]]:
    """Which neighbouring frames a LeRobot policy wants of each feature, by its config's `*_delta_indices`."""
    wanted: dict[str, list[int]] = {}
    for key in features:
        if key == ACTION:
            indices = config.action_delta_indices
        elif key == "next.reward":
            indices = config.reward_delta_indices
        elif key.startswith("observation."):
            indices = config.observation_delta_indices
            if key == STATE:
                indices = getattr(config, "state_delta_indices", indices)
        else:
            continue
        if indices is not None:
            wanted[key] = list(indices)
    return wanted
