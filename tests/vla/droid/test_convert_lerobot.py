"""LeRobot data sets in DROID naming: v3 by LeRobot's own writer, v2.1 by plain pyarrow, and our own."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from droid_fixtures import (
    PLAIN,
    SIZE,
    make_images,
    read_film_frames,
    read_pictures,
    read_record,
    read_rows,
    refusals,
    run,
    write_film,
    write_raw,
)
from numpy.typing import NDArray
from PIL import Image

from rlspec.errors import DataError
from rlspec.vla.data.checking import check_dataset

LENGTHS = (9, 7, 8)
OPENPI = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
LEROBOT = tuple(f"observation.images.{name}" for name in ("exterior_1_left", "exterior_2_left", "wrist_left"))
PORTED = {
    "observation.state.joint_position": 7,
    "observation.state.gripper_position": 1,
    "observation.state.cartesian_position": 6,
    "action.joint_velocity": 7,
    "action.joint_position": 7,
    "action.cartesian_velocity": 6,
    "action.gripper_position": 1,
    "action.original": 7,
    "action": 8,
}
Episodes = list[dict[str, NDArray[Any]]]


def make_episodes(columns: Mapping[str, int], cameras: tuple[str, ...]) -> Episodes:
    rng = np.random.default_rng(3)
    return [
        {name: rng.uniform(-1, 1, (length, size)).astype("f4") for name, size in columns.items()}
        | {camera: make_images(rng, length) for camera in cameras}
        for length in LENGTHS
    ]


def write_v3(root: Path, episodes: Episodes, columns: Mapping[str, int], cameras: tuple[str, ...], video: bool) -> None:
    """Frame by frame through LeRobot's recording API."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    kind = "video" if video else "image"
    features: dict[str, Any] = {
        camera: {"dtype": kind, "shape": (*SIZE, 3), "names": ["height", "width", "channel"]} for camera in cameras
    }
    features |= {name: {"dtype": "float32", "shape": (size,), "names": None} for name, size in columns.items()}
    if "action.original" in columns:
        features["is_episode_successful"] = {"dtype": "bool", "shape": (1,), "names": None}
    target = LeRobotDataset.create("a/b", 15, features, root=root, robot_type="panda", use_videos=video)
    for number, episode in enumerate(episodes):
        for frame in range(LENGTHS[number]):
            row = {name: values[frame] for name, values in episode.items()}
            if "action.original" in columns:
                row["is_episode_successful"] = np.array([number != 1])
            target.add_frame({**row, "task": f"task {number % 2}"})
        target.save_episode()
    target.finalize()


