"""A robot's policy that was stopped and resumed equals the one that never stopped, bit for bit on the CPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from child_run import shown, wait_for_step
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "vla" / "training"))
from training_cases import CHUNK, course, equal, make_recipe, resume, state, train, weights_equal  # noqa: E402

from rlspec.checkpoint import list_checkpoints
from rlspec.config.load import dump_recipe
from rlspec.errors import CheckpointError
from rlspec.vla.training.state import STATE

CASES = {
    "in the first pass over the data": ([], 2, 4),
    "across the end of a pass, between two log lines": (["training.batch_size=16", "training.log_every=3"], 2, 5),
    "flow matching, AdamW, without averages": (
        ["policy.type=rlspec_flow", "optim.name=adamw", "optim.rule=adamw", "optim.roles={}", "training.ema_decay=0"],
        2,
        4,
    ),
    "before a part is trained, with passes": (
        ["policy.freeze=[{part: vision, until: 4}]", "training.gradient_accumulation=2", "training.batch_size=2"],
        2,
        5,
    ),
    "with LeRobot's image transforms": (
        ["training.augmentation={max_num_transforms: 2}", "optim.promotion_steps=0", "optim.momentum=0.8"],
        1,
        3,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_the_run_that_never_stopped(case: str, tmp_path: Path) -> None:
    overrides, cut, steps = CASES[case]
    overrides = [*overrides, f"training.steps={steps}", "checkpoints.keep_last=9"]
    whole = train(tmp_path / "whole", *overrides)
    parts = train(tmp_path / "parts", *overrides, stop_after=cut)
    assert [path.name for path in list_checkpoints(parts / "checkpoints")][-1] == f"checkpoint-{cut}"
    resume(parts)
    assert course(parts) == course(whole)
    assert equal(state(parts, steps), state(whole, steps))
    assert weights_equal(parts, whole, steps)
    assert not weights_equal(parts, parts, steps, cut), "nothing was learnt after the cut"


def test_a_longer_run_goes_on_and_its_stretched_schedule_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, "training.steps=2")
    resume(run, "training.steps=3", "training.log_every=5")
    assert "follows a cosine_annealing_with_warmup schedule over that length" in capsys.readouterr().out
    assert [row["step"] for row in course(run)] == [1, 2, 3]
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["steps"] == 3


def test_what_shaped_the_weights_may_not_differ(tmp_path: Path) -> None:
    run = train(tmp_path, "training.steps=1")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"written with training.random_shift=2, the recipe says 3"):
        resume(run, "training.random_shift=3")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "training.steps=3", "checkpoints.every=1")
    (run / "checkpoints" / "checkpoint-3" / STATE).write_bytes(b"cut short")
    resume(run)
    assert f"passed over a damaged checkpoint: {run}/checkpoints/checkpoint-3: {STATE} has" in capsys.readouterr().out
    assert course(run) == course(train(tmp_path / "whole", "training.steps=3"))


RUNNER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from training_cases import FakeEvaluator, MadeUpSamples
from rlspec.config.load import load_vla_recipe
from rlspec.vla.run import run_vla_recipe
recipe = load_vla_recipe(sys.argv[2:])
samples = MadeUpSamples()
sys.exit(run_vla_recipe(recipe, samples=lambda *_: samples, evaluator=FakeEvaluator({6: 0.5})))
"""


def command(arguments: Sequence[str], processes: int = 1) -> list[str]:
    folder = str(Path(train.__code__.co_filename).parent)
    if processes == 1:
        return [sys.executable, "-c", RUNNER, folder, *arguments]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--no-python", sys.executable]
    return [sys.executable, *launcher, "-c", RUNNER, folder, *arguments]


def recipe_file(folder: Path, *overrides: str) -> str:
    path = folder / "start.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_recipe(make_recipe(folder, *overrides)))
    return f"recipe={path}"


@pytest.mark.slow
@pytest.mark.timeout(900)  # loading LeRobot takes most of it
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_a_signal_ended_goes_on_as_if_nothing_had_happened(number: signal.Signals, tmp_path: Path) -> None:
    overrides = ["training.steps=400", "checkpoints.every=1", "training.scheduler.type=constant_with_warmup"]
    folder = tmp_path / "killed"
    with subprocess.Popen(command([recipe_file(folder, *overrides)]), stdout=subprocess.PIPE, text=True) as process:
        checkpoints = folder / "run" / "checkpoints"
        wait_for_step(process, 4, 400)
        process.send_signal(number)
        output = shown(process).read()
    run = folder / "run"
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert f"resume    python -m rlspec.train resume={run}" in output
        assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    step = int(list_checkpoints(checkpoints)[-1].name.split("-")[1])
    assert 0 < step < 400
    resume(run, f"training.steps={step + 2}")
    whole = train(tmp_path / "whole", *overrides[1:], f"training.steps={step + 2}")
    assert course(run) == course(whole)
    assert equal(state(run, step + 2), state(whole, step + 2))


