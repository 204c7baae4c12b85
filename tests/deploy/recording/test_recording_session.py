"""A series of episodes with runs that are only pretended: who is asked what, what counts, where it goes on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_logs import write
from scipy.spatial.transform import Rotation

from rlspec.deploy.arm.kinematics import flange
from rlspec.deploy.log.reader import RunLog, read_log
from rlspec.deploy.outcome import DeploymentOutcome
from rlspec.deploy.recording.droid import droid_episode
from rlspec.deploy.recording.session import RecordCommand, RecordingSession
from rlspec.deploy.settings import Settings
from rlspec.display import Display


def log_of(folder: Path, *, sent: bool = True, size: tuple[int, int] = (24, 32), **robot: Any) -> None:
    """Four ticks with pictures; the third is the first that runs at full speed."""
    lines: list[dict[str, Any]] = [
        {"header": {"robot": "ours", "law": "droid_hybrid", "control_hz": 10.0, "settings": {"robot": robot}}}
    ]
    for tick in range(4):
        state = {"joints": [0.1 * tick] * 7, "velocities": [0.0] * 7, "closure": 0.2, "mode": "moving"}
        lines.append(
            {
                **{
                    "tick": tick,
                    "time": 5.0 + 0.1 * tick,
                    "wall": f"2026-01-01T00:00:00.{tick}00+00:00",
                    "state": state,
                },
                **{"sent": [0.1 * tick + 0.4] * 7 if sent else None, "closure_sent": 1.0 if tick == 0 else None},
                **{"phase": "start" if tick < 2 else "hold" if tick == 3 else "run", "reasons": [], "event": ""},
            }
        )
        for camera in ("exterior_1_left", "wrist_left"):
            path = folder / "frames" / camera / f"{tick:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((*size, 3), 60, np.uint8)).save(path)
    write(folder, lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Series:
    """A session whose runs end as they are told to; keeps what was run, shown and written."""

    def __init__(self, out: Path, *ends: str, sent: bool = True, **line: Any) -> None:
        self.ends, self.ran, self.kept = list(ends), list[Settings](), list[tuple[str, bool]]()
        self.sent = sent
        command = {"robot": "dry_run", "teleop": "gamepad", "out": str(out), "overrides": [], **line}
        self.session = RecordingSession(RecordCommand.checked(command), Display(), self.keep, self.one)

    def one(self, settings: Settings, display: Display) -> DeploymentOutcome:
        self.ran.append(settings)
        log_of(Path(str(settings.out)), sent=self.sent)
        end = self.ends.pop(0)
        return DeploymentOutcome(end="time" if end == "time" else end, reason="it ended")  # type: ignore[arg-type]

    def keep(self, log: RunLog, out: Path, lab: str, success: bool) -> None:
        self.kept.append((log.folder.name, success))

    def verdicts(self) -> list[tuple[str, str]]:
        return [(line["run"], line["verdict"]) for line in self.session.journal.lines()]


def test_episodes_to_be_recorded_again_do_not_count_and_their_folders_stay(tmp_path: Path) -> None:
    series = Series(tmp_path, "rerecord", "success", "rerecord", "failure", episodes=2)
    assert series.session.run() == 0
    assert series.verdicts() == [("0001", "rerecord"), ("0002", "success"), ("0003", "rerecord"), ("0004", "failure")]
    assert [(kept.run.name, kept.success) for kept in series.session.kept()] == [("0002", True), ("0004", False)]
    assert set(series.kept) == {("0002", True), ("0004", False)}
    again = Series(tmp_path, "success", episodes=3)
    assert again.session.run() == 0
    assert again.verdicts()[-1] == ("0005", "success") and len(again.ran) == 1, "it goes on"


def test_every_run_keeps_its_pictures_in_a_scene_of_its_own_and_asks_for_the_robots_name_once(tmp_path: Path) -> None:
    series = Series(tmp_path, "success", "success", robot="mujoco", seed=7, episodes=2)
    assert series.session.run() == 0
    assert [settings.robot.options["seed"] for settings in series.ran] == [7, 8]
    assert all(settings.frames for settings in series.ran)
    assert [settings.yes for settings in series.ran] == [False, True]


def test_a_run_in_which_nothing_was_sent_is_no_episode(tmp_path: Path) -> None:
    series = Series(tmp_path, "time", "success", episodes=1, sent=False)
    assert series.session.run() == 0
    assert series.verdicts() == [("0001", "nothing"), ("0002", "success")]


def test_whoever_sits_at_the_terminal_judges_where_no_button_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("\nwhat?\ny\n\nr\n\nN\nq\n"))
    series = Series(tmp_path, "time", "time", "time", episodes=9)
    assert series.session.run() == 130
    assert series.verdicts() == [("0001", "success"), ("0002", "rerecord"), ("0003", "failure")]
    assert capsys.readouterr().out.count("Success? y, n, or r") == 4
    monkeypatch.setattr("sys.stdin", Terminal("q\n"))
    simulated = Series(tmp_path / "simulated", "time", robot="mujoco", episodes=1)
    assert simulated.session.run() == 0, "its task is the judge, and nobody has to set the scene up"
    assert simulated.verdicts() == [("0001", "failure")]


def test_a_terminal_that_was_closed_is_not_asked_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    series = Series(tmp_path, "time", episodes=1)
    assert series.session.run() == 0 and series.verdicts() == [("0001", "failure")]


def test_runs_that_nobody_came_to_judge_are_taken_in_once(tmp_path: Path) -> None:
    for name in ("0003", "notes"):
        log_of(tmp_path / "runs" / name)
    (tmp_path / "runs/0004").mkdir()
    for _ in range(2):
        series = Series(tmp_path, episodes=1)
        assert series.session.run() == 0
        assert series.verdicts() == [("0003", "failure"), ("0004", "nothing")]
    assert [line["reason"] for line in series.session.journal.lines()][0] == "its process was killed"


def test_the_usual_folder_is_the_same_for_more_episodes_or_another_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = {"robot": "dry_run", "teleop": "gamepad", "overrides": []}

    def folder(**more: Any) -> Path:
        command = RecordCommand.checked({**line, **more})
        return RecordingSession(command, Display(), lambda *_: None).out

    assert folder() == folder(episodes=30) == folder(format="lerobot")
    assert len({folder(), folder(teleop="phone"), folder(seed=1), folder(overrides=["prompt=x"])}) == 4


def test_a_data_set_of_lerobot_takes_the_place_of_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[list[str]] = []

    def export(runs: list[Path], out: Path, *, repo_id: str, successes: list[bool]) -> Any:
        assert not out.exists() and len(runs) == len(successes) and repo_id == f"local/{tmp_path.name}"
        out.mkdir()
        made.append([run.name for run in runs])
        (out / f"{len(runs)} episodes").touch()
        return type("Done", (), {"problems": ["a picture is missing"], "episodes": len(runs), "frames": 9})()

    monkeypatch.setattr("rlspec.deploy.log.export.export_logs", export)
    for left in (".lerobot-new", ".lerobot-old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half").touch()
    for episodes in (1, 2):
        assert Series(tmp_path, "success", format="lerobot", episodes=episodes).session.run() == 0
    assert made == [["0001"], ["0001", "0002"]]
    assert [path.name for path in (tmp_path / "lerobot").iterdir()] == ["2 episodes"]
    assert not list(tmp_path.glob(".lerobot-*"))
    told = capsys.readouterr()
    assert "a picture is missing" in told.out + told.err


CAMERAS = {"exterior_1_left": "realsense:0123@640x480x30", "wrist_left": "synthetic"}
AT_HAND = [0.05, 0.0, 0.04, 0.1, 0.2, 0.3]


@pytest.mark.parametrize("success", [True, False])
def test_a_run_in_droids_terms(tmp_path: Path, *, success: bool) -> None:
    known = {"wrist_left": AT_HAND, "exterior_1_left": [1.0, 0.0, 0.5, 0.0, 2.0, 0.0]}
    log_of(tmp_path, size=(25, 33), cameras=CAMERAS, extrinsics=known, model="fer")
    episode = droid_episode(read_log(tmp_path), success=success)
    arrays, last = episode.arrays, [False, False, False, True]
    group = "observation/controller_info/"
    assert arrays[f"{group}movement_enabled"].tolist() == [True, True, True, False], "a hold is no motion of theirs"
    assert arrays[f"{group}success"].tolist() == [each and success for each in last]
    assert arrays[f"{group}failure"].tolist() == [each and not success for each in last]
    np.testing.assert_allclose(arrays["action/joint_velocity"], 1.0)  # 0.4 rad a tick are cut to DROID's unit
    assert arrays["action/gripper_position"].tolist() == [1.0] * 4
    assert arrays["observation/robot_state/gripper_position"].tolist() == [0.2] * 4
    times = arrays["observation/timestamp/control/step_start"]
    assert times[0] == 1_767_225_600_000 and np.diff(times).tolist() == [100] * 3
    assert episode.serials == {"exterior_1_left": "0123", "wrist_left": "wrist_left"}
    kinds = {serial: arrays[f"observation/camera_type/{serial}"][0] for serial in episode.serials.values()}
    assert kinds == {"0123": 1, "wrist_left": 0}
    assert {next(iter(film)).shape for film in episode.films.values()} == {(24, 32, 3)}, "films have even sides"
    assert (episode.robot, episode.law) == ("panda-ours", "droid_hybrid")
    fixed, moving = (arrays[f"observation/camera_extrinsics/{name}_left"] for name in ("0123", "wrist_left"))
    np.testing.assert_allclose(fixed, np.tile(known["exterior_1_left"], (4, 1)))
    for tick in range(4):
        position, rotation = flange(np.full(7, 0.1 * tick))
        np.testing.assert_allclose(moving[tick, :3], position + rotation @ AT_HAND[:3], atol=1e-9)
        turn = Rotation.from_euler("xyz", moving[tick, 3:]).as_matrix()
        np.testing.assert_allclose(turn, rotation @ Rotation.from_euler("xyz", AT_HAND[3:]).as_matrix(), atol=1e-9)
