"""Episodes that a human drives or takes over: what is kept, what conversion makes of it, and what a crash leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

from rlspec import collect, convert
from rlspec.deploy.arm.interfaces import Frame
from rlspec.deploy.arm.kinematics import HOME, flange
from rlspec.deploy.log.frames import FrameKeeper
from rlspec.deploy.log.reader import read_log
from rlspec.vla.droid.raw import RawSource
from rlspec.vla.droid.settings import ConvertSettings
from rlspec.vla.droid.writing import convert_recording


@TeleoperatorConfig.register_subclass("scripted_stick")
@dataclass(kw_only=True)
class StickConfig(TeleoperatorConfig):
    """A stick that is pushed up in looks `first` to `last`, and then says `verdict`."""

    first: int = 5
    last: int = 15
    verdict: str = "success"
    ends: int = 40


class Stick(Teleoperator):
    """LeRobot's interface, as its gamepad implements it."""

    config_class = StickConfig
    name = "scripted_stick"
    action_features: dict[str, Any] = {"dtype": "float32", "shape": (4,)}
    feedback_features: dict[str, Any] = {}
    is_calibrated = True
    is_connected = False

    def __init__(self, config: StickConfig) -> None:
        super().__init__(config)
        self.config, self.looks = config, 0

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass

    def get_action(self) -> dict[str, Any]:
        self.looks += 1
        pushed = self.config.first <= self.looks < self.config.last
        return {"delta_x": 0.0, "delta_y": 0.0, "delta_z": np.float32(pushed), "gripper": 1}

    def get_teleop_events(self) -> dict[str, bool]:
        return {self.config.verdict: self.looks >= self.config.ends}

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        pass

    def disconnect(self) -> None:
        self.is_connected = False


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from rlspec.deploy.lerobot import devices

    plain = devices.make_teleoperator_from_config
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "lerobot"))
    monkeypatch.setattr(
        devices,
        "make_teleoperator_from_config",
        lambda config: Stick(config) if isinstance(config, StickConfig) else plain(config),
    )
    yield


SMALL = (
    "robot=mujoco",
    "robot.image_size=[24,32]",
    "robot.camera_hz=15",
    "teleop=scripted_stick",
    "seconds=6",
    "prompt=lift it",
)


