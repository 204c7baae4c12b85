"""Resizing: the pixels of openpi's own function, recorded."""

from __future__ import annotations

import numpy as np
import openpi_messages
import pytest

from rlspec.serving.pictures import resize_with_pad

pytest.importorskip("PIL")


@pytest.mark.parametrize("name", openpi_messages.SIZES)
def test_pixels_are_those_of_openpi(name: str) -> None:
    source, target = openpi_messages.SIZES[name]
    recorded = np.load(openpi_messages.RECORDED / "resized.npz", allow_pickle=False)[name]
    resized = resize_with_pad(openpi_messages.picture(*source), *target)
    assert resized.shape == recorded.shape
    # Recorded with Pillow 13, which rounds a few pixels of enlarged pictures otherwise than Pillow 12.
    assert np.abs(resized.astype(int) - recorded).max() <= 1
    np.testing.assert_array_equal(resized.any(axis=2), recorded.any(axis=2))


def test_the_right_size_is_left_alone() -> None:
    image = openpi_messages.picture(18, 32)
    assert resize_with_pad(image, 18, 32) is image


def test_a_needle_becomes_a_line() -> None:
    assert resize_with_pad(np.full((1, 4000, 3), 255, np.uint8), 20, 20).max() == 255
