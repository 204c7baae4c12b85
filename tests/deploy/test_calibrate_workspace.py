"""calibrate=workspace: guided poses become a box, and the box the robot's own file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from filter_oracle import places

from rlspec.deploy.__main__ import main
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import HOME, forward, solve
from rlspec.deploy.calibration import workspace as calibration
from rlspec.deploy.robots.dry_run import DryRunRobot
from rlspec.deploy.robots.mujoco import MujocoRobot
from rlspec.deploy.settings import Settings
from rlspec.errors import ConfigError

DOWN = forward(HOME)[1]
TIPS = ([0.5, 0.0, 0.02], [0.35, 0.3, 0.1], [0.35, -0.3, 0.1], [0.6, -0.3, 0.1], [0.6, 0.3, 0.1], [0.45, 0.0, 0.6])


def guided() -> list[np.ndarray]:
    """Joints at which the hand's tip is where somebody guides it."""
    return [solve(HOME, np.array(tip), DOWN, iterations=60) for tip in TIPS]


def test_on_the_simulated_arm_the_box_holds_what_was_reached_and_ends_above_the_table() -> None:
    robot = MujocoRobot(images=False)
    robot.connect("droid_hybrid", 15.0, read_only=True)
    told = []

    def ask(number: int, text: str) -> None:
        told.append(text)
        robot.start_from(guided()[number - 1])

    poses = calibration.guide(robot, ask)
    robot.close()
    assert told == list(calibration.STEPS)
    box = calibration.enclosing_box(poses, 0.1034, clearance=0.005)
    where = places(np.stack(poses))  # by MuJoCo
    table = where[0, 7, 2]
    assert table == pytest.approx(0.02, abs=0.005)
    np.testing.assert_allclose(box.low[:2], where[..., :2].min(axis=(0, 1)), atol=1e-3)
    np.testing.assert_allclose(box.high, where.max(axis=(0, 1)), atol=1e-3)
    assert box.low[2] == pytest.approx(table + 0.005, abs=1e-3)


def test_an_arm_that_still_moves_is_asked_for_again() -> None:
    speeds = iter([0.0, 0.3, *[0.0] * 9])

    class Moving:
        name = "arm"

        def read(self) -> RobotState:
            return RobotState(0.0, HOME, np.full(7, next(speeds)), 0.0)

    told: list[str] = []
    poses = calibration.guide(Moving(), lambda _, text: told.append(text))  # type: ignore[arg-type]
    assert len(poses) == 6 and len(told) == 7
    assert told[2] == f"{calibration.STEPS[1]}; it still moves: hold it"


def test_poses_that_make_no_box_are_refused() -> None:
    with pytest.raises(ConfigError, match="the tip was within 0 cm along x at all poses; guide it to the corners"):
        calibration.enclosing_box([HOME] * 6, 0.1034, 0.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("\n" * 6))
    poses = iter(guided())
    state = DryRunRobot.read
    monkeypatch.setattr(
        DryRunRobot, "read", lambda self: RobotState(0.0, next(poses), state(self).velocities, 0.0, "user_stopped")
    )


@pytest.mark.usefixtures("on_a_terminal")
def test_the_command_writes_a_file_that_a_run_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text("name: ours\ndriver: dry_run\nmodel: fer\n")
    assert main(["calibrate=workspace", f"robot={file}"]) == 0
    printed = capsys.readouterr().out
    assert "1/6  the tip of the closed hand on the table" in printed and "6/6" in printed
    written = yaml.safe_load(file.read_text())
    assert (written["name"], written["model"]) == ("ours", "fer")
    assert written["box"]["low"][2] == pytest.approx(0.025, abs=0.002)
    settings = Settings.read([f"robot={file}", "policy=hold"])
    assert settings.safety.workspace_low == written["box"]["low"]


@pytest.mark.usefixtures("on_a_terminal")
def test_another_file_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "our arm.yaml"
    file.write_text("precious")
    assert main(["calibrate=workspace", "robot=dry_run", f"out={file}"]) == 2
    assert f"exists; take another file, or robot='{file}' to calibrate" in capsys.readouterr().err
    assert file.read_text() == "precious"


def test_without_a_terminal_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate=workspace", "robot=dry_run", f"out={tmp_path}/x.yaml"]) == 2
    assert "nobody can guide the arm from here" in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()


def test_a_box_without_the_reset_pose_is_told() -> None:
    box = calibration.WorkspaceBox(low=[-1.0, -1.0, 0.0], high=[0.3, 1.0, 1.5])
    assert calibration.outside_at_home(box, 0.1034) == "joint7"
    assert calibration.outside_at_home(calibration.WorkspaceBox(low=[-1.0] * 3, high=[1.5] * 3), 0.1034) == ""
