"""Shifts against a plain loop; LeRobot's transforms one image at a time, repeatable."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlspec.errors import ConfigError
from rlspec.vla.training.augmentation import build_transform, draw_offsets, random_shift, transform_images
from rlspec.vla.training.order import BatchShape
from rlspec.vla.training.samples import Augmentation


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_shifted_pixel_is_the_nearest_pixel_of_the_image(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (5, 3, 6, 8)).to(dtype)
    offsets = torch.tensor([[0, 0], [4, 4], [2, 2], [1, 3], [4, 0]])
    shifted = random_shift(images, offsets, 2)
    for sample, (down, right) in enumerate(offsets.tolist()):
        for row in range(6):
            for column in range(8):
                source = images[sample, :, min(max(row + down - 2, 0), 5), min(max(column + right - 2, 0), 7)]
                assert torch.equal(shifted[sample, :, row, column], source)
    assert torch.equal(shifted[2], images[2])


def test_offsets_reach_every_shift_and_belong_to_seed_and_step() -> None:
    offsets = draw_offsets(2, 400, 2, seed=0, step=7)
    assert offsets.shape == (2, 400, 2)
    assert offsets.unique().tolist() == [0, 1, 2, 3, 4]
    assert not torch.equal(offsets[0], offsets[1])
    assert torch.equal(offsets, draw_offsets(2, 400, 2, seed=0, step=7))
    assert not torch.equal(offsets, draw_offsets(2, 400, 2, seed=0, step=8))


def batch_of(count: int, frames: int | None = None) -> dict[str, Any]:
    shape = (count, 3, 8, 8) if frames is None else (count, frames, 3, 8, 8)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"observation.images.external": images, "observation.state": torch.zeros(count, 8)}


SETTINGS = {"tfs": {"blur": {"type": "MotionBlur", "kwargs": {"kernel_size": 3}}}, "max_num_transforms": 2}


def test_augmentation_does_not_depend_on_how_a_batch_is_cut() -> None:
    augment = Augmentation(shift=2, transform=build_transform(SETTINGS), seed=4)
    whole = augment(batch_of(6), BatchShape(6), step=3, number=0)["observation.images.external"]
    parts = []
    for number in range(3):
        cut = {key: value[2 * number : 2 * number + 2] for key, value in batch_of(6).items()}
        parts.append(augment(cut, BatchShape(2, passes=3), step=3, number=number)["observation.images.external"])
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(augment(batch_of(6), BatchShape(6), step=4, number=0)["observation.images.external"], whole)


def test_frames_of_one_sample_are_shifted_alike() -> None:
    batch = batch_of(3, frames=2)
    images = batch["observation.images.external"]
    images[:, 1] = images[:, 0]
    shifted = Augmentation(shift=3, seed=1)(batch, BatchShape(3), step=0, number=0)["observation.images.external"]
    assert shifted.shape == images.shape
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    assert not torch.equal(shifted, images)


def test_every_image_is_transformed_differently_and_stays_in_range() -> None:
    images = torch.full((4, 3, 8, 8), 100, dtype=torch.uint8)
    settings = {"max_num_transforms": 1, "tfs": {}}
    transform = build_transform(settings | {"tfs": {name: {"weight": 0.0} for name in ("hue", "sharpness", "affine")}})
    assert transform is not None
    changed = transform_images(images, transform, seed=0, step=0, camera=0, first=0)
    assert changed.dtype == torch.float32
    assert 0 <= changed.min() < changed.max() <= 1
    assert len({float(image.mean()) for image in changed}) > 1
    other = transform_images(images, transform, seed=0, step=0, camera=1, first=0)
    assert not torch.equal(changed, other)


def test_no_settings_are_no_transform_and_wrong_ones_are_named() -> None:
    assert build_transform({}) is None
    assert build_transform({"enable": False, "max_num_transforms": 1}) is None
    with pytest.raises(ConfigError, match="training.augmentation.*NoSuchThing"):
        build_transform({"tfs": {"mine": {"type": "NoSuchThing"}}})
    with pytest.raises(ConfigError, match="training.augmentation"):
        build_transform({"tfs": {"mine": {"typ": "MotionBlur"}}})
