"""Generated raw DROID recordings, read back by h5py, PyAV and scipy: what a DROID workstation would have written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import h5py
import mujoco
import numpy as np
import pytest
import rlspec_envs
from scipy.spatial.transform import Rotation

from rlspec.config.load import load_group
from rlspec.config.vla_schema import Env, Recordings
from rlspec.contract.features import CAMERAS
from rlspec.display import Display
from rlspec.errors import ConfigError, DataError
from rlspec.vla.droid import generator, simulated
from rlspec.vla.droid.raw_writer import SERIALS

SIZE = (36, 64)
Generate = Callable[..., Path]


class Here(Executor):
    """Does everything at once, in the thread that asks: a GL context belongs to one."""

    def submit(self, task: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(task(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def here(workers: int) -> Iterator[Executor]:
    """In place of processes."""
    yield Here()


def environment(**options: Any) -> Env:
    env = Env.model_validate(load_group("env", "franka_droid"))
    env.options.update({"image_size": list(SIZE), **options})
    return env


@pytest.fixture(scope="module")
def generate() -> Generate:
    def make(out: Path, **settings: Any) -> Path:
        given = Recordings(**{"episodes": 2, "failures": 0.5, "workers": 1, "lab": "LAB", "noise": 0.3, **settings})
        return generator.generate_recordings(environment(), given, out, Display("plain", quiet=True), pool=here)

    return make


@pytest.fixture(scope="module")
def raw(generate: Generate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two successes and a failure; read only."""
    return generate(tmp_path_factory.mktemp("raw") / "droid")


def episodes(raw: Path) -> list[tuple[dict[str, Any], Path]]:
    found = sorted(raw.glob("*/*/*/*/metadata_*.json"))
    return [(json.loads(path.read_text()), path.parent) for path in found]


