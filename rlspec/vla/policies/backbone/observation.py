"""What a policy reads from a batch, checked."""

from __future__ import annotations

import math

import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor
from torch.nn import functional as F

from rlspec.contract.features import is_image
from rlspec.errors import DataError
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig


def read_images(batch: dict[str, Tensor], config: BackbonePolicyConfig, training: bool = False) -> Tensor:
    """Normalised images of all cameras (B, cameras, 3, S, S), from uint8 or from floats in [0, 1].

    Args:
        batch: of the preprocessor.
        config: of the policy.
        training: whether augmentation has cropped already, so that `center_crop` does not.

    Raises:
        DataError: if a camera is missing.
    """
    expected = list(config.image_features)
    given = sorted(key for key in batch if is_image(key) and not key.endswith("_is_pad"))
    missing = [key for key in expected if key not in batch]
    if missing:
        raise DataError(
            f"camera {', '.join(missing)} is missing; the policy expects {', '.join(expected)} and got "
            f"{', '.join(given) or 'none'}; rename them with rename_map"
        )
    size = config.image_size
    assert size is not None
    crop = 1.0 if training else config.center_crop
    images = torch.stack([_resize(batch[key], size, crop) for key in expected], 1)
    mean, std = (images.new_tensor(each)[:, None, None] for each in (config.image_mean, config.image_std))
    return (images - mean) / std


def _resize(image: Tensor, size: int, crop: float) -> Tensor:
    if image.ndim == 5:  # LeRobot's axis of observation steps
        image = image[:, -1]
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    if crop < 1:
        kept = [round(side * math.sqrt(crop)) for side in image.shape[-2:]]
        top, left = ((side - each) // 2 for side, each in zip(image.shape[-2:], kept, strict=True))
        image = image[..., top : top + kept[0], left : left + kept[1]]
    if image.shape[-2:] != (size, size):
        image = F.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return image


def read_text(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Ids and mask of the instruction, (B, L) each.

    Raises:
        DataError: if the preprocessor has not made them.
    """
    if OBS_LANGUAGE_TOKENS not in batch:
        raise DataError(
            f"{OBS_LANGUAGE_TOKENS} is missing: pass the batch, with its task, through the policy's preprocessor first"
        )
    ids, mask = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK].bool()
    return ids, mask


def read_vector(batch: dict[str, Tensor], key: str, size: int, axes: int) -> Tensor:
    """A vector of the expected size, with `axes` axes.

    Raises:
        DataError: naming both sizes.
    """
    if key not in batch:
        raise DataError(f"{key} is missing; the policy expects {size} numbers")
    value = batch[key]
    if key == OBS_STATE and value.ndim == 3:
        value = value[:, -1]
    if value.shape[-1] != size or value.ndim != axes:
        raise DataError(f"{key} has shape {tuple(value.shape)}, and the policy expects {size} numbers in {axes} axes")
    return value