def record(out: Path, *arguments: str) -> int:
    return collect.main([*SMALL, f"teleop.calibration_dir={out}/calibration", f"out={out}", *arguments])


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def taken_over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes in which policy=hold acts and a human takes over for a moment, as DROID recordings."""
    from rlspec.deploy.lerobot import devices

    out = tmp_path_factory.mktemp("recorded") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "make_teleoperator_from_config", Stick)
        assert record(out, "policy=hold", "episodes=2", "format=droid_raw") == 0
    return out


def trajectories(out: Path) -> list[Path]:
    return sorted((out / "droid_raw").rglob("trajectory.h5"))


def test_a_takeover_is_marked_in_droids_recordings(taken_over: Path) -> None:
    assert [line["verdict"] for line in lines_of(taken_over)] == ["success", "success"]
    first, second = trajectories(taken_over)
    assert first.parts[-5:-3] == ("LAB", "success") and first.parent != second.parent
    with h5py.File(first) as file:
        marks = file["observation/controller_info/intervention"][()]
        assert marks.dtype == bool and 10 <= marks.sum() < 25 and not marks[0] and not marks[-1]
        joints, sent = file["observation/robot_state/joint_positions"][()], file["action/joint_position"][()]
        velocity, pose = file["action/joint_velocity"][()], file["action/cartesian_position"][()]
        rising = flange(sent[marks][-1])[0][2] - flange(sent[marks][0])[0][2]
        assert rising == pytest.approx(0.15 * 9 / 15, abs=0.03)
        np.testing.assert_allclose(velocity, (sent - joints) / 0.2, atol=1e-9)
        np.testing.assert_allclose(pose[:, :3], [flange(each)[0] for each in sent], atol=1e-9)
        times = np.diff(file["observation/timestamp/control/step_start"][()])
        assert set(times) <= {66, 67}
        assert file.attrs["current_task"] == "lift it" and bool(file.attrs["success"])
    (metadata,) = first.parent.glob("metadata_*.json")
    said = json.loads(metadata.read_text())
    assert said["rlspec"]["run"] == "0001" and said["rlspec"]["execution_law"] == "droid_hybrid"


@pytest.mark.parametrize("rate", [15, 5])
def test_a_converted_episode_has_the_marks(taken_over: Path, rate: int) -> None:
    cameras = ("exterior_1_left", "wrist_left")
    settings = ConvertSettings(source="droid_raw", path=taken_over / "droid_raw", out=taken_over / "x", cameras=cameras)
    source = RawSource(settings)
    (episode,) = convert_recording(source.read(source.items()[0]), settings, rate)
    with h5py.File(trajectories(taken_over)[0]) as file:
        whole = file["observation/controller_info/intervention"][()]
    assert episode.interventions is not None and len(episode.interventions) == len(episode)
    if rate == 15:
        np.testing.assert_array_equal(episode.interventions, whole)
    assert abs(episode.interventions.mean() - whole.mean()) < 0.05
    np.testing.assert_array_equal(episode.columns()["intervention"], episode.interventions)


@pytest.mark.slow
@pytest.mark.parametrize("fps", ["", "fps=5"])
def test_conversion_keeps_the_marks(taken_over: Path, tmp_path: Path, fps: str) -> None:
    cameras = "cameras=exterior_1_left,wrist_left"
    told = (
        f"source=droid_raw path={taken_over}/droid_raw out={tmp_path}/data {cameras} image_size=24x32 workers=1 {fps}"
    )
    assert convert.main(told.split()) == 0
    info = json.loads((tmp_path / "data/meta/info.json").read_text())
    assert info["features"]["intervention"] == {"dtype": "bool", "shape": [1], "names": None}
    table = pq.read_table(sorted((tmp_path / "data/data").rglob("*.parquet"))[0])
    marks, episodes = np.array(table["intervention"]), np.array(table["episode_index"])
    with h5py.File(trajectories(taken_over)[0]) as file:
        whole = file["observation/controller_info/intervention"][()]
    kept = marks[episodes == 0]
    if not fps:
        np.testing.assert_array_equal(kept, whole)
    assert abs(kept.mean() - whole.mean()) < 0.05
    again = f"source=lerobot path={tmp_path}/data out={tmp_path}/again {cameras} image_size=24x32 workers=1"
    assert convert.main(again.split()) == 0
    table = pq.read_table(sorted((tmp_path / "again/data").rglob("*.parquet"))[0])
    np.testing.assert_array_equal(np.array(table["intervention"]), marks)


@pytest.mark.slow
def test_the_same_command_goes_on_and_a_data_set_of_lerobot_can_be_made_of_the_same_runs(taken_over: Path) -> None:
    assert record(taken_over, "policy=hold", "episodes=2", "format=lerobot") == 0
    assert len(lines_of(taken_over)) == 2, "there were enough"
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("local/out", root=taken_over / "lerobot", video_backend="pyav")
    assert data.num_episodes == 2
    marks = np.array([bool(data[index]["intervention"]) for index in range(data.meta.episodes[0]["length"])])
    with h5py.File(trajectories(taken_over)[0]) as file:
        np.testing.assert_array_equal(marks, file["observation/controller_info/intervention"][()])
    about = json.loads((taken_over / "lerobot/meta/rlspec.json").read_text())
    assert [episode["success"] for episode in about["episodes"]] == [True, True]


def test_who_drives_alone_intervenes_in_nothing_and_can_give_up_or_want_it_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert record(out, "episodes=1", "format=droid_raw", "teleop.verdict=terminate_episode") == 0
    assert [line["verdict"] for line in lines_of(out)] == ["failure"]
    (path,) = trajectories(out)
    assert path.parts[-4] == "failure"
    with h5py.File(path) as file:
        assert not file["observation/controller_info/intervention"][()].any()
        assert np.abs(np.diff(file["action/joint_position"][()], axis=0)).max() > 0.003


def test_a_process_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "robot=dry_run",
        "teleop=franka_rlspec_expert",
        "teleop.motion=wave",
        "seconds=60",
        f"out={out}",
        "prompt=wave",
    ]
    arguments += [f"teleop.calibration_dir={tmp_path}", "episodes=1"]
    process = subprocess.Popen([sys.executable, "-m", "rlspec.collect", *arguments], stdout=subprocess.DEVNULL)
    log, end = out / "runs/0001/ticks.jsonl", time.monotonic() + 240
    try:
        while not (log.exists() and log.read_bytes().count(b"\n") > 40):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    there = len(read_log(out / "runs/0001").ticks)
    assert collect.main(arguments) == 0
    (line,) = lines_of(out)
    assert (line["run"], line["verdict"], line["reason"]) == ("0001", "failure", "its process was killed")
    (path,) = trajectories(out)
    with h5py.File(path) as file:
        assert len(file["action/joint_position"]) >= there - 5, "but for the ticks before the first command"
    films = sorted((path.parent / "recordings/MP4").iterdir())
    assert [film.stem for film in films] == ["exterior_1_left", "wrist_left"]


def test_pictures_that_a_full_disk_does_not_take_are_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = FrameKeeper(tmp_path / "frames")
    replace: Callable[..., None] = os.replace

    def full(source: Path, target: Path) -> None:
        if str(target).startswith(str(tmp_path)) and Path(target).stem == "3":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    for tick in range(6):
        keeper.put(tick, {"wrist_left": Frame(float(tick), np.full((8, 8, 3), tick, np.uint8))})
    keeper.close()
    assert "No space left on device" in keeper.error and keeper.dropped == 0
    assert sorted(path.stem for path in (tmp_path / "frames/wrist_left").glob("*.jpg")) == ["0", "1", "2"]
    assert sorted(path.stem for path in Path(keeper.rescued, "wrist_left").glob("*.jpg")) == ["3", "4", "5"]


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlspec.vla.droid import raw_writer

    plain = raw_writer._write_trajectory

    def full(path: Path, *rest: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(raw_writer, "_write_trajectory", full)
    out = tmp_path / "out"
    assert record(out, "episodes=1", "format=droid_raw") == 2
    error = capsys.readouterr().err
    assert "No space left on device; nothing that was recorded is lost" in error and error.count("\n") == 1
    assert not trajectories(out)
    monkeypatch.setattr(raw_writer, "_write_trajectory", plain)
    assert record(out, "episodes=1", "format=droid_raw") == 0
    assert len(trajectories(out)) == 1 and len(lines_of(out)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("robot=mujoco", "teleop: required"),
        ("robot=mujoco teleop=gamepad episodes=0", "episodes=0: must be a whole number >= 1"),
        ("robot=mujocoo teleop=gamepad", "robot=mujocoo: unknown; did you mean mujoco?"),
        ("robot=mujoco teleop=gamepad policy=hold server=ws://x:1", "server and policy exclude each other"),
        ("robot=mujoco teleop=gamepad secondss=3", "secondss=3: unknown key"),
        ("robot=mujoco teleop=gamepad mode=shadow", "teleop=gamepad: nothing is sent with mode=shadow"),
    ],
)
def test_mistakes_are_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert collect.main([*arguments.split(), f"out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("teleop=gamepd", "teleop=gamepd: unknown; did you mean gamepad?"),
        ("teleop=scripted_stick teleop.frist=3", "teleop=scripted_stick: The fields `frist` are not valid"),
        ("teleop=keyboard_ee", "teleop=keyboard_ee: 'pynput' is required"),
    ],
)
def test_devices_that_are_not_there_are_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = f"robot=mujoco robot.images=false {arguments} out={tmp_path}/out"
    assert collect.main(given.split()) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_scripted_expert_records_a_success_through_the_filter(tmp_path: Path) -> None:
    """LeRobot's interface on the simulated Franka, and the task is done."""
    out = tmp_path / "out"
    given = "robot=mujoco robot.images=false teleop=franka_rlspec_expert law=stiff_position seconds=30 episodes=1"
    assert collect.main([*given.split(), f"out={out}", f"teleop.calibration_dir={tmp_path}"]) == 0
    (line,) = lines_of(out)
    assert (line["verdict"], line["reason"]) == ("success", "the task is done")
    sent = np.array([tick["sent"] for tick in read_log(out / "runs/0001").ticks if tick["sent"]])
    assert len(sent) > 60 and np.abs(sent[0] - HOME).max() < 0.3
