"""Statistics are those of all frames, by numpy's word; LeRobot 0.6.1's own are not."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from rlspec.config.vla_schema import Dataset
from rlspec.errors import DataError
from rlspec.vla.data.exact_statistics import (
    exact_statistics,
    image_statistics,
    repair_statistics,
    statistics_fault,
    vector_statistics,
)
from rlspec.vla.data.opening import open_dataset
from rlspec.vla.data.recording import count_values

LEVELS = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def expected(values: NDArray[Any], axis: Any = 0) -> dict[str, NDArray[Any]]:
    numbers = values.astype(np.float64)
    plain = {name: getattr(numbers, name)(axis=axis) for name in ("min", "max", "mean", "std")}
    return plain | {name: np.quantile(numbers, level, axis=axis) for name, level in LEVELS.items()}


@pytest.mark.parametrize("kind", ["images", "films"])
def test_collected_data_has_exact_statistics(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    dataset = open_dataset(Dataset(name="toy"), root=root)
    stored = json.loads((root / "meta/stats.json").read_text())
    items = [dataset[index] for index in range(len(dataset))]
    for key in ("action", "observation.state", "executed_action"):
        for name, values in expected(np.stack([item[key].numpy() for item in items])).items():
            assert np.allclose(stored[key][name], values, rtol=1e-6, atol=1e-7), (key, name)
        assert stored[key]["count"] == [len(items)]
    # Frames of a film differ a little from those that were filmed and counted.
    tolerance = 1e-6 if kind == "images" else 0.02
    pixels = np.stack([item["observation.images.side"].numpy() for item in items])
    for name, values in expected(pixels, axis=(0, 2, 3)).items():
        if kind == "images" or name in ("mean", "std"):
            found = np.array(stored["observation.images.side"][name])
            assert found.shape == (3, 1, 1)
            assert np.allclose(found.reshape(3), values, atol=tolerance), name
    assert statistics_fault(root) is None


def test_quantiles_lie_between_frames() -> None:
    """By the sorted numbers, with linear interpolation."""
    values = np.random.default_rng(1).normal(size=(38, 2)).astype(np.float32)
    found = vector_statistics(values)
    for column in range(2):
        ordered = sorted(float(value) for value in values[:, column])
        for name, level in LEVELS.items():
            below, share = divmod(37 * level, 1)
            between = ordered[int(below)] * (1 - share) + ordered[int(below) + 1] * share
            assert found[name][column] == pytest.approx(between, abs=1e-9), name
        assert found["std"][column] == pytest.approx(statistics.pstdev(ordered))


def test_pixels_are_counted_exactly() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 7, 11, 3)).astype(np.uint8) // 3 * 2
    found = image_statistics(count_values(images), 5)
    for name, values in expected(images / 255.0, axis=(0, 1, 2)).items():
        assert np.allclose(found[name].reshape(3), values, atol=1e-12), name
    assert found["count"].tolist() == [5]


@pytest.fixture(scope="module")
def by_lerobot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes whose numbers lie far apart, written by LeRobot alone."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("lerobot") / "data"
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": None},
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        "observation.images.front": {"dtype": "image", "shape": (8, 8, 3), "names": ["height", "width", "channels"]},
    }
    dataset = LeRobotDataset.create("toy/lerobot", 10, features, root=root, use_videos=False, video_backend="pyav")
    rng = np.random.default_rng(0)
    for centre in (-5.0, 0.0, 5.0):
        for _ in range(20):
            frame = {key: rng.normal(centre, 1, 2).astype(np.float32) for key in ("observation.state", "action")}
            picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            dataset.add_frame({**frame, "observation.images.front": picture, "task": "stir"})
        dataset.save_episode()
    dataset.finalize()
    return root


def test_lerobots_quantiles_are_found_wrong_and_repaired(by_lerobot: Path, copy_of: Callable[[Path], Path]) -> None:
    root = copy_of(by_lerobot)
    before = json.loads((root / "meta/stats.json").read_text())
    fault = statistics_fault(root)
    assert fault is not None
    assert "q01" in fault
    assert statistics_fault(root) is not None
    assert repair_statistics(root) == fault
    assert statistics_fault(root) is None
    assert repair_statistics(root) is None
    after = json.loads((root / "meta/stats.json").read_text())
    assert after["observation.images.front"] == before["observation.images.front"]
    assert after["action"]["q01"][0] < before["action"]["q01"][0] - 1


def test_missing_statistics_are_computed(images: Path, copy_of: Callable[[Path], Path]) -> None:
    root = copy_of(images)
    before = json.loads((root / "meta/stats.json").read_text())
    (root / "meta/stats.json").unlink()
    assert repair_statistics(root, image_frames=None) == "statistics are missing"
    after = json.loads((root / "meta/stats.json").read_text())
    assert after.keys() == before.keys()
    for key, each in before.items():
        for name, values in each.items():
            assert np.allclose(after[key][name], values), (key, name)


def test_films_are_counted_frame_by_frame(films: Path) -> None:
    stored = json.loads((films / "meta/stats.json").read_text())
    counted = exact_statistics(films, image_frames=None)["observation.images.front"]
    assert counted["count"] == stored["observation.images.front"]["count"]
    assert np.allclose(counted["mean"], stored["observation.images.front"]["mean"], atol=0.02)
    some = exact_statistics(films, image_frames=5)["observation.images.front"]
    assert some["count"].tolist() == [5]


def test_opening_takes_exact_statistics_where_the_stored_are_not(
    by_lerobot: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = (by_lerobot / "meta/stats.json").read_text()
    dataset = open_dataset(Dataset(name="toy"), root=by_lerobot)
    assert "training takes those of all frames" in caplog.text
    actions = np.stack([dataset[index]["action"].numpy() for index in range(len(dataset))])
    assert np.allclose(dataset.meta.stats["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    assert (by_lerobot / "meta/stats.json").read_text() == stored


def test_an_episode_with_a_number_that_is_not_finite_can_be_left_out(
    by_lerobot: Path, copy_of: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = copy_of(by_lerobot)
    path = next(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    index, actions = table.column_names.index("action"), np.array(table.column("action").to_pylist())
    actions[3] = np.nan
    column = pa.array(actions.tolist(), type=table.schema.field("action").type)
    pq.write_table(table.set_column(index, table.schema.field("action"), column), path)
    stored = json.loads((root / "meta/stats.json").read_text())
    for episodes in (None, [0, 1]):  # it may be a feature that nobody reads: what trains is checked apart
        dataset = open_dataset(Dataset(name="toy", episodes=episodes), root=root)
        assert np.array_equal(dataset.meta.stats["action"]["q99"], stored["action"]["q99"])
    assert "taken as they are stored" in caplog.text
    stored["action"]["mean"][0] = float("nan")
    (root / "meta/stats.json").write_text(json.dumps(stored))
    for episodes in (None, [0, 1]):
        with pytest.raises(DataError, match="not finite in 1 frames.* leave the episode out with dataset.episodes"):
            open_dataset(Dataset(name="toy", episodes=episodes), root=root)
    dataset = open_dataset(Dataset(name="toy", episodes=[1]), root=root)
    assert "those of the chosen episodes: " in caplog.text
    chosen = actions[np.array(table.column("episode_index").to_pylist()) == 1]
    assert np.isfinite(chosen).all() and len(chosen) < len(actions)
    assert np.allclose(dataset.meta.stats["action"]["q99"], np.quantile(chosen, 0.99, axis=0))
