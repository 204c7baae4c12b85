"""Frames from memory are LeRobot's items, and a data set can go by other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from rlspec.config.vla_schema import Dataset
from rlspec.errors import DataError
from rlspec.vla.data import frames
from rlspec.vla.data.frames import FrameStore, check_memory
from rlspec.vla.data.opening import open_dataset, policy_delta_indices

DELTAS = {
    "action": [0, 1, 2, 3, 4],
    "observation.state": [-2, 0],
    "observation.images.side": [-1, 0, 1],
}
RENAME = {"observation.images.side": "observation.images.wrist", "observation.state": "observation.joints"}


def opened(root: Path, **settings: Any) -> Any:
    deltas = settings.pop("deltas", DELTAS)
    return open_dataset(Dataset(name="toy", **settings), root=root, delta_indices=deltas)


def assert_equal_items(dataset: Any, store: FrameStore) -> None:
    assert len(dataset) == len(store)
    for index in range(len(dataset)):
        expected, found = dataset[index], store[index]
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            if key == "task":
                assert found[key] == value
            else:
                assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
                assert torch.equal(found[key], value), key


@pytest.mark.parametrize("episodes", [None, [1, 4]])
def test_items_are_those_of_lerobot(images: Path, episodes: list[int] | None) -> None:
    dataset = opened(images, episodes=episodes)
    assert_equal_items(dataset, FrameStore(dataset))


def test_items_of_videos_are_those_of_lerobot(films: Path) -> None:
    dataset = opened(films, deltas={"action": [0, 1]})
    assert_equal_items(dataset, FrameStore(dataset))


def test_what_lerobot_reads_can_be_kept_in_memory(tmp_path: Path) -> None:
    """Matrices are kept, text is left out."""
    features = {
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        "pose": {"dtype": "float32", "shape": (4, 4), "names": None},
        "note": {"dtype": "string", "shape": (1,), "names": None},
    }
    target = LeRobotDataset.create("a/b", 10, features, root=tmp_path / "data", use_videos=False)
    rng = np.random.default_rng(0)
    for frame in range(3):
        numbers = {"action": rng.normal(size=2).astype("f4"), "pose": rng.normal(size=(4, 4)).astype("f4")}
        target.add_frame({**numbers, "note": f"frame {frame}", "task": "reach"})
    target.save_episode()
    target.finalize()
    dataset = opened(tmp_path / "data", deltas={})
    store = FrameStore(dataset)
    for index in range(3):
        expected, found = dataset[index], store[index]
        assert expected.keys() - found.keys() == {"note"}
        assert all(torch.equal(found[key], expected[key]) for key in found if key != "task")
    assert store[2]["pose"].shape == (4, 4)


def test_items_under_other_names(images: Path) -> None:
    deltas = {RENAME.get(key, key): indices for key, indices in DELTAS.items()}
    renamed, plain = opened(images, rename=RENAME, deltas=deltas), opened(images)
    assert_equal_items(renamed, FrameStore(renamed))
    item, same = renamed[3], plain[3]
    assert {RENAME.get(key, key) for key in plain.meta.features} == set(renamed.meta.features)
    assert torch.equal(item["observation.images.wrist"], same["observation.images.side"])
    assert torch.equal(item["observation.joints_is_pad"], same["observation.state_is_pad"])
    assert "observation.joints" in renamed.meta.stats
    assert "observation.state" not in renamed.meta.stats


def test_a_batch_stacks_items(images: Path) -> None:
    dataset = opened(images)
    store = FrameStore(dataset)
    indices = np.array([len(store) - 1, 0, 7, 7])
    batch = store.take(indices)
    assert batch["observation.images.front"].dtype == torch.uint8
    assert batch["observation.images.front"].shape == (4, 3, 24, 32)
    assert batch["action"].shape == (4, 5, 3)
    assert batch["action_is_pad"][0].tolist() == [False, True, True, True, True]
    items = [dataset[int(index)] for index in indices]
    for key in items[0]:
        if key == "task":
            assert batch[key] == [item[key] for item in items]
        else:
            values = batch[key] / 255 if batch[key].dtype == torch.uint8 else batch[key]
            assert torch.equal(values, torch.stack([item[key] for item in items])), key


def test_padding_stays_inside_the_episode(images: Path) -> None:
    store = FrameStore(opened(images))
    last = int(np.flatnonzero(np.diff(store.episodes))[0])
    chunk = store.take(np.array([last]))["action"][0]
    assert torch.equal(chunk, chunk[:1].expand_as(chunk))
    following = store.take(np.array([last + 1]))["action"][0, 0]
    assert not torch.equal(chunk[1], following)


def test_frames_that_do_not_fit_into_memory_are_refused(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened(images)
    assert frames.memory_estimate(dataset) == len(dataset) * 2 * 24 * 32 * 3
    assert f"{len(dataset)} frames take 0.00 GB" in check_memory(dataset)

    class Memory:
        available = frames.memory_estimate(dataset)

    monkeypatch.setattr(frames.psutil, "virtual_memory", Memory)
    with pytest.raises(DataError, match="dataset.in_memory=true: .* GB are free; set dataset.in_memory=false"):
        FrameStore(dataset)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"rename": {"observation.images.sidee": "x"}}, "dataset.rename.observation.images.sidee: .* did you mean"),
        ({"rename": {"observation.images.side": "action"}}, "two features would be called action"),
        ({"episodes": [1, 6]}, "there is no episode 6; the data set has 0 to 5"),
        ({"deltas": {"observation.sound": [0]}}, "delta indices of observation.sound: no such feature"),
    ],
)
def test_what_is_not_there_is_named(images: Path, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError, match=line):
        opened(images, **settings)


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no LeRobotDataset there .*; correct the folder"):
        opened(tmp_path)


def test_the_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    section = Dataset(name="toy", repo_id="nobody/nothing", root=str(tmp_path / "new"))
    with pytest.raises(
        DataError,
        match="repo_id=nobody/nothing: the hub is unreachable .*copy with dataset.root=FOLDER",
    ) as error:
        open_dataset(section)
    assert "\n" not in str(error.value)


def test_a_policys_neighbouring_frames() -> None:
    class Config:
        action_delta_indices, observation_delta_indices, reward_delta_indices = [0, 1], [0], None

    features = dict.fromkeys(["action", "observation.state", "next.reward", "index"])
    assert policy_delta_indices(Config, features) == {"action": [0, 1], "observation.state": [0]}


def test_numbers_of_double_precision_become_those_of_the_weights() -> None:
    from types import SimpleNamespace

    import pyarrow as pa

    from rlspec.vla.data.frames import _column
    from rlspec.vla.training.data import Items

    column = _column(pa.chunked_array([[[0.5, 1.0], [2.0, 3.0]]]), "float64")
    assert column.dtype == torch.float32 and column.tolist() == [[0.5, 1.0], [2.0, 3.0]]
    rows = [{"state": torch.ones(2, dtype=torch.float64), "index": torch.tensor(row)} for row in range(3)]

    class Rows(list):  # type: ignore[type-arg]
        meta = SimpleNamespace()

    batch = Items(Rows(rows)).take(np.array([0, 2]))
    assert batch["state"].dtype == torch.float32 and batch["index"].tolist() == [0, 2]
