"""A command in several processes: all run it, rank 0 is heard, and one that dies ends the others with its reason."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rlspec.config.load import load_recipe, load_vla_recipe
from rlspec.config.schema import Launch
from rlspec.errors import ConfigError, UserError
from rlspec.runtime.launching import LAUNCHED, check_processes, is_launched, launch

STUB = "stub_rank"


@pytest.fixture(autouse=True)
def stub_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(here)
    monkeypatch.delenv(LAUNCHED, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def settings(by: str, folder: Path) -> Launch:
    return Launch(by=by, processes=2, cluster="local", folder=str(folder), minutes=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["torchrun", "slurm", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_every_process_runs_the_command_and_rank_0_is_heard(
    by: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch(settings(by, tmp_path), STUB, ["fine"]) == 0
    heard = capfd.readouterr().out
    assert "rank 0 of 2 says ['fine']" in heard
    assert ("rank 1" in heard) == (by == "accelerate")  # which has no word for whose lines are shown
    assert not is_launched(), "the next command of this process is launched too"


@pytest.mark.parametrize(
    ("by", "fate", "words"),
    [
        ("torchrun", "killed", "rank 1 of 2 was killed by SIGKILL; the machine may have run out of memory"),
        ("torchrun", "raises", r"rank 1 of 2 failed \(exit code 1, reason above\)"),
        ("slurm", "raises", "rank 1 of 2 failed: RuntimeError: the disk of rank 1 burns"),
    ],
)
def test_a_dead_rank_ends_the_job_within_a_minute_with_its_reason(
    by: str, fate: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=words) as end:
        launch(settings(by, tmp_path), STUB, [fate])
    assert time.monotonic() - started < 60  # what is promised; the peer would sleep for ten minutes
    assert "resume=auto goes on from the last complete checkpoint" in str(end.value)
    if (by, fate) == ("torchrun", "raises"):
        assert "the disk of rank 1 burns" in capfd.readouterr().err


def test_a_launcher_that_makes_fewer_processes_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_processes(Launch(by="torchrun", processes=2), 1)  # the user's own launcher decides
    monkeypatch.setenv(LAUNCHED, "accelerate")
    check_processes(Launch(by="accelerate", processes=2), 2)
    with pytest.raises(ConfigError, match=r"launch.processes=2: launch=accelerate made 1; use launch=torchrun"):
        check_processes(Launch(by="accelerate", processes=2), 1)


def test_processes_that_do_not_divide_among_nodes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launch.processes=3: must divide among launch.nodes=2"):
        launch(Launch(by="slurm", processes=3, nodes=2, cluster="local", folder=str(tmp_path)), STUB, [])


def test_one_word_of_a_recipe_names_the_launcher() -> None:
    for load, recipe in ((load_recipe, "grpo_math"), (load_vla_recipe, "vla_franka")):
        made = load([f"recipe={recipe}", "launch=torchrun", "launch.processes=2"])
        assert (made.launch.by, made.launch.processes) == ("torchrun", 2)
    with pytest.raises(ConfigError, match=r"launch.by=torchrum.*torchrun"):
        load_recipe(["recipe=grpo_math", "launch=torchrum"])
