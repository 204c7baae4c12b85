"""Tiny recordings in DROID's raw layout, written with h5py and PyAV, and what they hold."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from rlspec.display import Display
from rlspec.vla.droid.conversion import convert
from rlspec.vla.droid.settings import ConvertSettings

SERIALS = {"ext1": "111", "ext2": "222", "wrist": "333"}
RAW = {"exterior_1_left": "ext1", "exterior_2_left": "ext2", "wrist_left": "wrist"}
SIZE = (32, 48)  # height and width differ, so that a mix-up shows
PLAIN = ("image_size=32x48", "video=false", "workers=1")


@dataclass
class RawEpisode:
    """What was written: path in the file -> (T, ...) array, camera -> (T, H, W, 3) as a video player shows it."""

    folder: Path
    arrays: dict[str, NDArray[Any]]
    films: dict[str, NDArray[np.uint8]]


def write_raw(folder: Path, frames: int = 20, *, seed: int = 0, lossless: bool = True, **metadata: Any) -> RawEpisode:
    """One episode; `metadata` replaces or (None) removes what the metadata file says."""
    rng = np.random.default_rng([7, seed])
    folder.mkdir(parents=True)
    arrays = make_arrays(rng, frames)
    with h5py.File(folder / "trajectory.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    films = {}
    for raw, serial in SERIALS.items():
        path = folder / "recordings" / "MP4" / f"{serial}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        films[raw] = write_film(path, make_images(rng, frames), lossless=lossless)
    uuid = f"LAB+{seed:08x}+2023-01-01"
    about = {
        "uuid": uuid,
        "lab": "LAB",
        "success": True,
        "current_task": f"put cup {seed} down",
        "robot_serial": "panda-1-2",
        "trajectory_length": frames,
        **{f"{raw}_cam_serial": serial for raw, serial in SERIALS.items()},
        **metadata,
    }
    about = {key: value for key, value in about.items() if value is not None}
    (folder / f"metadata_{uuid}.json").write_text(json.dumps(about))
    return RawEpisode(folder, arrays, films)


def make_arrays(rng: np.random.Generator, frames: int) -> dict[str, NDArray[Any]]:
    """Smooth motions and the commands of them, in the types of DROID."""
    joints = np.cumsum(rng.normal(0, 0.02, (frames, 7)), axis=0)
    poses = np.cumsum(rng.normal(0, 0.01, (frames, 6)), axis=0) + [0.4, 0, 0.3, 3.0, 0.1, -0.2]
    velocity = rng.uniform(-0.5, 0.5, (frames, 7))
    clock = 1_700_000_000_000 + np.round(np.arange(frames) * 1000 / 15).astype(np.int64)
    return {
        "action/joint_velocity": velocity,
        "action/joint_position": joints + 0.2 * velocity,
        "action/cartesian_velocity": rng.uniform(-0.3, 0.3, (frames, 6)),
        "action/cartesian_position": poses + 0.01,
        "action/gripper_position": rng.uniform(0, 1, frames),
        "action/gripper_velocity": rng.uniform(-1, 1, frames),
        "observation/robot_state/joint_positions": joints,
        "observation/robot_state/joint_velocities": rng.normal(size=(frames, 7)),
        "observation/robot_state/cartesian_position": poses,
        "observation/robot_state/gripper_position": rng.uniform(0, 1, frames),
        "observation/timestamp/control/step_start": clock,
        "observation/controller_info/movement_enabled": np.ones(frames, dtype=bool),
        **{f"observation/camera_type/{s}": np.full(frames, int(raw != "wrist")) for raw, s in SERIALS.items()},
    }


def make_images(rng: np.random.Generator, frames: int) -> NDArray[np.uint8]:
    """Blocks of colour that differ from frame to frame and between red, green and blue."""
    blocks = rng.integers(0, 255, (frames, SIZE[0] // 8, SIZE[1] // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def write_film(path: Path, images: NDArray[np.uint8], *, lossless: bool = True, rate: int = 60) -> NDArray[np.uint8]:
    """Write a film; returns what a player decodes."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264rgb" if lossless else "libx264", rate, options={"crf": "0"})
        stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        stream.height, stream.width = images.shape[1:3]
        for image in images:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    return read_film_frames(path)


def read_film_frames(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def change(episode: RawEpisode, name: str, values: Any) -> None:
    """Replace an array of a written trajectory; None removes it."""
    with h5py.File(episode.folder / "trajectory.h5", "a") as file:
        del file[name]
        if values is not None:
            file[name] = values


def run(source: str, path: Path, out: Path, *more: str, display: Display | None = None, pool: Any = None) -> Path:
    """A conversion in threads."""
    settings = ConvertSettings.read([f"source={source}", f"path={path}", f"out={out}", *more])
    return convert(settings, display or Display("plain", quiet=True), pool=pool or threads)


@contextmanager
def threads(workers: int) -> Iterator[Executor]:
    """In place of processes."""
    with ThreadPoolExecutor(workers) as pool:
        yield pool


def refusals(root: Path) -> dict[str, tuple[str, str]]:
    """Source -> kind and reason."""
    lines = [json.loads(line) for line in (root / "meta" / "refused.jsonl").read_text().splitlines()]
    return {each["source"]: (each["kind"], each["reason"]) for each in lines}


def read_record(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "meta" / "rlspec.json").read_text()))


def read_rows(root: Path) -> dict[str, NDArray[Any]]:
    """All numbers, by pyarrow alone."""
    table = pq.read_table(sorted((root / "data").rglob("*.parquet")))
    return {name: np.array(table.column(name).to_pylist()) for name in table.column_names if "images" not in name}


def read_pictures(root: Path, camera: str) -> NDArray[np.uint8]:
    column = pq.read_table(sorted((root / "data").rglob("*.parquet"))).column(f"observation.images.{camera}")
    return np.stack([np.array(Image.open(io.BytesIO(each["bytes"]))) for each in column.to_pylist()])