@pytest.mark.slow
@pytest.mark.timeout(900)  # loading LeRobot takes most of it
def test_two_processes_train_on_the_whole_batch_and_resume_bit_for_bit(tmp_path: Path) -> None:
    def launch(*arguments: str) -> None:
        done = subprocess.run(command(arguments, processes=2), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    shape = ["training.batch_size=2", "training.steps=4", "checkpoints.every=1", "checkpoints.keep_last=9"]
    freeze = "policy.freeze=[{part: language, until: 3}]"
    launch(recipe_file(tmp_path / "whole", *shape, freeze))
    alone = train(tmp_path / "alone", *shape, freeze, "training.batch_size=4")
    losses = [[row["loss"] for row in course(run)] for run in (tmp_path / "whole" / "run", alone)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # a mean over real steps weighs parts by their padding
    launch(recipe_file(tmp_path / "parts", *shape, freeze))
    parts, whole = tmp_path / "parts" / "run", tmp_path / "whole" / "run"
    launch(f"recipe={parts / 'recipe.yaml'}", "run=null", f"resume={parts / 'checkpoints' / 'checkpoint-2'}")
    assert course(parts) == course(whole)
    assert equal(state(parts, 4), state(whole, 4))


@pytest.mark.slow
@pytest.mark.timeout(900)  # loading LeRobot takes most of it
def test_two_processes_end_together_at_the_success_that_is_wanted(tmp_path: Path) -> None:
    """Rank 0 alone sees the evaluations."""
    wanted = ["training.steps=9", "evaluation.every=2", "evaluation.stop_at_success=0.5"]
    run = tmp_path / "run"
    for arguments in ([recipe_file(tmp_path, *wanted)], [f"recipe={run / 'recipe.yaml'}", "run=null", f"resume={run}"]):
        done = subprocess.run(command(arguments, processes=2), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads((run / "summary.json").read_text())["steps"] == 6
        assert course(run)[-1]["step"] == 6


SHARED = ["training.batch_size=2", "training.steps=4", "checkpoints.every=1", "checkpoints.keep_last=9"]


def policy_case(kind: str, folder: Path) -> list[str]:
    """Overrides of a policy whose layers are called, or of one that reaches into them."""
    if kind == "adapter, averaged, with a part that waits":
        return ["policy.freeze=[{part: language, until: 3}]", "evaluation.every=2"]
    from tiny_smolvla import tiny_settings, write_tiny_vlm

    fields = tiny_settings(write_tiny_vlm(folder / "smolvlm")) | {"chunk_size": CHUNK, "n_action_steps": CHUNK}
    options = {key: value for key, value in fields.items() if key not in ("device", "push_to_hub")}
    return ["policy.type=rlspec_smolvla", f"policy.options={json.dumps(options)}", "training.random_shift=0"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # loading LeRobot takes most of it
@pytest.mark.parametrize("kind", ["adapter, averaged, with a part that waits", "smolvla"])
def test_two_processes_share_the_weights_and_one_goes_on(kind: str, tmp_path: Path) -> None:
    overrides = [*SHARED, *policy_case(kind, tmp_path)]
    for sharding in ("ddp", "fsdp2"):
        arguments = [recipe_file(tmp_path / sharding, *overrides, f"sharding={sharding}")]
        done = subprocess.run(command(arguments, processes=2), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    copies, parts = tmp_path / "ddp" / "run", tmp_path / "fsdp2" / "run"
    assert not weights_equal(parts, parts, 2, 4), "a run that learns nothing compares nothing"
    assert_near(parts, copies)
    resume(parts / "checkpoints" / "checkpoint-2")
    assert_near(parts, copies)


def assert_near(run: Path, other: Path) -> None:
    """The same losses and, after the last step, the same weights but for the order of sums."""
    rows = [[row for row in course(each) if "loss" in row] for each in (run, other)]
    assert [row["step"] for row in rows[0]] == [1, 2, 3, 4]
    for mine, theirs in zip(*rows, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5, nan_ok=True)
    folders = [each / "checkpoints" / "checkpoint-4" / "model.safetensors" for each in (run, other)]
    weights, expected = map(load_file, folders)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
