"""Recipes on two processes by one word: what shares the weights and what starts the processes changes no number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlspec.checkpoint import list_checkpoints
from rlspec.train import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
RUN = [
    "recipe=debug_grpo",
    "optim=muon",
    "optim.lr=0.01",
    "device=cpu",
    "evaluation.before=false",
    "evaluation.after=false",
    "report.tensorboard=false",
    "reward=child_run:digits",  # even random weights earn different rewards, so that every step moves them
]
TWO = ["launch=torchrun", "launch.processes=2"]


@pytest.fixture(autouse=True)
def rewards_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")


def course(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("step", "loss", "reward", "grad_norm")} for row in rows]


def assert_near(run: Path, other: Path, step: int) -> None:
    mine, theirs = weights(run, step), weights(other, step)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def moved(run: Path, first: int, second: int) -> bool:
    return any(not torch.equal(value, weights(run, second)[name]) for name, value in weights(run, first).items())


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two processes by torchrun, each with whole weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("OMP_NUM_THREADS", "1")
        folder = tmp_path_factory.mktemp("runs")
        keep = ["checkpoints.every=1", "checkpoints.keep_last=9"]
        assert main([*RUN, *TWO, *keep, "trainer.max_steps=2", f"output_dir={folder}", "run=ddp"]) == 0
        yield folder / "ddp"


def test_two_processes_shard_and_one_goes_on(copies: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copies.parent
    assert moved(copies, 1, 2), "a run that learns nothing compares nothing"
    assert main([*RUN, *TWO, "sharding=fsdp2", "trainer.max_steps=2", f"output_dir={folder}", "run=fsdp2"]) == 0
    assert "2 process(es)" in capfd.readouterr().out
    assert_near(folder / "fsdp2", copies, 2)
    assert main([f"resume={folder / 'fsdp2'}", "launch=here", "trainer.max_steps=3", "checkpoints.keep_last=9"]) == 0
    assert "1 process(es)" in capfd.readouterr().out
    assert moved(folder / "fsdp2", 2, 3)
    state = torch.load(folder / "fsdp2" / "checkpoints" / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert {int(each["step"]) for each in state["state"].values()} == {3}


@pytest.mark.parametrize("launch", [["launch=accelerate"], ["launch=slurm", "launch.cluster=local"]])
def test_other_launchers_give_the_run_of_torchrun(launch: list[str], copies: Path, tmp_path: Path) -> None:
    where = [f"output_dir={tmp_path}", "run=run", f"launch.folder={tmp_path / 'slurm'}"]
    assert main([*RUN, *launch, "launch.processes=2", *where, "trainer.max_steps=2"]) == 0
    assert course(tmp_path / "run") == course(copies)
    assert all(torch.equal(value, weights(copies, 2)[name]) for name, value in weights(tmp_path / "run", 2).items())


def rank_of(launcher: int, rank: int) -> int:
    """Process id of a rank below a launcher."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended, or is another user's
        if int(parent) == launcher and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no rank {rank} runs below {launcher}")


def test_a_killed_rank_ends_the_job_with_its_reason_and_the_job_goes_on(tmp_path: Path) -> None:
    command = [*RUN, *TWO, "sharding=fsdp2", f"output_dir={tmp_path}", "run=run", "checkpoints.every=1"]
    argv = [sys.executable, "-m", "rlspec.train", *command, "trainer.max_steps=400"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        checkpoints = tmp_path / "run" / "checkpoints"
        while process.poll() is None and not (checkpoints.is_dir() and list_checkpoints(checkpoints)):
            time.sleep(0.2)
        os.kill(rank_of(process.pid, 1), signal.SIGKILL)
        started = time.monotonic()
        _, said = process.communicate()
    assert time.monotonic() - started < 60  # what is promised
    assert process.returncode == 2
    assert "rank 1 of 2 was killed by SIGKILL" in said.splitlines()[-1]
    assert "resume=auto goes on from the last complete checkpoint" in said.splitlines()[-1]
    step = int(list_checkpoints(checkpoints)[-1].name.split("-")[1])
    assert 0 < step < 400
    assert main([*command, "resume=auto", f"trainer.max_steps={step + 1}"]) == 0
    assert [row["step"] for row in course(tmp_path / "run")] == list(range(1, step + 2))
