"""The one letterbox of the converter, the robot and the policy server: a policy sees what it was trained on.

Pixels are those of openpi-client 0.1.2's `resize_with_pad`: Pillow's bilinear filter, widened when it shrinks a picture
so that no pixel is skipped. Pillow 13 rounds a few pixels of enlarged pictures otherwise than Pillow 12, by one.

Data sets that were converted before this was one function hold pictures scaled by the bicubic filter. They differ by
0.3 to 4/255 on average, by 20 to 30 at edges, and by a row where rounding kept a fraction that openpi's rule cuts off;
recordings that already had the wanted size are as they were. Policies trained on them run on, and see slightly softer
edges than in training; to train on what a robot sends, convert again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

DROID_SIZE = (180, 320)
"""Height and width in DROID's RLDS release, in what rlspec converts and generates, and of simulated cameras."""

OPENPI_SIZE = (224, 224)
"""Height and width that openpi's clients send."""


def resize_with_pad(image: Picture, height: int, width: int) -> Picture:
    """Scale a picture (H, W, 3) RGB until it fits into (height, width, 3), aspect kept, in the middle of black.

    A picture that has the size already is returned as it is.
    """
    old_height, old_width = image.shape[:2]
    if (old_height, old_width) == (height, width):
        return image
    from PIL import Image  # on first use: a client that sends pictures as they are needs none of it

    rows, columns = _scene(old_height, old_width, height, width)
    size = rows.stop - rows.start, columns.stop - columns.start
    scaled = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    padded = np.zeros((height, width, 3), np.uint8)
    padded[rows, columns] = np.asarray(scaled)
    return padded


def _scene(old_height: int, old_width: int, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns between the bars of a picture that was scaled into (height, width)."""
    # openpi cuts fractions off, and so do we: rounding would shift every edge of some sizes by half a pixel.
    ratio = max(old_width / width, old_height / height)
    rows, columns = max(1, int(old_height / ratio)), max(1, int(old_width / ratio))
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def without_bars(image: Picture, height: int, width: int) -> Picture:
    """Undo a letterbox of pictures of another size before they get that of (height, width).

    openpi's clients scale a camera's 16:9 into 224 x 224; scaled into 180 x 320 once more, the scene would cover a
    third of what the policy sees. Bars are cut where they are exactly black and stand as a scene of the wanted ratio
    has them.
    """
    if not _ratios_differ(image, height, width):
        return image
    rows, columns = _scene(height, width, *image.shape[:2])
    scene = image[rows, columns]
    black = np.count_nonzero(image) == np.count_nonzero(scene)
    return scene if black else image


def has_bars(image: Picture, height: int, width: int) -> bool:
    """Whether a picture that is about to get bars has some of its own on other sides: at least two black lines each."""
    if not _ratios_differ(image, height, width) or not image.any():
        return False
    across = image.shape[1] * height > width * image.shape[0]  # the new ones come above and below
    lines = image if not across else image.transpose(1, 0, 2)
    return not lines[:2].any() and not lines[-2:].any()


def _ratios_differ(image: Picture, height: int, width: int) -> bool:
    return abs(image.shape[1] * height - width * image.shape[0]) > max(image.shape[1], image.shape[0])