def write_v21(
    root: Path, episodes: Episodes, columns: Mapping[str, int], cameras: tuple[str, ...], video: bool
) -> None:
    """One file per episode, as the format was before."""
    (root / "meta").mkdir(parents=True)
    kind = "video" if video else "image"
    features = {camera: {"dtype": kind, "shape": [*SIZE, 3], "names": None} for camera in cameras}
    features |= {name: {"dtype": "float32", "shape": [size], "names": None} for name, size in columns.items()}
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": "v2.1",
        "fps": 15,
        "chunks_size": 2,
        "robot_type": "panda",
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    lines = [{"episode_index": number, "length": length} for number, length in enumerate(LENGTHS)]
    (root / "meta/episodes.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "task 0"}\n{"task_index": 1, "task": "task 1"}\n')
    for number, episode in enumerate(episodes):
        length, chunk = LENGTHS[number], number // 2
        table: dict[str, Any] = {name: [row.tolist() for row in episode[name]] for name in columns}
        table |= {"timestamp": np.arange(length) / 15, "episode_index": np.full(length, number)}
        table["task_index"] = np.full(length, number % 2)
        for camera in cameras:
            if video:
                path = root / f"videos/chunk-{chunk:03d}/{camera}/episode_{number:06d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                episode[camera] = write_film(path, episode[camera], rate=15)
            else:
                table[camera] = [{"bytes": png(image), "path": None} for image in episode[camera]]
        path = root / f"data/chunk-{chunk:03d}/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)


def png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def joined(episodes: Episodes, *names: str) -> NDArray[Any]:
    return np.concatenate([np.concatenate([each[name] for name in names], axis=-1) for each in episodes])


OPENPI_COLUMNS = {"joint_position": 7, "gripper_position": 1, "actions": 8}


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_openpis_naming(tmp_path: Path, version: str) -> None:
    episodes = make_episodes(OPENPI_COLUMNS, OPENPI)
    (write_v3 if version == "v3.0" else write_v21)(tmp_path / "in", episodes, OPENPI_COLUMNS, OPENPI, video=False)
    out = run("lerobot", tmp_path / "in", tmp_path / "out", *PLAIN)
    rows = read_rows(out)
    assert np.array_equal(rows["observation.state"], joined(episodes, "joint_position", "gripper_position"))
    assert np.array_equal(rows["action"], joined(episodes, "actions"))
    for camera, name in zip(("exterior_1_left", "exterior_2_left", "wrist_left"), OPENPI, strict=True):
        assert np.array_equal(read_pictures(out, camera), joined(episodes, name))
    record = read_record(out)
    assert [each["task"] for each in record["episodes"]] == ["task 0", "task 1", "task 0"]
    assert (record["robot"], record["source"]["format"]) == ("panda", "lerobot")
    assert check_dataset(out).frames == sum(LENGTHS)


def test_openpis_actions_are_no_other_space_unless_it_is_said(tmp_path: Path) -> None:
    write_v21(tmp_path / "in", make_episodes(OPENPI_COLUMNS, OPENPI), OPENPI_COLUMNS, OPENPI, video=False)
    with pytest.raises(DataError, match="no action joint_position, .* that are there: joint_velocity"):
        run("lerobot", tmp_path / "in", tmp_path / "out", *PLAIN, "action_space=joint_position")
    more = ("action_space=joint_position", "source_action=joint_position")
    assert read_record(run("lerobot", tmp_path / "in", tmp_path / "out", *PLAIN, *more))["action_space"] == more[0][13:]
    with pytest.raises(DataError, match="actions has 8 numbers, cartesian_position has 7"):
        run(
            "lerobot",
            tmp_path / "in",
            tmp_path / "b",
            *PLAIN,
            "action_space=cartesian_position",
            "source_action=cartesian_position",
        )


@pytest.mark.parametrize("space", ["joint_velocity", "joint_position", "cartesian_velocity"])
def test_lerobots_port_with_videos(ported: tuple[Path, Episodes], tmp_path: Path, space: str) -> None:
    """Its `action` holds joint positions: a trap where joint velocities are wanted."""
    root, episodes = ported
    out = run("lerobot", root, tmp_path / "out", *PLAIN, f"action_space={space}", "success=all")
    rows = read_rows(out)
    assert np.array_equal(rows["action"], joined(episodes, f"action.{space}", "action.gripper_position"))
    films = read_film_frames(root / "videos" / LEROBOT[2] / "chunk-000/file-000.mp4")
    assert np.array_equal(read_pictures(out, "wrist_left"), films)


@pytest.fixture(scope="module")
def ported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Episodes]:
    """Three episodes in one video; read only."""
    root = tmp_path_factory.mktemp("ported") / "data"
    episodes = make_episodes(PORTED, LEROBOT)
    write_v3(root, episodes, PORTED, LEROBOT, video=True)
    return root, episodes


def test_success_is_read_where_it_is_said(ported: tuple[Path, Episodes], tmp_path: Path) -> None:
    out = run("lerobot", ported[0], tmp_path / "out", *PLAIN)
    assert refusals(out) == {"episode 1": ("not_successful", "a failure, left out by success=only")}
    frames = np.concatenate([ported[1][number][LEROBOT[0]] for number in (0, 2)])
    shown = read_pictures(out, "exterior_1_left")
    # Encoded with losses by LeRobot: far nearer to its own frames than to any other ones.
    assert np.abs(shown.astype(int) - frames).mean() < 25
    assert np.abs(shown.astype(int) - np.roll(frames, 1, axis=0)).mean() > 50


