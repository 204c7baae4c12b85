"""The recipes of GRPO with their start, their simulators and their processes, at a tiny size: run with -m slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lane_cases import SMALL, rows
from process_groups import wait_until_gone
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.rendering import choose_gl
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
SHORT = ["optim=muon", "training.steps=2", "training.bf16=false", "evaluation.before=false", "evaluation.after=false"]
TINY = [
    "policy=flow_tiny",
    *(f"policy.options.{name}={value}" for name, value in SMALL.items() if name != "size"),
    "policy.options.num_steps=2",
    "env.options.image_size=32",
    "dataset=demonstrations",
    "dataset.demonstrations.episodes=2",
    "dataset.demonstrations.noise=0",
    "training.batch_size=8",
    "training.bf16=false",
    "grpo.group_size=4",
    "grpo.groups_per_step=2",
    "grpo.refills=3",
    "grpo.films=1",
    "grpo.max_episode_steps=16",
    "checkpoints.every=1",
    "checkpoints.keep_last=9",
    "evaluation.before=false",
    "evaluation.after=false",
    "report.tensorboard=false",
    "device=cpu",
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def command(*overrides: str) -> list[str]:
    return [sys.executable, str(HERE / "eased_sim.py"), *overrides]


def tiny(recipe: str, folder: Path, run: str, start: str, *more: str) -> list[str]:
    words = ",".join(f"'{word}'" for word in SHORT)
    first = f"grpo.start={{recipe:{start},overrides:[{words}]}}"
    places = [f"dataset.root={folder / 'demonstrations'}", f"output_dir={folder}", f"run={run}"]
    return command(f"recipe={recipe}", *more, *TINY, first, *places)


@pytest.fixture(autouse=True)
def renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        choose_gl()
    except EnvironmentUnavailable as error:
        pytest.skip(str(error))
    shared = Path(os.environ.get("RLSPEC_SHARED", Path(__file__).resolve().parents[4] / "shared"))
    monkeypatch.setenv("LIBERO_ASSETS", os.environ.get("LIBERO_ASSETS", str(shared / "libero-assets")))


def test_vla_grpo_franka_killed_among_episodes_goes_on_bit_for_bit(tmp_path: Path) -> None:
    subprocess.run(tiny("vla_grpo_franka", tmp_path, "whole", "vla_franka", "training.steps=3"), check=True)
    given = tiny("vla_grpo_franka", tmp_path, "cut", "vla_franka", "training.steps=3", "grpo.workers=1")
    killed = subprocess.Popen(given, start_new_session=True)
    while not (tmp_path / "cut" / "checkpoints" / "checkpoint-1").exists():
        assert killed.poll() is None, "it should not have ended before it was killed"
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    wait_until_gone(killed.pid, 300)
    assert not (tmp_path / "cut" / "checkpoints" / "checkpoint-3").exists()
    subprocess.run(command(f"recipe={tmp_path / 'cut' / 'recipe.yaml'}", f"resume={tmp_path / 'cut'}"), check=True)
    left, right = (load_file(tmp_path / run / "checkpoints/checkpoint-3/model.safetensors") for run in ("whole", "cut"))
    assert all((value == right[name]).all() for name, value in left.items())
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert all(row["rollout/crashed"] == 0 for row in rows(tmp_path / "whole"))
    assert len(list((tmp_path / "whole" / "rollouts").glob("step-*.mp4"))) == 2  # of the first step and of the last


def test_vla_grpo_libero_takes_two_steps_on_one_task(tmp_path: Path) -> None:
    if not Path(os.environ["LIBERO_ASSETS"]).is_dir():
        pytest.skip("no LIBERO assets: set LIBERO_ASSETS")
    pytest.importorskip("libero")
    more = ["env=libero_object", "env.tasks=['0']", "training.steps=2", "grpo.mini_batches=2"]
    subprocess.run(tiny("vla_grpo_libero", tmp_path, "run", "vla_libero", *more), check=True)
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [1, 2]
    assert all(0 < row["rollout/success"] < 1 and row["rollout/crashed"] == 0 for row in found)
    assert found[0]["grad_norm"] > 0 and found[1]["approx_kl"] >= 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
