"""Pictures of any size -> the size that a policy was trained with, without distortion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def resize_with_pad(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Scale a picture (H, W, 3) until it fits and put it in the middle of black.

    The pixels are those of openpi-client 0.1.2, which scales by Pillow's bilinear filter. A picture that has the size
    already is returned as it is.
    """
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    ratio = max(image.shape[1] / width, image.shape[0] / height)
    inner_width = max(1, int(image.shape[1] / ratio))
    inner_height = max(1, int(image.shape[0] / ratio))
    scaled = Image.fromarray(image).resize((inner_width, inner_height), resample=Image.Resampling.BILINEAR)
    padded = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    padded[top : top + inner_height, left : left + inner_width] = np.asarray(scaled)
    return padded
