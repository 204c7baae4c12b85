"""What the command line does with the real log of a run: summary=, replay=, export=."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlspec.deploy.__main__ import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the simulated arm that holds its pose for a second."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["robot=mujoco", "policy=hold", "robot.images=false", "seconds=1", f"out={out}"]) == 0
    return out


def test_a_run_is_summarised_by_itself_and_again_elsewhere(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = (folder / "summary.html").read_text()
    assert "1 s are over" in first and "data:image/png;base64," in first
    assert main([f"summary={folder}", f"out={tmp_path}"]) == 0
    assert str(tmp_path / "summary.png") in capsys.readouterr().out
    assert (tmp_path / "summary.html").read_text() == first
    assert (tmp_path / "summary.png").read_bytes() == (folder / "summary.png").read_bytes()


def test_a_run_that_held_replays_without_deviation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"replay={folder}"]) == 0
    deviations = re.findall(r"largest ([\d.]+) rad", capsys.readouterr().out)
    assert len(deviations) == 7 and max(map(float, deviations)) < 1e-3


def test_a_run_becomes_a_data_set(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    assert main([f"export={folder}", f"out={out}"]) == 0
    assert "1 episodes, 1" in capsys.readouterr().out
    info = json.loads((out / "meta" / "info.json").read_text())
    assert (info["total_episodes"], info["fps"]) == (1, 15) and "action" in info["features"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["summary=nowhere"], "nowhere"),
        (["replay=nowhere", "lew=ruckig"], "lew=ruckig: unknown key; did you mean law?"),
        (["export=nowhere"], "export=: no folder; add out=DIR"),
        (["export=nowhere", "out=x", "video=maybe"], "video=maybe: must be true or false"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