def test_old_videos_and_what_is_missing(tmp_path: Path) -> None:
    episodes = make_episodes(OPENPI_COLUMNS, OPENPI)
    root = tmp_path / "in"
    write_v21(root, episodes, OPENPI_COLUMNS, OPENPI, video=True)
    (root / "videos/chunk-000/wrist_image_left/episode_000000.mp4").unlink()
    film = root / "videos/chunk-000/wrist_image_left/episode_000001.mp4"
    write_film(film, episodes[1]["wrist_image_left"][:-1], rate=15)
    out = run("lerobot", root, tmp_path / "out", *PLAIN)
    assert np.array_equal(read_pictures(out, "wrist_left"), episodes[2]["wrist_image_left"])
    assert refusals(out) == {
        "episode 0": ("missing_camera", "no videos/chunk-000/wrist_image_left/episode_000000.mp4"),
        "episode 1": ("length_mismatch", "wrist_image_left has 6 frames, the episode 7"),
    }


def test_a_film_at_another_rate_than_the_data_set_is_refused(tmp_path: Path) -> None:
    """LeRobot would show its frames 0, 2, 4, ..."""
    episodes = make_episodes(OPENPI_COLUMNS, OPENPI)
    root = tmp_path / "in"
    write_v21(root, episodes, OPENPI_COLUMNS, OPENPI, video=True)
    film = root / "videos/chunk-000/wrist_image_left/episode_000001.mp4"
    write_film(film, episodes[1]["wrist_image_left"], rate=30)
    out = run("lerobot", root, tmp_path / "out", *PLAIN)
    reason = "episode_000001.mp4 has 30 frames per second, meta/info.json says fps=15"
    assert refusals(out) == {"episode 1": ("wrong_rate", reason)}


def test_a_rate_goes_before_what_the_data_set_says(tmp_path: Path) -> None:
    write_v21(tmp_path / "in", make_episodes(OPENPI_COLUMNS, OPENPI), OPENPI_COLUMNS, OPENPI, video=False)
    out = run("lerobot", tmp_path / "in", tmp_path / "out", *PLAIN, "source_fps=20")
    assert refusals(out) == {}
    assert check_dataset(out).fps == 20
    assert np.allclose(read_rows(out)["timestamp"][:3], [0, 0.05, 0.1])


def test_a_rate_may_be_what_the_clock_says(tmp_path: Path) -> None:
    """Then info.json alone is wrong."""
    root = tmp_path / "in"
    write_v21(root, make_episodes(OPENPI_COLUMNS, OPENPI), OPENPI_COLUMNS, OPENPI, video=False)
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        slow = pa.array(np.arange(len(table)) / 10, type=table.schema.field("timestamp").type)
        pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", slow), path)
    with pytest.raises(DataError, match="recorded at 10 Hz by its timestamps, 15 expected; source_fps="):
        run("lerobot", root, tmp_path / "no", *PLAIN)
    out = run("lerobot", root, tmp_path / "out", *PLAIN, "source_fps=10")
    assert refusals(out) == {} and check_dataset(out).fps == 10


def test_our_own_data_sets_can_be_converted_again(tmp_path: Path) -> None:
    episode = write_raw(tmp_path / "raw" / "one", rlspec={"execution_law": "stiff_position", "pose_frame": "tcp"})
    once = run("droid_raw", tmp_path / "raw", tmp_path / "once", *PLAIN, "action_space=joint_position")
    with pytest.raises(DataError, match="no action joint_velocity"):
        run("lerobot", once, tmp_path / "twice", *PLAIN)
    twice = run("lerobot", once, tmp_path / "twice", *PLAIN, "action_space=joint_position", "fps=5")
    record = read_record(twice)
    assert (record["execution_law"], record["robot"], record["pose_frame"]) == ("stiff_position", "panda", "flange")
    targets = episode.arrays["action/joint_position"].astype("f4")
    assert np.array_equal(read_rows(twice)["action"][:, :7], targets[[2, 5, 8, 11, 14, 17, 19]])
    assert np.array_equal(read_pictures(twice, "wrist_left"), episode.films["wrist"][::3])
    assert check_dataset(twice).fps == 5


def test_what_is_no_data_set_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "in/meta").mkdir(parents=True)
    with pytest.raises(DataError, match="no LeRobot data set there"):
        run("lerobot", tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/meta/info.json").write_text('{"codebase_version": "v1.6", "features": {}}')
    with pytest.raises(DataError, match="format v1.6; v2.1 and v3.0 are read"):
        run("lerobot", tmp_path / "in", tmp_path / "out")
