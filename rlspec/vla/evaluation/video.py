"""Films of episodes: all cameras side by side, as MP4 or GIF."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlspec.vla.evaluation.jobs import FilmSpec

SMALLEST = 192  # pixels; smaller pictures are enlarged
Frame = NDArray[np.uint8]


class FilmRecorder:
    """Collects the frames of one episode and writes them.

    Args:
        spec: File and format.
        rate: Frames per second of simulated time.
    """

    def __init__(self, spec: FilmSpec, rate: float) -> None:
        self._spec = spec
        self._rate = rate
        self._frames: list[Frame] = []

    def add(self, pixels: dict[str, Frame]) -> None:
        """One frame of every camera."""
        self._frames.append(side_by_side(list(pixels.values())))

    def save(self, outcome: str) -> Path:
        """Write the film; the file appears whole or not at all."""
        target = self._spec.path.with_name(self._spec.path.name.format(outcome=outcome))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{os.getpid()}-{target.name}")
        try:
            write_film(self._frames, partial, kind=self._spec.kind, rate=self._rate)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return target


def side_by_side(pictures: list[Frame]) -> Frame:
    """Pictures (H, W, 3) in a row, enlarged by a whole factor where they are small; black below shorter ones."""
    height = max(picture.shape[0] for picture in pictures)
    factor = max(1, -(-SMALLEST // height))
    row = [
        np.pad(picture, ((0, height - picture.shape[0]), (0, 0), (0, 0)))
        for picture in (np.asarray(picture) for picture in pictures)
    ]
    joined: Frame = np.concatenate(row, axis=1).repeat(factor, axis=0).repeat(factor, axis=1)
    return joined


def write_film(frames: list[Frame], path: Path, *, kind: str, rate: float) -> None:
    """Write frames (H, W, 3) of equal size as "mp4" (H.264) or "gif"."""
    if kind == "gif":
        _write_gif(frames, path, rate)
    else:
        _write_mp4(frames, path, rate)


def _write_gif(frames: list[Frame], path: Path, rate: float) -> None:
    from PIL import Image

    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, format="GIF", save_all=True, append_images=others, duration=1000 / rate, loop=0)


def _write_mp4(frames: list[Frame], path: Path, rate: float) -> None:
    import av

    height, width = (side + side % 2 for side in frames[0].shape[:2])  # H.264 wants even sides
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000), options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            padded = np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(stream.encode())
