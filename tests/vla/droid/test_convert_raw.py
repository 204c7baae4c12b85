"""Raw DROID folders: what is in them arrives, and what is broken is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from droid_fixtures import (
    PLAIN,
    RAW,
    SERIALS,
    SIZE,
    RawEpisode,
    change,
    read_film_frames,
    read_pictures,
    read_record,
    read_rows,
    refusals,
    run,
    write_film,
    write_raw,
)
from PIL import Image
from scipy.spatial.transform import Rotation

from rlspec.contract.actions import ACTION_SPACES
from rlspec.contract.records import DATA_KEYS
from rlspec.display import Display
from rlspec.errors import DataError
from rlspec.vla.data.checking import check_dataset
from rlspec.vla.data.exact_statistics import statistics_fault


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RawEpisode]]:
    """Two successes and a failure; read only."""
    root = tmp_path_factory.mktemp("raw") / "lab"
    names = ("success/a", "success/deep/b", "failure/c")
    return root, [
        write_raw(root / name, 12 + seed, seed=seed, success="success" in name) for seed, name in enumerate(names)
    ]


Raw = tuple[Path, list[RawEpisode]]


def test_every_number_and_pixel_arrives(raw: Raw, tmp_path: Path) -> None:
    root, (first, second, _) = raw
    out = run("droid_raw", root, tmp_path / "out", *PLAIN)
    rows = read_rows(out)
    arrays = {name: np.concatenate([first.arrays[name], second.arrays[name]]) for name in first.arrays}
    assert np.array_equal(
        rows["observation.state"][:, :7], arrays["observation/robot_state/joint_positions"].astype("f4")
    )
    assert np.array_equal(
        rows["observation.state"][:, 7], arrays["observation/robot_state/gripper_position"].astype("f4")
    )
    assert np.array_equal(rows["action"][:, :7], arrays["action/joint_velocity"].astype("f4"))
    assert np.array_equal(rows["action"][:, 7], arrays["action/gripper_position"].astype("f4"))
    assert np.array_equal(rows["episode_index"], [0] * 12 + [1] * 13)
    for camera, name in RAW.items():
        films = np.concatenate([first.films[name], second.films[name]])
        assert np.array_equal(read_pictures(out, camera), films)
    report = check_dataset(out)
    assert (report.episodes, report.frames, report.fps, report.tasks) == (2, 25, 15, 2)
    assert statistics_fault(out) is None


def test_the_record_says_what_the_numbers_mean(raw: Raw, tmp_path: Path) -> None:
    record = read_record(run("droid_raw", raw[0], tmp_path / "out", *PLAIN))
    assert set(DATA_KEYS) <= record.keys()
    assert (record["suite"], record["action_space"], record["control_hz"]) == ("droid", "joint_velocity", 15.0)
    assert record["units"] == ["unitless"] * 7 + ["closure"]
    assert (record["execution_law"], record["robot"], record["pose_frame"]) == ("droid_hybrid", "panda", "flange")
    assert [(each["source"], each["task"], each["success"], each["frames"]) for each in record["episodes"]] == [
        ("success/a", "put cup 0 down", True, 12),
        ("success/deep/b", "put cup 1 down", True, 13),
    ]


def test_failures_are_left_out_unless_wanted(raw: Raw, tmp_path: Path) -> None:
    only = run("droid_raw", raw[0], tmp_path / "only", *PLAIN)
    assert refusals(only) == {"failure/c": ("not_successful", "a failure, left out by success=only")}
    every = run("droid_raw", raw[0], tmp_path / "all", *PLAIN, "success=all")
    assert [each["success"] for each in read_record(every)["episodes"]] == [False, True, True]
    assert refusals(every) == {}


@pytest.mark.parametrize("space", ["joint_position", "cartesian_velocity", "cartesian_position"])
def test_recorded_action_spaces(raw: Raw, tmp_path: Path, space: str) -> None:
    out = run("droid_raw", raw[0], tmp_path / "out", *PLAIN, f"action_space={space}", "cameras=wrist_left", "limit=1")
    arrays = raw[1][0].arrays
    expected = np.column_stack([arrays[f"action/{space}"], arrays["action/gripper_position"]])
    assert np.array_equal(read_rows(out)["action"], expected.astype("f4"))
    info = json.loads((out / "meta" / "info.json").read_text())
    assert info["features"]["action"]["names"] == list(ACTION_SPACES[space].names)
    assert [name for name in info["features"] if "images" in name] == ["observation.images.wrist_left"]


def test_delta_eef_is_the_measured_motion_of_the_hand(raw: Raw, tmp_path: Path) -> None:
    out = run("droid_raw", raw[0], tmp_path / "out", *PLAIN, "action_space=delta_eef", "limit=1")
    arrays = raw[1][0].arrays
    poses, expected = arrays["observation/robot_state/cartesian_position"], []
    turns = Rotation.from_euler("xyz", poses[:, 3:])
    tips = poses[:, :3] + turns.apply([0, 0, 0.1034])  # DROID's poses are the flange's
    for frame in range(len(poses) - 1):
        turn = turns[frame + 1] * turns[frame].inv()
        expected.append([*((tips[frame + 1] - tips[frame]) / 0.05), *(turn.as_rotvec() / 0.5)])
    action = read_rows(out)["action"]
    assert np.allclose(action[:-1, :6], expected, atol=1e-6)
    assert np.array_equal(action[-1, :6], np.zeros(6))
    assert np.allclose(action[:, 6], 2 * arrays["action/gripper_position"] - 1, atol=1e-6)


def test_poses_of_the_fingertips_become_those_of_the_flange(tmp_path: Path) -> None:
    """A robot takes `cartesian_position` for the flange's: 10 cm too low where it is the fingertips'."""
    tips = write_raw(tmp_path / "raw/a", rlspec={"pose_frame": "tcp"}).arrays["action/cartesian_position"]
    flange = write_raw(tmp_path / "raw/b", seed=1).arrays["action/cartesian_position"]
    out = run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN, "action_space=cartesian_position")
    turns = Rotation.from_euler("xyz", tips[:, 3:])
    found = read_rows(out)["action"]
    assert np.allclose(found[:20, :3], tips[:, :3] - turns.apply([0, 0, 0.1034]), atol=1e-6)
    hand = Rotation.from_euler("xyz", found[:20, 3:6]) * Rotation.from_euler("z", -45, degrees=True)
    assert np.allclose(hand.as_matrix(), turns.as_matrix(), atol=1e-6)
    assert np.array_equal(found[20:, :6], flange.astype("f4"))
    record = read_record(out)
    assert {record["pose_frame"], *(each["pose_frame"] for each in record["episodes"])} == {"flange"}


def test_bgr_recordings_become_rgb(raw: Raw, tmp_path: Path) -> None:
    out = run("droid_raw", raw[0], tmp_path / "out", *PLAIN, "bgr=true", "limit=1")
    assert np.array_equal(read_pictures(out, "wrist_left"), raw[1][0].films["wrist"][..., [2, 1, 0]])


def test_other_sizes_keep_their_proportions(raw: Raw, tmp_path: Path) -> None:
    out = run("droid_raw", raw[0], tmp_path / "out", "video=false", "image_size=40x40", "limit=1")
    pictures, film = read_pictures(out, "wrist_left"), raw[1][0].films["wrist"]
    height = int(SIZE[0] * 40 / SIZE[1])
    top = (40 - height) // 2
    assert not pictures[:, :top].any()
    assert not pictures[:, top + height :].any()
    expected = np.array(Image.fromarray(film[3]).resize((40, height), Image.Resampling.BILINEAR))
    assert np.array_equal(pictures[3, top : top + height], expected)


def test_videos_show_what_was_recorded(raw: Raw, tmp_path: Path) -> None:
    out = run("droid_raw", raw[0], tmp_path / "out", "image_size=32x48")
    film = read_film_frames(out / "videos/observation.images.wrist_left/chunk-000/file-000.mp4")
    expected = np.concatenate([each.films["wrist"] for each in raw[1][:2]])
    assert film.shape == expected.shape
    # H.264 keeps colour at half the resolution, so edges of blocks differ.
    assert np.abs(film.astype(int) - expected).mean() < 12
    wrong = np.abs(film.astype(int) - np.roll(expected, 1, axis=0)).mean()
    assert wrong > 40
    assert check_dataset(out).frames == 25


ANNOTATED = {
    "language_instruction1": "lift it",
    "language_instruction2": "raise it",
    "language_instruction3": "raise it",
}


def test_instructions_of_annotators_go_before_the_task(raw: Raw, tmp_path: Path) -> None:
    uuids = [json.loads(next(each.folder.glob("*.json")).read_text())["uuid"] for each in raw[1]]
    file = tmp_path / "texts.json"
    file.write_text(json.dumps({uuids[0]: ANNOTATED}))

    def tasks(choice: str) -> list[str]:
        out = run("droid_raw", raw[0], tmp_path / choice, *PLAIN, f"annotations={file}", f"instruction={choice}")
        return [each["task"] for each in read_record(out)["episodes"]]

    assert tasks("first") == ["lift it", "put cup 1 down"]
    assert tasks("all") == ["lift it", "raise it", "put cup 1 down"]
    assert check_dataset(tmp_path / "all").frames == 12 + 12 + 13
    assert tasks("1") == ["raise it"]
    assert refusals(tmp_path / "1")["success/deep/b"] == (
        "no_instruction",
        "it has 1 instructions, none with the index 1",
    )


def without_camera(episode: RawEpisode) -> None:
    (episode.folder / "recordings/MP4/222.mp4").unlink()


def cut_film(episode: RawEpisode) -> None:
    path = episode.folder / "recordings/MP4/333.mp4"
    write_film(path, episode.films["wrist"][:-2])


def break_film(episode: RawEpisode) -> None:
    path = episode.folder / "recordings/MP4/111.mp4"
    path.write_bytes(path.read_bytes()[:200])


def scramble_film(episode: RawEpisode) -> None:
    """The index is whole, the pictures are not."""
    path = episode.folder / "recordings/MP4/111.mp4"
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 1200
    content[start : start + 6000] = bytes(6000)
    path.write_bytes(content)


def damage_pictures(episode: RawEpisode) -> None:
    """A decoder hides it: it gives 20 frames without a word."""
    path = episode.folder / "recordings/MP4/111.mp4"
    content = bytearray(path.read_bytes())
    for start in range(content.index(b"mdat") + 1000, content.index(b"moov") - 100, 700):
        content[start : start + 40] = bytes(40)
    path.write_bytes(content)


def not_a_number(episode: RawEpisode) -> None:
    values = episode.arrays["action/joint_velocity"].copy()
    values[4, 2] = np.nan
    change(episode, "action/joint_velocity", values)


def shorter_action(episode: RawEpisode) -> None:
    change(episode, "action/joint_velocity", episode.arrays["action/joint_velocity"][:-1])


def without_key(episode: RawEpisode) -> None:
    change(episode, "action/gripper_position", None)


def slow_clock(episode: RawEpisode) -> None:
    change(episode, "observation/timestamp/control/step_start", np.arange(20) * 100 + 5_000)


def backward_clock(episode: RawEpisode) -> None:
    change(episode, "observation/timestamp/control/step_start", 5_000 - np.arange(20) * 66)


def shift_clock(episode: RawEpisode, frame: int, milliseconds: int) -> None:
    values = episode.arrays["observation/timestamp/control/step_start"].copy()
    values[frame:] += milliseconds
    change(episode, "observation/timestamp/control/step_start", values)


def clock_set_back(episode: RawEpisode) -> None:
    shift_clock(episode, 12, -3600)


def frames_lost(episode: RawEpisode) -> None:
    shift_clock(episode, 8, 2000)


def only_svo(episode: RawEpisode) -> None:
    (episode.folder / "recordings/SVO").mkdir()
    (episode.folder / "recordings/MP4/111.mp4").rename(episode.folder / "recordings/SVO/111.svo")


def only_stereo(episode: RawEpisode) -> None:
    film, images = episode.folder / "recordings/MP4/111.mp4", episode.films["ext1"]
    film.unlink()
    write_film(film.with_name("111-stereo.mp4"), np.concatenate([images, 255 - images], axis=2))


def clock_of_text(episode: RawEpisode) -> None:
    change(episode, "observation/timestamp/control/step_start", np.array([b"a"] * 20))


def short_clock(episode: RawEpisode) -> None:
    change(episode, "observation/timestamp/control/step_start", np.arange(5) * 66)


def broken_h5(episode: RawEpisode) -> None:
    (episode.folder / "trajectory.h5").write_bytes(b"\x89HDF\r\n\x1a\n and then nothing")


def no_frames(episode: RawEpisode) -> None:
    with h5py.File(episode.folder / "trajectory.h5", "w") as file:
        for name, values in episode.arrays.items():
            file[name] = values[:0]


def no_metadata(episode: RawEpisode) -> None:
    next(episode.folder.glob("metadata_*.json")).unlink()


def broken_metadata(episode: RawEpisode) -> None:
    next(episode.folder.glob("metadata_*.json")).write_text("{")


BROKEN: list[tuple[Callable[[RawEpisode], None], str, str]] = [
    (without_camera, "missing_camera", "ext2: no recordings/MP4/222.mp4"),
    (cut_film, "length_mismatch", "recordings/MP4/333.mp4 has 18 frames, trajectory.h5 has 20"),
    (break_film, "corrupt_video", "recordings/MP4/111.mp4: cannot be decoded"),
    (scramble_film, "corrupt_video", "recordings/MP4/111.mp4"),
    (damage_pictures, "corrupt_video", "recordings/MP4/111.mp4: cannot be decoded"),
    (not_a_number, "not_finite", "action joint_velocity is not finite in 1 frames, first in 4"),
    (shorter_action, "length_mismatch", "action joint_velocity has 19 frames, others have 20"),
    (without_key, "missing_key", "no action gripper_position, which action_space=joint_velocity needs"),
    (slow_clock, "wrong_rate", "recorded at 10 Hz by its timestamps, 15 expected; source_fps= says what is"),
    (backward_clock, "wrong_rate", "timestamps do not increase: frame 1 is -0.066 s after the one before"),
    (clock_set_back, "wrong_rate", "timestamps do not increase: frame 12 is -3.53 s after the one before"),
    (frames_lost, "gap", "2.07 s are missing before frame 8"),
    (only_svo, "missing_camera", "no recordings/MP4/111.mp4, but recordings/SVO/111.svo; DROID's svo_to_mp4.py makes"),
    (only_stereo, "missing_camera", "ext1: only recordings/MP4/111-stereo.mp4, of both lenses; stereo=left takes"),
    (clock_of_text, "corrupt_file", "it cannot be understood (ValueError: could not convert string to float"),
    (short_clock, "length_mismatch", "there are 5 timestamps of 20 frames"),
    (broken_h5, "corrupt_file", "trajectory.h5 cannot be read"),
    (no_frames, "empty", "no frames"),
    (no_metadata, "missing_file", "no metadata_*.json"),
    (broken_metadata, "corrupt_file", "cannot be read"),
]


def test_what_is_broken_is_refused_by_name_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    write_raw(root / "good", seed=99)
    for number, (damage, _, _) in enumerate(BROKEN):
        damage(write_raw(root / damage.__name__, seed=number))
    write_raw(root / "nothing_to_do", current_task="", seed=50)
    write_raw(root / "other_law", rlspec={"execution_law": "ruckig"}, seed=51)
    write_raw(root / "other_robot", robot_serial="fr3-7", seed=52)
    write_raw(root / "other_frame", rlspec={"pose_frame": "palm"}, seed=53)
    out = run("droid_raw", root, tmp_path / "out", *PLAIN, display=Display("plain"))
    refused = refusals(out)
    for damage, kind, reason in BROKEN:
        assert refused[damage.__name__][0] == kind, damage.__name__
        assert reason in refused[damage.__name__][1]
    assert refused["nothing_to_do"][0] == "no_instruction"
    assert refused["other_law"][0] == "other_law"
    assert refused["other_robot"][0] == "other_robot"
    assert refused["other_frame"] == ("other_frame", "its poses are those of 'palm', not of flange or tcp")
    assert [each["source"] for each in read_record(out)["episodes"]] == ["good"]
    assert all("\n" not in reason and str(tmp_path) not in reason for _, reason in refused.values())
    shown = capsys.readouterr().out
    assert f"WARNING: {len(BROKEN) + 4} refused (" in shown
    assert "corrupt_video 3" in shown


def test_a_rate_of_its_own_is_accepted_when_it_is_given(tmp_path: Path) -> None:
    slow_clock(write_raw(tmp_path / "raw" / "slow"))
    out = run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN, "source_fps=10")
    assert check_dataset(out).fps == 10


def test_no_usable_episode_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    without_camera(write_raw(tmp_path / "raw" / "one"))
    with pytest.raises(
        DataError, match="none of 1 recordings can be used .missing_camera 1.; the first, one: ext2"
    ) as error:
        run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_mended_recordings_are_looked_at_again(tmp_path: Path) -> None:
    broken = write_raw(tmp_path / "raw" / "one")
    film = broken.folder / "recordings/MP4/222.mp4"
    content = film.read_bytes()
    film.unlink()
    with pytest.raises(DataError, match="missing_camera"):
        run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN)
    film.write_bytes(content)
    assert check_dataset(run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN)).episodes == 1


def test_cameras_without_serials_are_found_by_their_types(tmp_path: Path) -> None:
    nameless = dict.fromkeys(("ext1_cam_serial", "ext2_cam_serial", "wrist_cam_serial"))
    episode = write_raw(tmp_path / "raw" / "one", **nameless)
    out = run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN)
    for camera, name in RAW.items():
        assert np.array_equal(read_pictures(out, camera), episode.films[name])


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=r"no trajectory.h5 in it or below; correct path="):
        run("droid_raw", tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize("frames", [19, 21])
@pytest.mark.parametrize("camera", ["ext1", "wrist"])
def test_a_film_of_a_frame_more_or_less_is_cut_to_the_shorter_and_noted(
    tmp_path: Path, frames: int, camera: str, capsys: pytest.CaptureFixture[str]
) -> None:
    episode = write_raw(tmp_path / "raw" / "one")
    images = episode.films[camera]
    path = episode.folder / "recordings/MP4" / f"{SERIALS[camera]}.mp4"
    write_film(path, images[:19] if frames == 19 else np.concatenate([images, images[:1]]))
    out = run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN, display=Display("plain"))
    length = min(frames, 20)
    rows = read_rows(out)
    np.testing.assert_allclose(
        rows["observation.state"][:, :7], episode.arrays["observation/robot_state/joint_positions"][:length], atol=1e-6
    )
    for name, raw in RAW.items():
        assert np.array_equal(read_pictures(out, name), episode.films[raw][:length])
    note = f"recordings/MP4/{SERIALS[camera]}.mp4 has {frames} frames, trajectory.h5 has 20: cut to the shorter"
    assert read_record(out)["episodes"][0]["notes"] == [note]
    assert f"1 episodes have a note in meta/rlspec.json; first, one: {note}" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("success", [True, False])
def test_a_recording_before_droids_post_processing_is_read_by_its_attributes(tmp_path: Path, *, success: bool) -> None:
    episode = write_raw(tmp_path / "raw" / "one")
    no_metadata(episode)
    with h5py.File(episode.folder / "trajectory.h5", "a") as file:
        file.attrs.update(success=success, current_task="put the cup down", robot_serial_number="panda-295341-1325480")
    if not success:
        with pytest.raises(DataError, match="not_successful 1"):
            run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN)
        return
    (about,) = read_record(run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN))["episodes"]
    assert (about["success"], about["task"], about["robot"]) == (True, "put the cup down", "panda")
    assert about["notes"] == ["no metadata_*.json: by the attributes of trajectory.h5"]
    for camera, name in RAW.items():
        assert np.array_equal(read_pictures(tmp_path / "out", camera), episode.films[name])


def test_the_left_half_of_a_stereo_film_is_the_cameras(tmp_path: Path) -> None:
    episode = write_raw(tmp_path / "raw" / "one")
    only_stereo(episode)
    out = run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN, "stereo=left")
    assert np.array_equal(read_pictures(out, "exterior_1_left"), episode.films["ext1"])


def test_a_slow_step_is_no_gap(tmp_path: Path) -> None:
    shift_clock(write_raw(tmp_path / "raw" / "one"), 8, 300)
    assert check_dataset(run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN)).frames == 20
