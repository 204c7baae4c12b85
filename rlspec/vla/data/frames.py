"""A data set in memory: every frame decoded once, batches by indexing.

Decoding a picture costs about as much as a tiny policy's step on it, so a small data set is trained on from memory.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor
from torch.nn import functional as F

from rlspec.contract.features import TASK, picture_shape
from rlspec.errors import DataError
from rlspec.vla.data.files import is_numeric

Batch = dict[str, Any]  # name -> tensor; "task" -> list of str
Size = tuple[int, int]  # height and width
_SHARE = 0.8  # of the free memory that frames may take


def memory_estimate(dataset: LeRobotDataset, image_size: Size | None = None) -> int:
    """Bytes that the decoded pictures take, in their own size or in another one."""
    shapes = [picture_shape(dataset.meta.features[key]) for key in dataset.meta.camera_keys]
    pixels = sum(int(np.prod(image_size or shape[:2])) * shape[2] for shape in shapes)
    return pixels * len(dataset)


def check_memory(dataset: LeRobotDataset, image_size: Size | None = None) -> str:
    """One line about the memory that the frames take.

    Raises:
        DataError: They do not fit.
    """
    needed, free = memory_estimate(dataset, image_size), psutil.virtual_memory().available
    text = f"{len(dataset)} frames take {needed / 1e9:.2f} GB of memory"
    if needed > _SHARE * free:
        raise DataError(
            f"dataset.in_memory=true: {text}, {free / 1e9:.2f} GB are free; set dataset.in_memory=false, "
            "or choose fewer dataset.episodes"
        )
    return text


class FrameStore:
    """The items of a `LeRobotDataset`, from memory.

    Attributes:
        meta: the data set's metadata.
        delta_indices: feature -> neighbouring frames that items hold.
        episodes: (N,) episode of each frame.
    """

    def __init__(self, dataset: LeRobotDataset, *, decoders: int = 2, image_size: Size | None = None) -> None:
        """Decode all frames.

        Args:
            dataset: as `open_dataset` gives it; its image transforms are not applied.
            decoders: threads.
            image_size: pictures are kept in this size, to which the policy would resize them; None: in their own.

        Raises:
            DataError: The frames do not fit into memory.
        """
        check_memory(dataset, image_size)
        self.meta = dataset.meta
        names = getattr(dataset, "renamed", {})
        deltas = dataset.reader.delta_indices or {}
        self.delta_indices = {names.get(key, key): list(indices) for key, indices in deltas.items()}
        rows = dataset.hf_dataset.with_format(None).data.table
        self._columns = {
            names.get(key, key): _column(rows.column(key), feature["dtype"])
            for key, feature in dataset.reader._meta.features.items()
            if is_numeric(feature)
        }
        self.episodes = self._columns["episode_index"].numpy()
        with ThreadPoolExecutor(decoders) as pool:
            self._frames = {
                names.get(key, key): _pictures(dataset, rows, key, pool, image_size)
                for key in dataset.reader._meta.camera_keys
            }
        self._set_bounds()
        self._tasks = list(self.meta.tasks.sort_values("task_index").index)

    def _set_bounds(self) -> None:
        """First row of each frame's episode, and the one after its last."""
        edges = np.flatnonzero(np.diff(self.episodes)) + 1
        starts, stops = np.append(0, edges), np.append(edges, len(self.episodes))
        lengths = stops - starts
        self._first, self._end = np.repeat(starts, lengths), np.repeat(stops, lengths)

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Batch:
        """The same item as the `LeRobotDataset` gives, without features of text: images in [0, 1]."""
        batch = self.take(np.array([index]))
        item = {key: value[0] for key, value in batch.items()}
        for key in self._frames:
            item[key] = item[key].to(torch.float32).div(255)
        return item

    def take(self, indices: np.ndarray) -> Batch:
        """A batch.

        Args:
            indices: (B,) positions in [0, len).

        Returns:
            Every feature but those of text as (B, ...), or (B, T, ...) where it has T delta indices: then frames beyond
            the episode are its first or last one and `<feature>_is_pad` (B, T) is true. Images are uint8 (B, 3, H, W).
            `task` is a list of B instructions.
        """
        indices = np.asarray(indices, dtype=np.int64)
        batch: Batch = {}
        for key, values in (self._frames | self._columns).items():
            if key in self.delta_indices:
                wanted = indices[:, None] + np.array(self.delta_indices[key])
                first, end = self._first[indices, None], self._end[indices, None]
                batch[f"{key}_is_pad"] = torch.from_numpy((wanted < first) | (wanted >= end))
                rows = np.clip(wanted, first, end - 1)
            else:
                rows = indices
            # Copies whole rows, unlike indexing with a tensor, which is ten times slower for pictures.
            chosen = values.index_select(0, torch.from_numpy(rows.reshape(-1)))
            batch[key] = chosen.reshape(*rows.shape, *values.shape[1:])
        batch[TASK] = [self._tasks[task] for task in self._columns["task_index"][indices].tolist()]
        return batch


def _column(column: Any, dtype: str) -> Tensor:
    """A column of numbers as (N, ...); weights are no float64."""
    array = column.combine_chunks()
    if isinstance(array, pa.ExtensionArray):  # of features with two axes or more
        array = array.storage
    shape = [len(array)]
    while hasattr(array.type, "value_type"):
        rows, array = len(array), array.flatten()
        shape.append(len(array) // rows)
    values = array.to_numpy(zero_copy_only=False).reshape(shape)
    return torch.tensor(values, dtype=torch.float32 if dtype == "float64" else getattr(torch, dtype))


def _pictures(
    dataset: LeRobotDataset, rows: Any, key: str, pool: ThreadPoolExecutor, image_size: Size | None
) -> Tensor:
    """All frames of a camera, (N, 3, H, W) uint8."""
    height, width, channels = picture_shape(dataset.reader._meta.features[key])
    frames = torch.empty((len(rows), channels, *(image_size or (height, width))), dtype=torch.uint8)
    if key in dataset.reader._meta.video_keys:
        _decode_videos(dataset, rows, key, frames, pool)
    else:
        pictures: Sequence[Mapping[str, Any]] = rows.column(key).to_pylist()
        list(pool.map(lambda row: _decode(pictures[row], frames[row]), range(len(rows))))
    return frames


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 3, H, W) uint8 pictures in another size, as policies resize them but for the rounding."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    batch = images.reshape(-1, *images.shape[-3:]).float()
    small = F.interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)
    return small.round_().clamp_(0, 255).to(torch.uint8).reshape(*images.shape[:-2], *size)


def _decode(picture: Mapping[str, Any], target: Tensor) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(picture["bytes"])) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        target.copy_(resized(pixels, (target.shape[-2], target.shape[-1])))


def _decode_videos(dataset: LeRobotDataset, rows: Any, key: str, frames: Tensor, pool: ThreadPoolExecutor) -> None:
    from lerobot.datasets.video_utils import decode_video_frames

    meta = dataset.reader._meta
    episodes, times = (rows.column(name).to_numpy() for name in ("episode_index", "timestamp"))

    def decode(episode: int) -> None:
        chosen = np.flatnonzero(episodes == episode)
        start = meta.episodes[int(episode)][f"videos/{key}/from_timestamp"]
        film = decode_video_frames(
            dataset.root / meta.get_video_file_path(int(episode), key),
            [start + float(time) for time in times[chosen]],
            dataset.tolerance_s,
            dataset._video_backend,
            return_uint8=True,
        )
        frames[torch.from_numpy(chosen)] = resized(film, (frames.shape[-2], frames.shape[-1]))

    list(pool.map(decode, np.unique(episodes)))
