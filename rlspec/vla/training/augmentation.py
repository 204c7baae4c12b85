"""Random shifts in batches, and LeRobot's image transforms sample by sample; both repeat for a seed and a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lerobot.transforms import ImageTransforms, ImageTransformsConfig
from lerobot.transforms.transforms import ImageTransformConfig
from torch import Tensor
from torch.nn import functional as F

from rlspec.errors import ConfigError
from rlspec.vla.training.order import SHIFT, TRANSFORM, derive_seed, seed_all

Transform = Callable[[Tensor], Tensor]


def random_shift(images: Tensor, offsets: Tensor, largest: int) -> Tensor:
    """Shift each image, repeating its edges (DrQ, arXiv 2004.13649).

    Args:
        images: (B, C, H, W), of any dtype.
        offsets: (B, 2), rows and columns of the window in the padded image, 0 to 2 `largest`; `largest` is no shift.
        largest: pixels that edges are repeated for.

    Returns:
        (B, C, H, W).
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (largest,) * 4, mode="replicate")
    shifted = torch.empty_like(images)
    # Copies of windows: gathering by index takes eight times as long.
    for target, source, (row, column) in zip(shifted, padded, offsets.tolist(), strict=True):
        target.copy_(source[:, row : row + height, column : column + width])
    return shifted


def draw_offsets(largest: int, batch: int, cameras: int, *, seed: int, step: int) -> Tensor:
    """Offsets (cameras, B, 2) of all of a step's samples: they do not depend on how its batch is cut."""
    generator = torch.Generator().manual_seed(derive_seed(seed, SHIFT, step))
    return torch.randint(0, 2 * largest + 1, (cameras, batch, 2), generator=generator)


def build_transform(settings: Mapping[str, Any]) -> Transform | None:
    """LeRobot's image transforms as `training.augmentation` describes them; None without settings.

    Settings mean that transforms are wanted, unless `enable` says otherwise. Entries of `tfs` are added to LeRobot's
    own, or replace them.

    Raises:
        ConfigError: a transform is unknown, or its arguments are wrong.
    """
    if not settings or not settings.get("enable", True):
        return None
    fields = {"enable": True, **settings}
    try:
        if "tfs" in fields:
            given = {name: ImageTransformConfig(**entry) for name, entry in fields["tfs"].items()}
            fields["tfs"] = {**ImageTransformsConfig().tfs, **given}
        return ImageTransforms(ImageTransformsConfig(**fields))
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"training.augmentation: {' '.join(str(error).split())}") from error


def transform_images(images: Tensor, transform: Transform, *, seed: int, step: int, camera: int, first: int) -> Tensor:
    """Apply a transform with its own random numbers to every image.

    Args:
        images: (B, C, H, W), uint8 or float in [0, 1].
        transform: of one float image (C, H, W).
        seed: of the run.
        step: counted from 0.
        camera: number of the camera.
        first: position of the first image among all samples of the step.

    Returns:
        (B, C, H, W), float in [0, 1].
    """
    images = to_float(images)
    changed = []
    for position, image in enumerate(images, start=first):
        seed_all(derive_seed(seed, TRANSFORM, step, camera, position))
        changed.append(transform(image))
    return torch.stack(changed)


def to_float(images: Tensor) -> Tensor:
    """Bytes to [0, 1]; floats as they are."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images
