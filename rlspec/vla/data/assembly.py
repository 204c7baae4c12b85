"""Episodes into a LeRobotDataset v3, with LeRobot's metadata and exact statistics."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rlspec.contract.actions import ACTION_SPACES, DELTA_EEF
from rlspec.contract.features import ACTION, EEF_STATE, EXECUTED, IMAGE_AXES, JOINT_STATE, STATE, image_key
from rlspec.vla.data.exact_statistics import (
    image_statistics,
    numeric_statistics,
    vector_statistics,
    write_statistics,
)
from rlspec.vla.data.recording import VIDEO, Episode


def features_of(episode: Episode, *, action_space: str, video: bool, disturbed: bool) -> dict[str, dict[str, Any]]:
    """The features of a data set of such episodes, as LeRobot declares them.

    Args:
        episode: any.
        action_space: name; decides what the numbers are called.
        video: pictures are frames of MP4 files.
        disturbed: executed actions differ from the labels and are kept as well.
    """
    features: dict[str, dict[str, Any]] = {
        image_key(camera): {
            "dtype": "video" if video else "image",
            "shape": shape,
            "names": list(IMAGE_AXES),
        }
        for camera, shape in episode.shapes.items()
    }
    plan = episode.plan
    numbers = EEF_STATE if action_space == DELTA_EEF else JOINT_STATE
    features[STATE] = _vector("state", plan.states.shape[1], numbers)
    names = ACTION_SPACES[action_space].names if action_space in ACTION_SPACES else ()
    features[ACTION] = _vector("action", plan.labels.shape[1], names)
    if disturbed:
        features[EXECUTED] = _vector("action", plan.labels.shape[1], names)
    return features


def _vector(kind: str, size: int, named: Sequence[str]) -> dict[str, Any]:
    names = list(named) if len(named) == size else [f"{kind}_{index}" for index in range(size)]
    return {"dtype": "float32", "shape": (size,), "names": names}


class Recorded(Protocol):
    """An episode that can be written: `Episode` is one.

    Attributes:
        pictures: camera -> T PNG files, or one MP4 file.
        histograms: camera -> (3, 256) how often each channel has each value, over all frames.
    """

    pictures: dict[str, list[bytes]]
    histograms: dict[str, NDArray[np.int64]]

    def __len__(self) -> int:
        """Number of frames."""

    @property
    def instruction(self) -> str:
        """What the robot was told."""

    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Feature -> (T, d) numbers."""


