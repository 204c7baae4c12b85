"""The story of a run, with parts that do nothing: what comes after what, and what is said when it goes wrong."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from rlspec.checkpoint import staged_folder
from rlspec.config.load import load_recipe
from rlspec.config.rlvr_schema import Recipe
from rlspec.display import Display
from rlspec.errors import ConfigError, UserError
from rlspec.run_directory import RECIPE, RunDirectory
from rlspec.runtime.card import Origin
from rlspec.runtime.outcome import Ending, RunOutcome, keep_best
from rlspec.runtime.starting import Run
from rlspec.runtime.story import tell


class Session:
    """Writes down what it was asked for."""

    def __init__(self, run: Run, calls: list[str], train: Callable[[Run], str]) -> None:
        self.run, self.calls, self._train = run, calls, train

    def before(self) -> dict[str, Any]:
        self.calls.append("before")
        return {"rate": 0.25}

    def train(self) -> tuple[int, Any]:
        self.calls.append(f"train from {self.run.start}")
        return self.run.start + 3, self._train(self.run)

    def after(self, step: int) -> dict[str, Any]:
        self.calls.append(f"after {step}")
        return {"rate": 0.5}


class Kind:
    out_of_memory = "train less"

    def __init__(self, recipe: Recipe, train: Callable[[Run], str] = lambda run: "finished") -> None:
        self.recipe, self.process, self._train = recipe, PartialState(cpu=True), train
        self.calls: list[str] = []

    def introduce(self, display: Display) -> None:
        self.calls.append("introduce")

    def stretched(self, stored: Mapping[str, Any]) -> str | None:
        return "cosine"

    @contextmanager
    def prepare(self, run: Run) -> Iterator[Session]:
        self.calls.append("prepare")
        try:
            yield Session(run, self.calls, self._train)
        finally:
            self.calls.append("close")

    def ending(self, outcome: RunOutcome, directory: RunDirectory) -> Ending:
        words = ("nothing", {"data": "made up"}, ["nothing was learnt"], "answers", f"steps={2 * outcome.steps}")
        return Ending(*words, origin=Origin("transformers", "text-generation", None, None, "nothing"))


def recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(["recipe=grpo_math", f"output_dir={folder}", "run=run", "report.display=plain", *overrides])


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return content


def checkpoint(run: Run, step: int) -> None:
    with staged_folder(run.directory.checkpoints / f"checkpoint-{step}", metadata={"step": step}) as folder:
        (folder / RECIPE).write_text((run.directory.path / RECIPE).read_text())


def test_a_run_measures_trains_measures_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = Kind(recipe(tmp_path))
    assert tell(kind) == 0
    assert kind.calls == ["introduce", "prepare", "before", "train from 0", "after 3", "close"]
    written = summary(tmp_path)
    assert (written["status"], written["steps"], written["data"]) == ("finished", 3, "made up")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run directory: {tmp_path}/run"
    assert lines[-1] == f"resume    python -m rlspec.train resume={tmp_path}/run steps=6"
    assert "nothing was learnt" in lines


def test_the_commands_at_the_end_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(Kind(recipe(tmp_path / "my runs"))) == 0
    pasted = [shlex.split(line)[3:] for line in capsys.readouterr().out.splitlines()[-3:]]
    path = f"{tmp_path}/my runs/run"
    report, evaluate = ["rlspec.report", path], ["rlspec.evaluate", f"checkpoint={path}"]
    assert pasted == [report, evaluate, ["rlspec.train", f"resume={path}", "steps=6"]]


def test_an_interrupted_run_is_not_measured_and_its_seconds_count_when_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: Run) -> str:
        checkpoint(run, 3)
        return "interrupted"

    kind = Kind(recipe(tmp_path), interrupted)
    assert tell(kind) == 130
    assert kind.calls[-2:] == ["train from 0", "close"]
    path = tmp_path / "run" / "summary.json"
    path.write_text(json.dumps({**summary(tmp_path), "seconds": 1000.0}))
    capsys.readouterr()
    second = Kind(load_recipe(["recipe=grpo_math", "report.display=plain", f"resume={tmp_path / 'run'}"]))
    assert tell(second) == 0
    assert second.calls[-3:] == ["train from 3", "after 6", "close"]
    assert 1000 <= summary(tmp_path)["seconds"] < 1100
    assert "follows a cosine schedule over that length" in capsys.readouterr().out


def test_a_folder_of_runs_at_home_is_found_again_by_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def saved(run: Run) -> str:
        checkpoint(run, 3)
        return "finished"

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert tell(Kind(recipe(Path("~/runs"), "resume=auto"), saved)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert f"run directory: {tmp_path}/runs/run, resumed after step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory on the device: train less; the previous"),
        (OSError(28, "No space left on device"), r"run: the disk is full; .*; the previous checkpoint is whole: .*-3"),
        (RuntimeError("PytorchStreamWriter failed: unexpected pos 64 vs 0"), "run: the disk is full; "),
    ],
)
def test_what_the_user_can_mend_is_one_line_that_says_what_is_left(fault: Exception, said: str, tmp_path: Path) -> None:
    def broken(run: Run) -> str:
        checkpoint(run, 3)
        raise fault

    kind = Kind(recipe(tmp_path), broken)
    with pytest.raises(UserError, match=said) as caught:
        tell(kind)
    assert "\n" not in str(caught.value)
    assert kind.calls[-1] == "close"
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("phase", ["before", "after"])
def test_ctrl_c_while_it_measures_names_what_there_is(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def saved(run: Run) -> str:
        checkpoint(run, 3)
        return "finished"

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, phase, stopped)
    kind = Kind(recipe(tmp_path), saved)
    assert tell(kind) == 130
    assert kind.calls[-1] == "close"
    run = tmp_path / "run"
    said = {
        "before": f"interrupted before anything was saved; {run} can be removed",
        "after": f"interrupted; what was trained is in {run}/checkpoints/checkpoint-3; go on: python -m rlspec.train "
        f"resume={run}",
    }
    assert said[phase] in "".join(capfd.readouterr())


def test_other_faults_stay_what_they_are(tmp_path: Path) -> None:
    def broken(run: Run) -> str:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match") as caught:
        tell(Kind(recipe(tmp_path), broken))
    assert not isinstance(caught.value, UserError)


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_read_or_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    kind = Kind(recipe(tmp_path, "report.wandb=true"))
    with pytest.raises(ConfigError, match="wandb is not installed"):
        tell(kind)
    assert kind.calls == []
    assert not (tmp_path / "run").exists()


def test_the_best_weights_are_replaced_by_better_ones_alone(tmp_path: Path) -> None:
    run = Run(recipe(tmp_path), RunDirectory(tmp_path), None, PartialState(cpu=True), Display("plain"))
    for step, score in enumerate((0.5, 0.25, 0.5, 0.75)):
        keep_best(run, step, ("rate", score), lambda folder, step=step: (folder / "weights").write_text(str(step)))
        assert (run.directory.best / "weights").read_text() == ("3" if score == 0.75 else "0")
    manifest = json.loads((run.directory.best / "manifest.json").read_text())
    assert (manifest["step"], manifest["rate"], manifest["recipe"]) == (3, 0.75, "grpo_math")
    assert (run.directory.best / RECIPE).is_file()
