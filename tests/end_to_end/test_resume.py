"""A run that was stopped and resumed ends with the weights of the run that never stopped, bit for bit.

TRL 1.16 fails this wherever a block of rollouts serves several updates, inside later passes, and at a pass's end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import child_run
import pytest
import torch
import yaml
from child_run import shown, wait_for_step
from safetensors.torch import load_file

from rlspec import checkpoint
from rlspec.checkpoint import list_checkpoints
from rlspec.config.load import load_recipe
from rlspec.errors import CheckpointError
from rlspec.rlvr.run import run_recipe

SMALL = [
    "model=debug",
    "optim.lr=0.01",  # large, so that a difference would show
    "evaluation.before=false",
    "evaluation.after=false",
    "evaluation.every=null",
    "checkpoints.every=null",
    "report.tensorboard=false",
    "reward=child_run:digits",  # even random weights earn different rewards, so that every step moves them
]


def train(folder: Path, *overrides: str, code: int = 0) -> Path:
    recipe = load_recipe([*SMALL, f"output_dir={folder}", "run=run", *overrides])
    assert run_recipe(recipe) == code
    return folder / "run"


def resume(run: Path, *overrides: str) -> None:
    recipe = load_recipe([f"recipe={run / 'recipe.yaml'}", "run=null", f"resume={run}", *overrides])
    assert run_recipe(recipe) == 0


def at_call(
    number: int, module: ModuleType, name: str, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let something happen at that call of a function, before it does its work."""
    calls, original = count(1), getattr(module, name)

    @wraps(original)
    def counted(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == number:
            act()
        return original(*arguments, **keywords)

    monkeypatch.setattr(module, name, counted)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    (file,) = (run / "checkpoints" / f"checkpoint-{step}").glob("*model.safetensors")
    return load_file(file)


def course(run: Path) -> list[dict[str, float | None]]:
    """What the policy did in every step: equal rewards and lengths mean equal prompts and completions."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "reward", "completions/mean_length", "entropy", "grad_norm")
    return [{key: row.get(key) for key in keys} for row in rows]  # rewards stand in the first row of a block


GROWING = [
    "batch.grow=true",
    "batch.prompts_per_step=2",
    "batch.updates_per_generation=2",
    "batch.micro_batch=4",
    "batch.norm_test_eta=0.3",
]
CALLING = [
    "model=tiny",
    "model.init=checkpoints/tiny-calculator",
    "batch.prompts_per_step=2",
    "batch.samples_per_prompt=4",
    "evaluation.every=null",
    "checkpoints.every=null",
]
MOVING = ["trainer.beta=0.5", "trainer.sync_ref_model=true", "trainer.ref_model_sync_steps=1"]
CASES = {
    "in epoch 0": (["recipe=grpo_math"], 2, 4),
    "inside a block of rollouts": (["recipe=grpo_math", "batch.updates_per_generation=4"], 2, 5),
    "inside epoch 1": (["recipe=grpo_math", "data.limit=6"], 4, 6),
    "exactly at an epoch's end": (["recipe=grpo_math", "data.limit=6"], 3, 5),
    "in a block across an epoch's end, GMPO, AdamW": (["recipe=gmpo_math", "optim=adamw", "data.limit=6"], 3, 6),
    "with several micro batches per step, Muon": (["recipe=grpo_math", "optim=muon", "batch.micro_batch=4"], 2, 4),
    "with a reference that moves": (["recipe=grpo_math", *MOVING], 2, 4),
    "with LoRA": (["recipe=grpo_math", "model.lora.r=4"], 2, 4),
    "with calls of a tool": (["recipe=grpo_calculator", *CALLING], 1, 2),
    # Noise is looked at over five steps and the batch doubles at a block's end: after steps 6 and 12.
    "before and after the batch doubles": (["recipe=grpo_math", *GROWING], 8, 13),
    "where the batch doubles": (["recipe=grpo_math", *GROWING], 6, 8),
}
SLOW = {"with several micro batches per step, Muon", "with calls of a tool", "where the batch doubles"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
)
def test_a_run_that_goes_on_from_an_earlier_step_equals_the_run_that_never_stopped(case: str, tmp_path: Path) -> None:
    overrides, cut, steps = CASES[case]
    run = train(
        tmp_path, *overrides, f"trainer.max_steps={steps}", f"checkpoints.every={cut}", "checkpoints.keep_last=9"
    )
    stopped_at, expected, once = weights(run, cut), weights(run, steps), course(run)
    point = run / "checkpoints" / f"checkpoint-{cut}"
    resume(point)

    later = {int(path.name.rpartition("-")[2]) for path in point.parent.glob("abandoned-*")}
    assert steps in later and min(later) > cut
    assert json.loads((run / "summary.json").read_text())["checkpoint"].endswith(f"checkpoint-{steps}")
    found = weights(run, steps)
    assert course(run) == once
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert any(not torch.equal(stopped_at[name], found[name]) for name in found), "nothing was learnt after the cut"


def test_a_batch_doubles_where_the_norm_test_fails_up_to_its_limit_and_draws_every_prompt_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, "recipe=grpo_math", *GROWING, "batch.grow_limit=5", "data.limit=40", "trainer.max_steps=14")
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "batch.grow" in line]
    assert said.startswith("step 6: the noise of 5 steps was ") and said.endswith(
        "a step has 4 prompts instead of 2 (batch.grow, at most 5)"
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["noise/prompts_per_step"] for row in rows if "loss" in row] == [2.0] * 5 + [4.0] * 9
    manifest = json.loads((run / "checkpoints" / "checkpoint-14" / "manifest.json").read_text())
    assert manifest["batch"]["prompts_per_step"] == 4 and manifest["batch"]["origin"] == [6, 12]


def compare_with_whole_run(run: Path, tmp_path: Path, *overrides: str) -> None:
    """Go on for three steps after the newest checkpoint, and compare with a run that never stopped."""
    step = int(list_checkpoints(run / "checkpoints")[-1].name.split("-")[1])
    assert 0 < step < STEPS
    resume(run, f"trainer.max_steps={step + 3}")
    whole = train(tmp_path / "whole", *overrides, f"trainer.max_steps={step + 3}")
    expected, found = weights(whole, step + 3), weights(run, step + 3)
    assert course(run) == course(whole)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


STEPS = 1000  # more than a process can take before its signal
KILLED = ["recipe=gmpo_math", "data.limit=6", "checkpoints.every=1"]


class Ended(Exception):
    """Ends a run whose folder has been copied."""


@pytest.mark.parametrize("moment", ["between checkpoints", "within one"])
def test_what_a_kill_leaves_goes_on_as_if_nothing_had_happened(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of that moment, as a kill leaves them; the run itself, which could still tidy up, is not looked at."""
    left = tmp_path / "killed" / "run"

    def leave() -> None:
        shutil.copytree(tmp_path / "run", left)
        raise Ended

    if moment == "within one":
        at_call(5, checkpoint, "write_manifest", leave, monkeypatch)
    else:
        at_call(2, child_run, "digits", leave, monkeypatch)  # a block of rollouts serves four steps
    with pytest.raises(Ended):
        train(tmp_path, *KILLED, "trainer.max_steps=9")
    incomplete = list((left / "checkpoints").glob(".incomplete-*"))
    assert len(incomplete) == (moment == "within one") and not (left / "summary.json").exists()
    compare_with_whole_run(left, tmp_path, *KILLED)


def test_an_interrupted_run_saves_says_how_to_go_on_and_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    at_call(2, child_run, "digits", lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    run = train(tmp_path / "stopped", "recipe=grpo_math", f"trainer.max_steps={STEPS}", code=130)
    assert f"resume    python -m rlspec.train resume={run}" in capfd.readouterr().out
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    compare_with_whole_run(run, tmp_path, "recipe=grpo_math")


RUNNER = """
import sys
from rlspec.config.load import load_recipe
from rlspec.rlvr.run import run_recipe
sys.path.insert(0, sys.argv[1])
sys.exit(run_recipe(load_recipe(sys.argv[2:])))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # the process may have to share its processor with many
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_signalled_goes_on_as_if_nothing_had_happened(number: signal.Signals, tmp_path: Path) -> None:
    arguments = [*SMALL, *KILLED, f"output_dir={tmp_path / 'stopped'}", "run=run", f"trainer.max_steps={STEPS}"]
    command = [sys.executable, "-c", RUNNER, str(Path(__file__).parent), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        # With a checkpoint after every step the signal arrives while one is being written, more often than not.
        wait_for_step(process, 6, STEPS)
        process.send_signal(number)
        output = shown(process).read()
    run = tmp_path / "stopped" / "run"
    if number is not signal.SIGKILL:
        assert process.returncode == 130 and f"resume    python -m rlspec.train resume={run}" in output
    compare_with_whole_run(run, tmp_path, *KILLED)


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run within its first block of rollouts, to be copied."""
    return train(tmp_path_factory.mktemp("one_step"), "recipe=gmpo_math", "trainer.max_steps=1")


@pytest.fixture
def short(one_step: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one_step, tmp_path / "run"))


def test_a_recipe_that_does_not_match_is_refused_and_nothing_touched(short: Path) -> None:
    before = {path: path.read_bytes() for path in short.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"written with optim.lr=0.01, the recipe says 0.5; drop the override"):
        resume(short, "optim.lr=0.5")
    assert {path: path.read_bytes() for path in short.rglob("*") if path.is_file()} == before


def test_a_run_goes_on_that_was_written_before_a_key_came(short: Path) -> None:
    point = short / "checkpoints" / "checkpoint-1"
    for path in (short / "recipe.yaml", point / "recipe.yaml"):
        values = yaml.safe_load(path.read_text())
        del values["optim"]["adamw_lr_scale"], values["sharding"]
        path.write_text(yaml.safe_dump(values))
    manifest = checkpoint.read_manifest(point)
    checkpoint.write_manifest(point, {key: manifest[key] for key in manifest.keys() - {"files", "format"}})
    resume(short, "trainer.max_steps=2")
    assert load_recipe([f"recipe={short / 'recipe.yaml'}"]).optim.adamw_lr_scale == 1.0


def test_a_missing_reference_that_moved_is_named(tmp_path: Path) -> None:
    run = train(tmp_path, "recipe=grpo_math", *MOVING, "trainer.max_steps=1")
    (run / "checkpoints" / "checkpoint-1" / "reference.pt").unlink()
    with pytest.raises(CheckpointError, match=r"reference\.pt is missing"):
        resume(run, "trainer.max_steps=2")


def test_a_missing_block_of_rollouts_is_named(short: Path) -> None:
    point = short / "checkpoints" / "checkpoint-1"
    (point / "rollouts_0.pt").unlink()
    with pytest.raises(CheckpointError, match="rollouts_0.pt is missing"):
        resume(point, "trainer.max_steps=3")


def test_a_resumed_run_follows_the_new_intervals_and_its_recipe_says_so(short: Path) -> None:
    resume(short, "trainer.max_steps=4", "checkpoints.every=2", "checkpoints.keep_last=9")
    steps = [path.name for path in list_checkpoints(short / "checkpoints")]
    assert steps == [f"checkpoint-{step}" for step in (1, 2, 4)]
    stored = load_recipe([f"recipe={short / 'recipe.yaml'}"])
    assert (stored.trainer["max_steps"], stored.resume) == (4, None)


@pytest.mark.slow
def test_two_processes_resume_inside_a_block_bit_for_bit(tmp_path: Path) -> None:
    def launch(*arguments: str) -> None:
        script = tmp_path / "runner.py"
        script.write_text(RUNNER)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
        subprocess.run([*command, str(Path(__file__).parent), *arguments], check=True, capture_output=True)

    common = [*SMALL, "recipe=gmpo_math", "data.limit=6", "device=cpu", f"output_dir={tmp_path}"]
    launch(*common, "run=whole", "trainer.max_steps=5")
    launch(*common, "run=parts", "trainer.max_steps=2")
    parts = tmp_path / "parts"
    launch(f"recipe={parts / 'recipe.yaml'}", "run=null", f"resume={parts}", "trainer.max_steps=5")
    expected, found = weights(tmp_path / "whole", 5), weights(parts, 5)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
