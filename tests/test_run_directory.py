"""Names of runs, and what `resume=` finds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlspec.checkpoint import staged_folder
from rlspec.errors import CheckpointError, ConfigError
from rlspec.run_directory import RunDirectory, create_run, find_resume_point


def with_checkpoint(run: RunDirectory, step: int) -> Path:
    target = run.checkpoints / f"checkpoint-{step}"
    with staged_folder(target, metadata={"step": step}) as staging:
        (staging / "model.bin").write_bytes(b"weights")
    return target


def test_a_second_run_of_the_same_name_gets_a_number_and_touches_nothing(tmp_path: Path) -> None:
    first = create_run(tmp_path, "run", explicit=False)
    (first.path / "summary.json").write_text("kept")
    second = create_run(tmp_path, "run", explicit=False)
    assert second.path == tmp_path / "run-2"
    assert (first.path / "summary.json").read_text() == "kept"


def test_a_name_that_the_user_chose_is_not_changed_but_refused(tmp_path: Path) -> None:
    folder = tmp_path / "my runs"
    (create_run(folder, "mine", explicit=True).path / "file").touch()
    with pytest.raises(ConfigError, match=r"run=mine: .* exists already; .*resume='.*/my runs/mine'$"):
        create_run(folder, "mine", explicit=True)


@pytest.mark.parametrize(("folder", "name"), [("file", "run"), (".", "x" * 300)])
@pytest.mark.parametrize("explicit", [False, True])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, folder: str, name: str, explicit: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_dir=.*: cannot make .*; choose another, or another run=NAME$"):
        create_run(tmp_path / folder, name, explicit=explicit)


def test_a_file_takes_a_name_like_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("kept")
    assert create_run(tmp_path, "run", explicit=False).path == tmp_path / "run-2"
    with pytest.raises(ConfigError, match=r"run=run: .* exists already"):
        create_run(tmp_path, "run", explicit=True)
    assert (tmp_path / "run").read_text() == "kept"


def test_a_run_is_resumed_from_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", explicit=False)
    with_checkpoint(run, 2)
    damaged = with_checkpoint(run, 4)
    (damaged / "model.bin").write_bytes(b"half")
    point = find_resume_point(str(run.path), tmp_path, "ignored")
    assert (point.step, point.run) == (2, run)
    assert "checkpoint-4" in point.notes[0]


def test_a_named_checkpoint_is_taken_or_refused_never_replaced_by_another(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", explicit=False)
    wanted, later = with_checkpoint(run, 2), with_checkpoint(run, 4)
    assert find_resume_point(str(wanted), tmp_path, "ignored").step == 2
    (later / "model.bin").unlink()
    with pytest.raises(CheckpointError, match="model.bin is missing"):
        find_resume_point(str(later), tmp_path, "ignored")


def test_auto_takes_the_newest_run_of_that_name_only(tmp_path: Path) -> None:
    for name, step in (("run", 1), ("run-2", 7), ("run-other", 9)):
        with_checkpoint(create_run(tmp_path, name, explicit=True), step)
    point = find_resume_point("auto", tmp_path, "run")
    assert point is not None and point.run.path.name == "run-2"
    assert find_resume_point("auto", tmp_path, "missing") is None


@pytest.mark.parametrize(("resume", "message"), [("nowhere", "no such folder"), ("empty", "it holds no checkpoint")])
def test_nothing_to_resume_is_said(resume: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=message):
        find_resume_point(str(tmp_path / resume), tmp_path, "run")


def test_best_weights_cannot_be_resumed(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", explicit=False)
    with staged_folder(run.best, metadata={"step": 1}):
        pass
    with pytest.raises(CheckpointError, match="weights only"):
        find_resume_point(str(run.best), tmp_path, "run")


def test_metrics_survive_a_cut_line_and_forget_steps_that_are_taken_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": math.nan if step == 1 else 0.5})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]
    assert run.read_metrics()[0]["loss"] is None
    run.forget_metrics_after(2)
    run.append_metrics({"step": 3, "loss": 0.1})
    assert [row["loss"] for row in run.read_metrics()] == [None, 0.5, 0.1]