class RowWriter:
    """The parquet files of a data set: one row group per episode, in LeRobot's schema and places."""

    def __init__(self, meta: Any) -> None:
        from lerobot.datasets.feature_utils import get_hf_features_from_features

        self._meta = meta
        self._schema: pa.Schema = get_hf_features_from_features(meta.features).arrow_schema
        self._chunk, self._file, self._bytes = 0, 0, 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, columns: Mapping[str, Any], *, size: int) -> dict[str, int]:
        """Append an episode.

        Args:
            columns: feature -> (T,) or (T, d) numbers, or T pictures as {"bytes": ..., "path": ...}.
            size: of its pictures in bytes, which decides when the next file begins.

        Returns:
            Where it is, for the episode's metadata.
        """
        from lerobot.datasets.utils import update_chunk_file_indices

        meta = self._meta
        if self._bytes and self._bytes + size > meta.data_files_size_in_mb * 2**20:
            self.close()
            self._chunk, self._file = update_chunk_file_indices(self._chunk, self._file, meta.chunks_size)
        if self._writer is None:
            path = meta.root / meta.data_path.format(chunk_index=self._chunk, file_index=self._file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer, self._bytes = pq.ParquetWriter(path, self._schema, compression="snappy"), 0
        table = pa.Table.from_arrays(
            [_arrow(columns[each.name], each.type) for each in self._schema], schema=self._schema
        )
        self._writer.write_table(table)
        self._bytes += size
        return {
            "data/chunk_index": self._chunk,
            "data/file_index": self._file,
            "dataset_from_index": meta.total_frames,
            "dataset_to_index": meta.total_frames + table.num_rows,
        }

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _arrow(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(values.reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(values, kind)


class DatasetBuilder:
    """Writes a data set episode by episode.

    LeRobot's classes write metadata and videos. Pictures come encoded and with counts of their values, so its way of
    writing every frame to a file, reading and sampling it and embedding it again is not taken: it costs more than the
    simulation.
    """

    def __init__(self, root: Path, *, fps: int, features: Mapping[str, Any], robot_type: str, video: bool) -> None:
        import av
        from datasets.utils.logging import disable_progress_bar
        from lerobot.configs import RGBEncoderConfig
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        disable_progress_bar()
        logging.getLogger("libav").setLevel(logging.ERROR)
        av.logging.set_libav_level(av.logging.FATAL)  # LeRobot hands messages back to stderr; errors are raised
        self.root, self.video = root, video
        self._histograms: dict[str, NDArray[np.int64]] = {}
        self._frames = 0
        self._dataset = LeRobotDataset.create(
            repo_id=f"rlspec/{root.name}",
            fps=fps,
            features=dict(features),
            root=root,
            robot_type=robot_type,
            use_videos=video,
            video_backend="pyav",
            rgb_encoder=RGBEncoderConfig(**VIDEO) if video else None,
        )
        self._rows = RowWriter(self._dataset.meta)

    def add(self, episode: Recorded, instruction: str | None = None) -> None:
        """Append an episode, told by another instruction than its own where one is given."""
        meta = self._dataset.meta
        index, length = meta.total_episodes, len(episode)
        instruction = episode.instruction if instruction is None else instruction
        meta.save_episode_tasks([instruction])
        buffer: dict[str, Any] = {
            **self._numbers(episode),
            "frame_index": np.arange(length),
            "timestamp": np.arange(length) / meta.fps,
            "index": np.arange(meta.total_frames, meta.total_frames + length),
            "episode_index": np.full(length, index),
            "task_index": np.full(length, meta.get_task_index(instruction)),
        }
        statistics = {key: vector_statistics(values.reshape(length, -1)) for key, values in buffer.items()}
        for camera, histogram in episode.histograms.items():
            key = image_key(camera)
            statistics[key] = image_statistics(histogram, length)
            self._histograms[key] = self._histograms.get(key, 0) + histogram
        if not self.video:
            buffer.update(self._pictures(episode))
        place = self._rows.write(buffer, size=sum(len(each) for film in episode.pictures.values() for each in film))
        if self.video:
            for camera, (film,) in episode.pictures.items():
                place.update(self._save_film(image_key(camera), index, film))
        meta.save_episode(index, length, [instruction], statistics, place)
        self._frames += length

    def _numbers(self, episode: Recorded) -> dict[str, NDArray[Any]]:
        return {key: values for key, values in episode.columns().items() if key in self._dataset.features}

    @staticmethod
    def _pictures(episode: Recorded) -> dict[str, list[dict[str, Any]]]:
        return {
            image_key(camera): [
                {"bytes": picture, "path": f"frame-{number:06d}.png"} for number, picture in enumerate(pictures)
            ]
            for camera, pictures in episode.pictures.items()
        }

    def _save_film(self, key: str, episode: int, film: bytes) -> dict[str, Any]:
        path = Path(tempfile.mkdtemp(dir=self.root)) / f"{key}_{episode:03d}.mp4"
        path.write_bytes(film)
        place: dict[str, Any] = self._dataset.writer._save_episode_video(key, episode, temp_path=path)
        return place

    def finish(self) -> None:
        """Close all files and write the statistics over all frames."""
        self._rows.close()
        self._dataset.finalize()
        statistics = numeric_statistics(self.root)
        for key, histogram in self._histograms.items():
            statistics[key] = image_statistics(histogram, self._frames)
        write_statistics(self.root, statistics)