def columns(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(folder / "trajectory.h5") as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_folders_names_and_metadata_are_droids(raw: Path) -> None:
    found = episodes(raw)
    assert sorted(meta["success"] for meta, _ in found) == [False, True, True]
    annotations = json.loads((raw / "aggregated-annotations-030724.json").read_text())
    for meta, folder in found:
        assert (folder / f"metadata_{meta['uuid']}.json").is_file()
        lab = raw / meta["lab"]
        assert folder.is_relative_to(lab / ("success" if meta["success"] else "failure") / meta["date"])
        assert (lab / meta["hdf5_path"]).samefile(folder / "trajectory.h5")
        for name in ("wrist", "ext1", "ext2"):
            assert (lab / meta[f"{name}_mp4_path"]).stem == meta[f"{name}_cam_serial"]
            assert (lab / meta[f"{name}_mp4_path"]).is_file()
            assert len(meta[f"{name}_cam_extrinsics"]) == 6
        texts = list(annotations[meta["uuid"]].values())
        assert texts[0] == meta["current_task"]
        assert list(annotations[meta["uuid"]]) == [f"language_instruction{index}" for index in (1, 2, 3)]
        assert len(set(texts)) == 3
        colours = [word for word in texts[0].split() if word in ("red", "green", "blue", "yellow")]
        assert all(colours[0] in text for text in texts)
    left, right = (found[0][0][f"{side}_mp4_path"] for side in ("left", "right"))
    assert {Path(left).stem, Path(right).stem} == {SERIALS["exterior_1_left"], SERIALS["exterior_2_left"]}


def test_every_array_has_the_episodes_length_and_droids_shape(raw: Path) -> None:
    shapes = {
        "action": {
            "cartesian_position": (6,), "cartesian_velocity": (6,), "gripper_position": (), "gripper_velocity": (),
            "joint_position": (7,), "joint_velocity": (7,), "target_cartesian_position": (6,),
            "target_gripper_position": (),
        },
        "observation/robot_state": {
            "cartesian_position": (6,), "gripper_position": (), "joint_positions": (7,), "joint_velocities": (7,),
            "joint_torques_computed": (7,), "motor_torques_measured": (7,), "prev_controller_latency_ms": (),
            "prev_command_successful": (), "prev_joint_torques_computed": (7,),
            "prev_joint_torques_computed_safened": (7,),
        },
    }  # fmt: skip
    for meta, folder in episodes(raw):
        arrays = columns(folder)
        steps = meta["trajectory_length"]
        assert {len(values) for values in arrays.values()} == {steps}
        for group, wanted in shapes.items():
            there = {
                name.rpartition("/")[2]: values.shape[1:] for name, values in arrays.items() if group + "/" in name
            }
            assert there == wanted
        assert all(np.isfinite(values).all() for values in arrays.values())
        kinds = {name.rpartition("/")[2]: set(arrays[name].tolist()) for name in arrays if "camera_type" in name}
        assert kinds == {meta["wrist_cam_serial"]: {0}, meta["ext1_cam_serial"]: {1}, meta["ext2_cam_serial"]: {1}}
        with h5py.File(folder / "trajectory.h5") as file:
            assert bool(file.attrs["success"]) is meta["success"]
            assert bool(file.attrs["failure"]) is not meta["success"]
            assert file.attrs["current_task"] == meta["current_task"]


def test_the_clock_keeps_15_hz(raw: Path) -> None:
    arrays = columns(episodes(raw)[0][1])
    started = arrays["observation/timestamp/control/step_start"]
    assert np.abs(np.diff(started) - 1000 / 15).max() < 1
    order = ["step_start", "policy_start", "sleep_start", "control_start", "step_end"]
    times = np.stack([arrays[f"observation/timestamp/control/{name}"] for name in order])
    assert (np.diff(times, axis=0) > 0).all()
    assert (times[-1, :-1] <= times[0, 1:]).all()


def test_poses_are_forward_kinematics_as_extrinsic_xyz_euler_angles(raw: Path) -> None:
    env = rlspec_envs.make_env("franka", "pick_place", action_space="joint_velocity")
    model = env.unwrapped.world.model
    data = mujoco.MjData(model)

    def pose(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        data.qpos[:7] = joints
        mujoco.mj_forward(model, data)
        return data.site("tcp").xpos.copy(), data.site("tcp").xmat.reshape(3, 3).copy()

    arrays = columns(episodes(raw)[0][1])
    pairs = [
        ("observation/robot_state/joint_positions", "observation/robot_state/cartesian_position"),
        ("action/joint_position", "action/cartesian_position"),
    ]
    for joints, poses in pairs:
        for angles, recorded in zip(arrays[joints][::7], arrays[poses][::7], strict=True):
            position, rotation = pose(angles)
            np.testing.assert_allclose(recorded[:3], position, atol=1e-9)
            np.testing.assert_allclose(Rotation.from_euler("xyz", recorded[3:]).as_matrix(), rotation, atol=1e-9)
    env.close()


def test_actions_in_all_spaces_mean_the_same(raw: Path) -> None:
    for _, folder in episodes(raw):
        arrays = columns(folder)
        joints, velocity = arrays["observation/robot_state/joint_positions"], arrays["action/joint_velocity"]
        assert np.abs(velocity).max() <= 1
        np.testing.assert_allclose(arrays["action/joint_position"], joints + 0.2 * velocity, atol=1e-12)
        here, there = (arrays[f"{each}/cartesian_position"] for each in ("observation/robot_state", "action"))
        unit = arrays["action/cartesian_velocity"]
        way = (there - here)[:, :3] / 0.075
        way /= np.maximum(1, np.linalg.norm(way, axis=1, keepdims=True))
        np.testing.assert_allclose(unit[:, :3], way, atol=1e-9)
        turns = Rotation.from_euler("xyz", there[:, 3:]) * Rotation.from_euler("xyz", here[:, 3:]).inv()
        turn = turns.as_euler("xyz") / 0.15
        turn /= np.maximum(1, np.linalg.norm(turn, axis=1, keepdims=True))
        np.testing.assert_allclose(unit[:, 3:], turn, atol=1e-6)
        assert set(np.unique(arrays["action/gripper_position"])) <= {0.0, 1.0}


def test_the_operator_waits_and_then_says_how_it_went(raw: Path) -> None:
    for meta, folder in episodes(raw):
        arrays = columns(folder)
        enabled = arrays["observation/controller_info/movement_enabled"]
        idle = int((~enabled).sum())
        assert 4 <= idle <= 12 and not enabled[:idle].any() and enabled[idle:].all()
        assert not arrays["action/joint_velocity"][:idle].any()
        assert np.abs(arrays["action/joint_velocity"][idle:]).max(axis=1).min() > 1e-3
        np.testing.assert_array_equal(arrays["observation/timestamp/skip_action"], ~enabled)
        pressed = "success" if meta["success"] else "failure"
        for name in ("success", "failure"):
            np.testing.assert_array_equal(
                np.flatnonzero(arrays[f"observation/controller_info/{name}"]),
                [len(enabled) - 1] if name == pressed else [],
            )


def test_films_show_what_the_simulator_showed(raw: Path) -> None:
    """The recorded actions are executed again, by a plain loop: the same joints, and nearly the same pictures."""
    meta, folder = next((meta, folder) for meta, folder in episodes(raw) if not meta["success"])
    options = {**environment().options, "cameras": list(CAMERAS)}
    env = rlspec_envs.make_env("franka", "pick_place", **options)
    observation, _ = env.reset(seed=meta["rlspec"]["seed"])
    films = {
        camera: np.stack(
            [
                frame.to_ndarray(format="rgb24")
                for frame in av.open(str(folder / f"recordings/MP4/{serial}.mp4")).decode(video=0)
            ]
        )
        for camera, serial in SERIALS.items()
    }
    arrays = columns(folder)
    for step in range(meta["rlspec"]["idle_steps"] + 1):
        np.testing.assert_array_equal(
            arrays["observation/robot_state/joint_positions"][step].astype(np.float32), observation["agent_pos"][:7]
        )
        for camera, film in films.items():
            assert film.shape == (meta["trajectory_length"], *SIZE, 3)
            assert np.abs(film[step].astype(int) - observation["pixels"][camera]).mean() < 6
        observation, *_ = env.step(np.append(arrays["action/joint_velocity"][step], 0))
    # Red and blue are not swapped: of the cameras' pictures in BGR order none would do.
    swapped = np.abs(films["wrist_left"][0][..., ::-1].astype(int) - observation["pixels"]["wrist_left"]).mean()
    straight = np.abs(films["wrist_left"][0].astype(int) - observation["pixels"]["wrist_left"]).mean()
    assert straight < swapped
    env.close()


def test_extrinsics_look_at_the_table(raw: Path) -> None:
    """OpenCV's axes: the third one points ahead, and hits the table in front of the robot."""
    meta, folder = episodes(raw)[0]
    for name in ("ext1", "ext2"):
        pose = np.array(meta[f"{name}_cam_extrinsics"])
        ahead = Rotation.from_euler("xyz", pose[3:]).as_matrix()[:, 2]
        hit = pose[:3] - ahead * pose[2] / ahead[2]
        assert 0.1 < hit[0] < 0.8 and abs(hit[1]) < 0.4
    moved = columns(folder)[f"observation/camera_extrinsics/{SERIALS['wrist_left']}_left"]
    assert np.ptp(moved[:, :3], axis=0).max() > 0.05


def digests(raw: Path) -> dict[str, str]:
    return {
        str(path.relative_to(raw)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in raw.rglob("*")
        if path.is_file()
    }


def test_a_run_that_was_killed_goes_on_and_ends_the_same(raw: Path, generate: Generate, tmp_path: Path) -> None:
    out = tmp_path / "droid"
    shutil.copytree(raw, out)
    record = json.loads((out / "recordings.json").read_text())
    (out / "recordings.json").write_text(json.dumps({"complete": False, "settings": record["settings"]}))
    (out / "aggregated-annotations-030724.json").unlink()
    _, lost = episodes(out)[1]
    lost.rename(lost.with_name(f".incomplete-{lost.name}"))
    (lost.with_name(f".incomplete-{lost.name}") / "trajectory.h5").write_bytes(b"cut short")
    generate(out)
    assert digests(out) == digests(raw)


@pytest.mark.slow
def test_the_recordings_are_the_same_for_any_number_of_processes(raw: Path, tmp_path: Path) -> None:
    settings = Recordings(episodes=2, failures=0.5, workers=2, lab="LAB", noise=0.3)
    generator.generate_recordings(environment(), settings, tmp_path / "droid", Display("plain", quiet=True))
    assert digests(tmp_path / "droid") == digests(raw)


def test_what_is_complete_is_found_and_other_settings_are_refused(
    raw: Path, generate: Generate, tmp_path: Path
) -> None:
    before = digests(raw)
    generate(raw)
    assert digests(raw) == before
    with pytest.raises(DataError, match=r"holds recordings with another seed \(0 instead of 5\)"):
        generate(raw, seed=5)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="holds no recordings of rlspec"):
        generate(tmp_path / "photos")


@pytest.mark.parametrize("steps", [(3, 2), (-1, 2)])
def test_idle_steps_that_are_no_range_are_refused(generate: Generate, tmp_path: Path, steps: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="idle_steps=.*fewest and the most"):
        generate(tmp_path / "out", idle_steps=steps)


def test_another_action_space_is_refused(tmp_path: Path) -> None:
    settings, display = Recordings(episodes=1, workers=1), Display("plain", quiet=True)
    with pytest.raises(ConfigError, match="wants the Franka with joint_velocity, .*env=franka_droid"):
        generator.generate_recordings(
            environment(action_space="delta_eef"), settings, tmp_path / "out", display, pool=here
        )


def test_failures_are_spread_among_the_successes() -> None:
    slots = generator.plan_slots({"episodes": 8, "failures": 0.25, "tasks": ["a", "b"], "seed": 7})
    assert [slot.number for slot in slots] == list(range(20))
    assert [slot.fails for slot in slots if slot.task == "b"] == [False] * 4 + [True] + [False] * 4 + [True]
    assert [slot.seed for slot in slots if slot.task == "b"] == list(range(7, 17))


@pytest.mark.parametrize("task", rlspec_envs.list_tasks("franka"))
def test_three_annotators_mean_the_same_and_write_differently(task: str) -> None:
    from rlspec_envs.franka.tasks import TASKS

    words = {"object": "red", "goal": "blue", "verb": "open"}
    for template in TASKS[task].templates:
        given = template.format(**words)
        texts = simulated.instructions(task, given)
        assert texts[0] == given
        assert len(set(texts)) == 3
        assert all("red" in text for text in texts)
