"""DROID in RLDS as TensorFlow Datasets wrote it, read without TensorFlow; and the trap in its `action`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from droid_fixtures import read_pictures, read_record, read_rows, refusals, run

from rlspec.errors import ConfigError, DataError
from rlspec.vla.data.checking import check_dataset
from rlspec.vla.droid import rlds
from rlspec.vla.droid.settings import ConvertSettings

TINY, PLAIN = (Path(__file__).parent / "rlds" / name for name in ("droid_tiny", "droid_plain"))
SMALL = ("image_size=12x16", "video=false", "workers=1")
FIRST = "1.0.0/droid_tiny-train.tfrecord-00000-of-00002"
SECOND = "1.0.0/droid_tiny-train.tfrecord-00001-of-00002"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """`e0/action_dict/joint_velocity` and so on, as TensorFlow Datasets read them."""
    with np.load(TINY / "expected.npz") as stored:
        return dict(stored)


def test_values_are_those_that_tensorflow_datasets_reads(tmp_path: Path, expected: dict[str, np.ndarray]) -> None:
    out = run("droid_rlds", TINY, tmp_path / "out", *SMALL, "success=all")
    rows = read_rows(out)
    order = ("e0", "e2", "e1")  # of the shards, which are shuffled

    def joined(name: str) -> np.ndarray:
        return np.concatenate([expected[f"{episode}/{name}"] for episode in order]).astype("f4")

    assert np.array_equal(rows["observation.state"][:, :7], joined("observation/joint_position"))
    assert np.array_equal(rows["observation.state"][:, 7:], joined("observation/gripper_position"))
    assert np.array_equal(rows["action"][:, :7], joined("action_dict/joint_velocity"))
    assert np.array_equal(rows["action"][:, 7:], joined("action_dict/gripper_position"))
    assert np.array_equal(read_pictures(out, "wrist_left"), joined("observation/wrist_image_left"))
    assert np.array_equal(read_pictures(out, "exterior_1_left"), joined("observation/exterior_image_1_left"))
    assert [each["task"] for each in read_record(out)["episodes"]] == [
        "put cup 0 down",
        "place cup 2",
        "put cup 1 down",
    ]
    assert check_dataset(out).frames == 12


def test_success_is_read_from_the_path(tmp_path: Path) -> None:
    out = run("droid_rlds", TINY, tmp_path / "out", *SMALL)
    assert [each["success"] for each in read_record(out)["episodes"]] == [True, True]
    assert refusals(out) == {f"{SECOND}:0": ("not_successful", "a failure, left out by success=only")}


@pytest.mark.parametrize("space", ["joint_velocity", "joint_position", "cartesian_velocity"])
def test_action_is_never_taken_for_joint_velocities(tmp_path: Path, space: str) -> None:
    with pytest.raises(DataError, match="no action_dict, and RLDS `action` is Cartesian: action_space=") as error:
        run("droid_rlds", PLAIN, tmp_path / "out", *SMALL, f"action_space={space}")
    assert "set action_space=cartesian_position" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_action_dict_the_cartesian_action_is_used_as_such(tmp_path: Path) -> None:
    out = run("droid_rlds", PLAIN, tmp_path / "out", *SMALL, "action_space=cartesian_position")
    with np.load(PLAIN / "expected.npz") as stored:
        assert np.array_equal(read_rows(out)["action"], stored["e0/action"].astype("f4"))


def test_with_action_dict_joint_velocities_are_not_the_action(tmp_path: Path, expected: dict[str, np.ndarray]) -> None:
    out = run("droid_rlds", TINY, tmp_path / "out", *SMALL, "limit=1")
    action = read_rows(out)["action"]
    assert np.array_equal(action[:, :7], expected["e0/action_dict/joint_velocity"].astype("f4"))
    assert not np.isclose(action[:, :6], expected["e0/action"][:, :6]).any()


def test_damage_is_refused_and_the_rest_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "rlds"
    shutil.copytree(TINY, root)
    content = bytearray((root / FIRST).read_bytes())
    content[3000] ^= 0xFF
    (root / FIRST).write_bytes(content)
    out = run("droid_rlds", root, tmp_path / "out", *SMALL, "success=all")
    assert refusals(out) == {f"{FIRST}:0": ("corrupt_file", "the checksum of the record at byte 12 is wrong")}
    assert [each["source"] for each in read_record(out)["episodes"]] == [f"{FIRST}:1", f"{SECOND}:0"]


def test_lost_episodes_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "rlds"
    shutil.copytree(TINY, root)
    content = (root / FIRST).read_bytes()
    (root / FIRST).write_bytes(content[:-100])
    out = run("droid_rlds", root, tmp_path / "out", *SMALL, "success=all")
    reason = f"holds 1 of 2 episodes, cut short at byte {len(content) - 100}; download it again"
    assert refusals(out) == {f"{FIRST}:lost": ("corrupt_file", reason)}
    # Cut between two records: only dataset_info.json knows.
    whole = 12 + 6740 + 4
    (root / FIRST).write_bytes(content[:whole])
    out = run("droid_rlds", root, tmp_path / "again", *SMALL, "success=all")
    assert refusals(out) == {f"{FIRST}:lost": ("corrupt_file", "holds 1 of 2 episodes; download it again")}
    info = json.loads((root / "1.0.0/dataset_info.json").read_text())
    assert info["splits"][0]["shardLengths"] == ["2", "1"]


def test_a_missing_camera_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "rlds"
    shutil.copytree(TINY, root)
    for name in (FIRST, SECOND):
        rename_feature(root / name, b"exterior_image_2_left", b"exterior_image_9_left")
    with pytest.raises(
        DataError, match="none of 3 recordings .*missing_camera 2.*no steps/observation/exterior_image_2"
    ):
        run("droid_rlds", root, tmp_path / "out", *SMALL)
    out = run("droid_rlds", root, tmp_path / "out", *SMALL, "cameras=exterior_1_left,wrist_left")
    assert check_dataset(out).episodes == 2


def rename_feature(path: Path, old: bytes, new: bytes) -> None:
    """Rewrite a file with another name, of the same length, and new checksums."""
    import struct

    from rlspec.vla.droid.tfrecord import list_records, masked_crc32c

    content, written = path.read_bytes(), b""
    for place in list_records(path)[0]:
        record = content[place.offset : place.offset + place.length].replace(old, new)
        head = struct.pack("<Q", len(record))
        written += head + struct.pack("<I", masked_crc32c(head)) + record + struct.pack("<I", masked_crc32c(record))
    path.write_bytes(written)


def test_a_folder_without_records_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rlds").mkdir()
    with pytest.raises(DataError, match="no TFRecord files"):
        run("droid_rlds", tmp_path / "rlds", tmp_path / "out")


def ranges_file(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def key_of(place: str) -> str:
    """As openpi's compute_droid_nonidle_ranges.py makes it."""
    folder = f"gs://x/LAB/{place}"
    return f"{folder}/recordings/MP4--{folder}/trajectory.h5"


