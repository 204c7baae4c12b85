"""Equal pictures are equal films, whatever ran before and however many cores there are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlspec.vla.data.recording import encode_mp4


def moving_picture(length: int, height: int, width: int) -> NDArray[np.uint8]:
    """A soft pattern that a camera passes, with noise."""
    generator = np.random.default_rng(0)
    coarse = generator.uniform(0, 255, (height, width, 3))
    scene = np.kron(coarse[: height // 8, : width // 4], np.ones((16, 16, 1)))
    pictures = np.stack([scene[2 * t : 2 * t + height, 3 * t : 3 * t + width] for t in range(length)])
    return (pictures + generator.normal(0, 2, pictures.shape)).clip(0, 255).astype(np.uint8)


def test_a_film_does_not_depend_on_what_lies_in_memory() -> None:
    pictures = moving_picture(length=20, height=96, width=96)
    generator = np.random.default_rng(1)
    found = set()
    for _ in range(12):
        rubbish = [np.full(size, size % 256, np.uint8) for size in generator.integers(1, 300_000, 20)]
        del rubbish[::2]
        found.add(encode_mp4(pictures, fps=10))
    assert len(found) == 1


def test_the_encoder_has_one_thread_on_every_machine() -> None:
    film = encode_mp4(moving_picture(length=2, height=64, width=64), fps=10)
    assert b" threads=1 lookahead_threads=1 " in film  # x264 writes its settings into the film
