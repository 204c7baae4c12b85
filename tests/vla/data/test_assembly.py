"""What we write is what LeRobot's own writer would have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rlspec.config.vla_schema import Dataset
from rlspec.vla.data.assembly import RowWriter
from rlspec.vla.data.opening import open_dataset

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def rewritten(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstrations with images, frame by frame through LeRobot's recording API."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    source = open_dataset(Dataset(name="toy"), root=images)
    own = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    features: dict[str, Any] = {key: value for key, value in source.meta.features.items() if key not in own}
    root = tmp_path_factory.mktemp("rewritten") / "data"
    target = LeRobotDataset.create(
        "toy/again", source.fps, features, root=root, robot_type="point", use_videos=False, video_backend="pyav"
    )
    for index in range(len(source)):
        item = source[index]
        if index and item["frame_index"] == 0:
            target.save_episode()
        frame = {key: item[key].numpy() for key in features}
        pictures = {key: (value.transpose(1, 2, 0) * 255).round().astype(np.uint8) for key, value in frame.items()
                    if value.ndim == 3}  # fmt: skip
        target.add_frame({**frame, **pictures, "task": item["task"]})
    target.save_episode()
    target.finalize()
    return root


def hugging_face_features(schema: Any) -> Any:
    """What `datasets` reads from a parquet file's head; it writes a random fingerprint beside it."""
    content = (schema.metadata or {}).get(b"huggingface")
    return None if content is None else json.loads(content)["info"]["features"]


def test_tables_have_lerobots_schema(images: Path, rewritten: Path) -> None:
    for name in (DATA, "meta/tasks.parquet"):
        ours, theirs = (pq.read_schema(root / name) for root in (images, rewritten))
        assert ours.equals(theirs), name
        assert hugging_face_features(ours) == hugging_face_features(theirs)
    assert pq.ParquetFile(images / DATA).num_row_groups == pq.ParquetFile(rewritten / DATA).num_row_groups == 6
    episodes, same = (pq.read_table(root / EPISODES) for root in (images, rewritten))
    assert set(episodes.column_names) == set(same.column_names)
    for name in episodes.column_names:
        if not name.startswith("stats/"):
            assert episodes.column(name).equals(same.column(name)), name


def test_items_are_those_of_lerobots_recording(images: Path, rewritten: Path) -> None:
    ours, theirs = (open_dataset(Dataset(name="toy"), root=root) for root in (images, rewritten))
    assert ours.meta.info.to_dict() == theirs.meta.info.to_dict()
    for index in range(len(ours)):
        item, same = ours[index], theirs[index]
        assert item.keys() == same.keys()
        assert all(
            item[key] == value if key == "task" else torch.equal(item[key], value) for key, value in same.items()
        )


def test_a_full_file_is_followed_by_another(images: Path, tmp_path: Path) -> None:
    class Meta:
        root, total_frames, data_files_size_in_mb, chunks_size = tmp_path, 0, 1, 2
        data_path = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        features = {"action": {"dtype": "float32", "shape": (2,), "names": None}}

    writer = RowWriter(Meta())
    rows = {"action": np.ones((3, 2), np.float32)}
    places = [writer.write(rows, size=size) for size in (500_000, 500_000, 500_000, 2_000_000)]
    writer.close()
    assert [(each["data/chunk_index"], each["data/file_index"]) for each in places] == [(0, 0), (0, 0), (0, 1), (1, 0)]
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet"))
    assert found == [
        "data/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
        "data/chunk-001/file-000.parquet",
    ]
    assert [pq.read_table(tmp_path / name).num_rows for name in found] == [6, 3, 3]


def test_names_of_numbers(generate: Callable[..., Path], images: Path) -> None:
    names = open_dataset(Dataset(name="toy"), root=images).meta.names
    assert names["action"] == ["action_0", "action_1", "action_2"]
    assert names["observation.images.front"] == ["height", "width", "channels"]
