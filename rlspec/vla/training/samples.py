"""From a data set to the batches of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rlspec.contract.features import is_image
from rlspec.vla.training.augmentation import Transform, draw_offsets, random_shift, transform_images
from rlspec.vla.training.order import BatchShape, SampleOrder


class Samples(Protocol):
    """A data set as training sees it."""

    @property
    def meta(self) -> Any:
        """LeRobot's metadata; of it, features and statistics are read, under the names that the policy knows."""

    @property
    def episodes(self) -> NDArray[Any]:
        """(N,) episode of each frame."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[Any]) -> dict[str, Any]:
        """A batch.

        Images (B, C, H, W), uint8 or float in [0, 1], vectors (B, n), the same with an axis T behind B where there are
        neighbouring frames, and for these `<name>_is_pad` (B, T); task: list of B texts.
        """


@dataclass(frozen=True)
class Augmentation:
    """What happens to images."""

    shift: int = 0  # largest random shift in pixels
    transform: Transform | None = None  # of single images
    seed: int = 0  # of the run

    def __call__(self, batch: dict[str, Any], shape: BatchShape, *, step: int, number: int) -> dict[str, Any]:
        """Change the images of the batch of a step's pass `number`."""
        cameras = camera_keys(batch)
        part = shape.part(number)
        if self.shift:
            offsets = draw_offsets(self.shift, shape.samples, len(cameras), seed=self.seed, step=step)[:, part]
            for key, offset in zip(cameras, offsets, strict=True):
                batch[key] = over_time(lambda image, o=offset: random_shift(image, o, self.shift), batch[key])
        if self.transform is not None:
            for camera, key in enumerate(cameras):
                batch[key] = transform_images(
                    batch[key], self.transform, seed=self.seed, step=step, camera=camera, first=part.start
                )
        return batch


def camera_keys(batch: Mapping[str, Any]) -> list[str]:
    """Names of a batch's images."""
    return sorted(key for key in batch if is_image(key) and not key.endswith("_is_pad"))


class Batches(Dataset[dict[str, Any]]):
    """The batches of all forward passes of a run, by number; augmented, not yet preprocessed."""

    def __init__(self, samples: Samples, order: SampleOrder, shape: BatchShape, augmentation: Augmentation) -> None:
        self.samples = samples
        self.order = order
        self.shape = shape
        self.augmentation = augmentation

    def __getitem__(self, number: int) -> dict[str, Any]:
        step, number = divmod(number, self.shape.passes)
        batch = self.samples.take(self.order.step(step)[self.shape.part(number)])
        return self.augmentation(batch, self.shape, step=step, number=number)

    def progress(self, step: int, seconds: float) -> dict[str, float]:
        """How far and how fast, for a log line of a step that took so many seconds."""
        return {"epoch": self.order.epochs(step), "samples_per_second": self.shape.samples / seconds}

    def from_step(self, start: int, stop: int, *, workers: int, pin_memory: bool) -> Iterator[dict[str, Any]]:
        """Batches of the steps `start` to `stop` - 1, counted from 0."""
        numbers = range(start * self.shape.passes, stop * self.shape.passes)
        if workers == 0:
            yield from map(self.__getitem__, numbers)
            return
        # Each item is a whole batch: workers decode and augment batches ahead, in order.
        loader: DataLoader[dict[str, Any]] = DataLoader(
            self, batch_size=None, sampler=numbers, num_workers=workers, pin_memory=pin_memory, prefetch_factor=2
        )
        yield from loader


def over_time(change: Any, images: Tensor) -> Tensor:
    """Apply a change of (B, C, H, W) to images that may have an axis of time, (B, T, C, H, W): all alike."""
    if images.ndim == 4:
        return change(images)
    return torch.stack([change(frame) for frame in images.unbind(1)], 1)


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors on the device; what is no tensor as it is."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }
