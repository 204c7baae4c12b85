"""`python -m rlspec.diagnose`: mistakes are one line and exit code 2; a study of a real model writes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlspec.checkpoint import staged_folder
from rlspec.diagnose import DiagnoseCommand, main
from rlspec.diagnostics.catalogue import STUDIES


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_a_line_that_names_nothing_or_too_much_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "what: required" in refused(capsys, "model=tiny")
    assert "did you mean spectra?" in refused(capsys, "what=spectrum", "model=tiny")
    assert "nothing to look into: add checkpoint=DIR" in refused(capsys, "what=noise")
    assert "checkpoint and run both name" in refused(capsys, "what=noise", "checkpoint=a", "run=b")
    assert "run and model both name" in refused(capsys, "what=noise", "run=b", "model=tiny")
    assert "parts" in refused(capsys, "what=noise", "model=tiny", "parts=1")
    assert "optim.lrr: unknown key" in refused(capsys, "what=noise", "model=tiny", "optim.lrr=1")


def test_folders_without_weights_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such folder" in refused(capsys, "what=noise", f"checkpoint={tmp_path / 'gone'}")
    assert f"run={tmp_path / 'gone'}: no such folder" in refused(capsys, "what=noise", f"run={tmp_path / 'gone'}")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"checkpoint={empty}: no checkpoint in this folder" in refused(capsys, "what=noise", f"checkpoint={empty}")
    (empty / "checkpoints").mkdir()
    assert "the run has no checkpoint yet" in refused(capsys, "what=noise", f"run={empty}")
    with staged_folder(empty / "checkpoints" / "checkpoint-3", metadata={"step": 3}) as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
    (empty / "checkpoints" / "checkpoint-3" / "model.safetensors").write_bytes(b"weight?")
    assert "has changed since it was written" in refused(capsys, "what=noise", f"run={empty}")


def test_the_usage_names_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name, about in STUDIES.items():
        assert f"{name} " in said and about in said
    assert DiagnoseCommand.read(["what=noise", "model=tiny", "size=4"]).overrides == ["model=tiny"]


def test_a_study_of_the_shipped_model_is_shown_and_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ["parts=4", "size=4", "role=attention"]
    assert main(["what=spectra", "model=tiny", f"out={tmp_path}", *small]) == 0
    said = capsys.readouterr().out
    assert "gradient of 4 groups of 4 completions" in said
    content = json.loads((tmp_path / "spectra.json").read_text())
    assert {each["role"] for each in content["gradient"]} == {f"attention.{letter}" for letter in "qkvo"}
    assert len(content["gradient"]) == 4 * (4 + 2 + 2 + 4)  # layers times heads
    assert (tmp_path / "spectra.png").stat().st_size > 10_000