def test_openpis_ranges_say_which_frames_are_kept(tmp_path: Path, expected: dict[str, np.ndarray]) -> None:
    ranges = {key_of("success/2023/e2"): [[0, 2], [3, 99]], key_of("failure/2023/e1"): [], "gs://other": [[0, 4]]}
    file = ranges_file(tmp_path / "droid_sample_ranges.json", ranges)
    out = run("droid_rlds", TINY, tmp_path / "out", *SMALL, "success=all", f"ranges={file}")
    velocities = expected["e2/action_dict/joint_velocity"].astype("f4")
    assert np.array_equal(read_rows(out)["action"][:, :7], velocities[[0, 1, 3, 4]])
    assert [each["range"] for each in read_record(out)["episodes"]] == [[0, 2], [3, 5]]
    assert set(refusals(out).values()) == {
        ("idle", "ranges= keeps none of its 3 frames"),
        ("idle", "ranges= keeps none of its 4 frames"),
    }


@pytest.mark.parametrize("content", [[], {"a": 3}, {"a": [[1]]}, {"a": [["x", 2]]}, {"a": [[4, 9], [2, 4]]}])
def test_a_file_that_holds_no_ranges_is_one_line(tmp_path: Path, content: object) -> None:
    file = ranges_file(tmp_path / "ranges.json", content)
    with pytest.raises(DataError, match="ranges=.*first frame, end.* is wanted"):
        run("droid_rlds", TINY, tmp_path / "out", *SMALL, f"ranges={file}")


def test_ranges_are_rlds_alone_and_the_only_rule(tmp_path: Path) -> None:
    file = ranges_file(tmp_path / "ranges.json", {})
    with pytest.raises(ConfigError, match="ranges and idle=drop: both say what is kept"):
        run("droid_rlds", TINY, tmp_path / "out", *SMALL, f"ranges={file}", "idle=drop")
    with pytest.raises(ConfigError, match="ranges: openpi's file names the episodes of source=droid_rlds alone"):
        run("droid_raw", TINY, tmp_path / "out", *SMALL, f"ranges={file}")


OWN = ("put cup 0 down", "place cup 0", "place cup 0")
MADE = "/nfs/droid/IRIS/success/2023-07-07/Fri_Jul__7_09:42:23_2023/trajectory.h5"


@pytest.mark.parametrize(
    ("uuids", "found"),
    [
        (["IRIS+0d4edc4b+2023-07-07-09h-42m-23s"], ("wipe it", "", "clean it")),
        (["ILIAD+0d4edc4b+2023-07-07-09h-42m-23s"], OWN),  # another laboratory
        (["IRIS+0d4edc4b+2023-07-07-09h-42m-24s"], OWN),  # a second later
        ([f"IRIS+{user}+2023-07-07-09h-42m-23s" for user in ("a", "b")], OWN),  # which one?
        (["IRIS+0d4edc4b+2023-99-07-09h-42m-23s", "nonsense"], OWN),
    ],
)
def test_annotations_go_to_the_recording_of_their_laboratory_and_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uuids: list[str], found: tuple[str, ...]
) -> None:
    texts = {"language_instruction1": "wipe it", "language_instruction3": "clean it"}
    file = ranges_file(tmp_path / "annotations.json", dict.fromkeys(uuids, texts))
    given = ["source=droid_rlds", f"path={TINY}", f"out={tmp_path / 'out'}", f"annotations={file}"]
    source = rlds.RldsSource(ConvertSettings.read(given))
    text = rlds._text
    monkeypatch.setattr(rlds, "_text", lambda example, name: MADE if "metadata/" in name else text(example, name))
    item = next(item for item in source.items() if item.identity == f"{FIRST}:0")
    assert source.read(item).instructions == found


def test_annotations_of_a_lerobot_data_set_are_inside(tmp_path: Path) -> None:
    file = ranges_file(tmp_path / "annotations.json", {})
    with pytest.raises(ConfigError, match="annotations: a LeRobot data set has its instructions inside"):
        run("lerobot", TINY, tmp_path / "out", *SMALL, f"annotations={file}")
