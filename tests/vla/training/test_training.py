"""Whole small runs: what is trained, kept, measured and said."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from training_cases import FakeEvaluator, MadeUpSamples, course, equal, make_recipe, resume, state, train

from rlspec.checkpoint import list_checkpoints, read_manifest
from rlspec.comparison.measures import measure
from rlspec.config.load import load_vla_recipe
from rlspec.errors import ConfigError, UserError
from rlspec.vla.training import state as checkpoints
from rlspec.vla.training.step import FiniteGuard, StepRunner


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"checkpoint-{step}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FakeEvaluator]:
    """A run of 6 steps, measured before, every 2 steps and after."""
    evaluator = FakeEvaluator({0: 0.0, 2: 0.5, 4: 0.25, 6: 0.4})
    overrides = ["evaluation.before=true", "evaluation.after=true", "evaluation.every=2", "training.steps=6"]
    run = train(tmp_path_factory.mktemp("finished"), *overrides, "report.tensorboard=true", evaluator=evaluator)
    return run, evaluator


def test_a_run_leaves_what_every_run_leaves(finished: tuple[Path, FakeEvaluator]) -> None:
    run, _ = finished
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["policy"]) == ("finished", 6, "adapter_tiny")
    assert (summary["before"]["success_rate"], summary["after"]["success_rate"]) == (0.0, 0.4)
    judged = measure(summary, run, score=None, target=0.5)
    assert (judged.before, judged.score, judged.peak, judged.to_target, judged.metrics) == (0.0, 0.4, 0.5, 2, {})
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0] or summary["versions"]["torch"]
    assert summary["checkpoint"].endswith("checkpoint-6")
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events.*"))
    symmetry = json.loads((run / "symmetry.json").read_text())
    assert json.loads((checkpoint(run, 6) / "symmetry.json").read_text()) == symmetry
    assert load_vla_recipe([f"recipe={run / 'recipe.yaml'}"]).training.steps == 6
    card = (checkpoint(run, 6) / "README.md").read_text()
    assert "library_name: lerobot" in card and "recipe `vla_franka`" in card
    assert "| 0.0% [" in card and "| 40.0% [" in card and "There is no base model" in card
    assert "best weights of the run" in (run / "checkpoints" / "best" / "README.md").read_text()


def test_metrics_hold_loss_rate_gates_and_telemetry(finished: tuple[Path, FakeEvaluator]) -> None:
    rows = [row for row in course(finished[0], without=()) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss/l1_loss"])
    assert all(row["grad_norm"] > 0 and row["step_time"] > 0 for row in rows)
    assert all(row["samples_per_second"] == pytest.approx(4 / row["step_time"]) for row in rows)
    assert [row["lr"] for row in rows] == pytest.approx([0.01 * step / 50 for step in range(6)])
    gates = [key for key in rows[-1] if key.startswith("gate/")]
    assert gates
    assert [rows[0][key] for key in gates] == pytest.approx([math.tanh(1)] * len(gates)), (
        "open, and the first rate is 0"
    )
    assert any(abs(rows[-1][key] - math.tanh(1)) > 1e-4 for key in gates)
    assert any(key.startswith("optim/action:") and key.endswith("/pass_energy") for key in rows[-1])


def test_results_come_in_beside_training_and_the_best_weights_are_kept(finished: tuple[Path, FakeEvaluator]) -> None:
    run, evaluator = finished
    assert evaluator.measured == ["before", "step-2", "step-4", "after"]
    measured = {row["step"]: row["eval/success"] for row in course(run) if "eval/success" in row}
    assert measured == {0: 0.0, 2: 0.5, 4: 0.25, 6: 0.4}
    manifest = read_manifest(run / "checkpoints" / "best")
    assert (manifest["step"], manifest["success_rate"]) == (2, 0.5)
    assert not list((run / "snapshots").iterdir()), "snapshots go when their result is in"
    assert not (run / "checkpoints" / "best" / "training_state.pt").exists()
    best = weights(run / "checkpoints" / "best")
    assert any(not torch.equal(best[name], value) for name, value in weights(checkpoint(run, 6)).items())


def test_lerobot_reads_a_checkpoint_and_acts_with_the_averaged_weights(finished: tuple[Path, FakeEvaluator]) -> None:
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    folder = checkpoint(finished[0], 6)
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    preprocess, postprocess = make_pre_post_processors(config, pretrained_path=str(folder))
    samples = MadeUpSamples()
    item = {key: value[:1] for key, value in samples.take(torch.arange(1).numpy()).items() if key != "action_is_pad"}
    for key in samples.images:
        item[key] = item[key].float() / 255
    action = postprocess(policy.select_action(preprocess(item)))
    assert action.shape == (1, 7)
    averages = state(finished[0], 6)["ema"]["averages"]
    raw = state(finished[0], 6)["weights"]
    stored = dict(policy.named_parameters())
    assert all(torch.equal(stored[name], average) for name, average in averages.items())
    assert any(not torch.equal(raw[name], average) for name, average in averages.items())


def test_a_log_line_has_means_of_the_steps_since_the_last_one() -> None:
    counted = checkpoints.TrainingState(*[cast("Any", None)] * 4, trained={})
    for loss in (1.0, 3.0):
        counted.add({"loss": loss})
    assert counted.means() == {"loss": 2.0}
    counted.add({"loss": 5.0})
    assert counted.means() == {"loss": 5.0}


def test_averages_follow_the_weights_of_every_step(tmp_path: Path) -> None:
    run = train(tmp_path, "training.ema_decay=0.15", "checkpoints.every=1", "checkpoints.keep_last=9")
    name = "model.action_queries.weight"
    start = weights_before_training(tmp_path)[name]
    for step in range(1, 5):
        decay = min(0.15, (1 + step) / (10 + step))
        start = decay * start + (1 - decay) * state(run, step)["weights"][name]
        assert torch.allclose(state(run, step)["ema"]["averages"][name], start, atol=1e-7)
        assert torch.equal(weights(checkpoint(run, step))[name], state(run, step)["ema"]["averages"][name])


def weights_before_training(folder: Path) -> dict[str, torch.Tensor]:
    """The policy that the recipe builds."""
    from rlspec.vla.training.policy import load_policy

    recipe = make_recipe(folder)
    loaded = load_policy(recipe.policy, MadeUpSamples(), device="cpu", seed=recipe.seed, resume=None)
    return {name: value.detach().clone() for name, value in loaded.policy.named_parameters()}


def test_frozen_parts_stand_still_until_their_step(tmp_path: Path) -> None:
    freeze = "policy.freeze=[{part: vision}, {part: language, until: 3}]"
    run = train(tmp_path, freeze, "checkpoints.every=1", "checkpoints.keep_last=9", "training.ema_decay=0")
    before = weights_before_training(tmp_path)
    symmetry = json.loads((run / "symmetry.json").read_text())
    part = {spec["name"]: spec.get("modality", "") for spec in symmetry["parameters"]}
    frozen = [name for name in before if name not in part]
    language = [name for name, modality in part.items() if modality == "language"]
    assert frozen
    assert language
    for step in range(1, 5):
        now = weights(checkpoint(run, step))
        assert all(torch.equal(now[name], before[name]) for name in frozen)
        moved = [name for name in language if not torch.equal(now[name], before[name])]
        assert bool(moved) == (step >= 3), step
        assert any(not torch.equal(now[name], before[name]) for name in now) == (step >= 2)  # the first rate is 0
    assert len(stateful(run, 2)) == len(part) - len(language)
    assert len(stateful(run, 3)) == len(part)


def stateful(run: Path, step: int) -> list[int]:
    """Parameters of which the optimizer has a state."""
    return [index for index, entry in state(run, step)["optimizer"]["state"].items() if entry]


def test_two_passes_of_half_a_batch_are_one_of_a_whole(tmp_path: Path) -> None:
    samples = MadeUpSamples(padded=False)  # a mean over real steps weighs parts by their padding
    whole = train(tmp_path / "whole", "training.batch_size=8", samples=samples)
    cut = train(tmp_path / "cut", "training.batch_size=4", "training.gradient_accumulation=2", samples=samples)
    assert [row["loss"] for row in course(cut)] == pytest.approx([row["loss"] for row in course(whole)], rel=1e-4)
    assert [row["grad_norm"] for row in course(cut)] == pytest.approx(
        [row["grad_norm"] for row in course(whole)], rel=1e-3
    )
    assert course(whole)[0]["epoch"] == 0.2


class OneSample(MadeUpSamples):
    """Whatever is asked for."""

    def take(self, indices: Any) -> dict[str, Any]:
        return super().take(0 * indices)


def test_flow_noise_repeats_and_differs_between_steps(tmp_path: Path) -> None:
    overrides = ["policy.type=rlspec_flow", "training.random_shift=0", "optim.lr=1e-30"]
    first = [row["loss"] for row in course(train(tmp_path / "a", *overrides, samples=OneSample()))]
    assert [row["loss"] for row in course(train(tmp_path / "b", *overrides, samples=OneSample()))] == first
    assert len(set(first)) == len(first), "every step draws its own noise and times"


def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(tmp_path: Path, capfd: Any) -> None:
    run = train(tmp_path, "training.steps=5", stop_after=3)
    output = capfd.readouterr()
    assert "finishing this step, then saving" in output.err
    assert f"resume    python -m rlspec.train resume={run}" in output.out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["after"]) == ("interrupted", 3, None)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["checkpoint-3"]


def test_an_evaluation_that_an_interruption_cut_is_started_again(tmp_path: Path) -> None:
    slow = FakeEvaluator({2: 0.9, 4: 0.1}, delay=100)
    run = train(tmp_path, "training.steps=5", "evaluation.every=2", evaluator=slow, stop_after=3)
    assert slow.measured == []
    second = FakeEvaluator({2: 0.9, 4: 0.1})
    resume(run, evaluator=second)
    assert sorted(second.measured) == ["step-2", "step-4"]
    assert read_manifest(run / "checkpoints" / "best")["step"] == 2


def test_training_ends_at_the_success_that_is_wanted_and_waits_to_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["training.steps=9", "evaluation.every=2", "evaluation.stop_at_success=0.5"]
    rates = {2: 0.4, 4: 0.5, 6: 0.9}
    run = train(tmp_path, *wanted, evaluator=FakeEvaluator(rates, delay=100))
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 4)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["checkpoint-4"]
    output = capsys.readouterr().out
    assert "training ends here: evaluation.stop_at_success=0.5" in output
    assert f"resume={run} evaluation.stop_at_success=null" in output

    again = FakeEvaluator(rates)
    resume(run, evaluator=again)
    assert "step-6" not in again.measured and json.loads((run / "summary.json").read_text())["steps"] == 4
    resume(run, "evaluation.stop_at_success=null", evaluator=again)
    assert "step-6" in again.measured and json.loads((run / "summary.json").read_text())["steps"] == 9


def test_a_run_that_was_cut_before_its_evaluation_ends_where_the_whole_one_would_have(tmp_path: Path) -> None:
    wanted = ["training.steps=9", "evaluation.every=2", "evaluation.stop_at_success=0.5"]
    cut = train(tmp_path, *wanted, evaluator=FakeEvaluator({}), stop_after=3)
    resume(cut, evaluator=FakeEvaluator({2: 0.9, 4: 0.9}))
    assert json.loads((cut / "summary.json").read_text())["steps"] == 4


def test_steps_without_finite_gradients_change_nothing_and_many_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = StepRunner.backward

    def spoilt(self: StepRunner, model: Any, batches: Any, *, step: int) -> dict[str, float]:
        numbers = backward(self, model, batches, step=step)
        if step >= 2:
            for parameter in model.parameters():
                parameter.grad.fill_(math.nan)
            numbers["grad_norm"] = math.nan
        return numbers

    monkeypatch.setattr(StepRunner, "backward", spoilt)
    run = train(tmp_path / "few", "training.steps=4", "checkpoints.every=1", "checkpoints.keep_last=9")
    assert equal(state(run, 2)["weights"], state(run, 4)["weights"])
    assert equal(state(run, 2)["ema"], state(run, 4)["ema"])
    assert course(run)[-1]["grad_norm"] is None
    with pytest.raises(UserError, match=r"NaN or infinite in steps 3 to 12: lower optim.lr"):
        train(tmp_path / "many", "training.steps=20")


def test_a_finite_step_forgives_those_before_it() -> None:
    guard = FiniteGuard(patience=2)
    for step in range(1, 20, 2):
        assert not guard.watch({"loss": math.inf, "grad_norm": 1.0}, step)
        assert guard.watch({"loss": 1.0, "grad_norm": 1.0}, step + 1)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoints.TrainingState.save_policy

    def full(self: checkpoints.TrainingState, folder: Path) -> None:
        if self.step == 2:
            raise OSError(28, "No space left on device")
        save(self, folder)

    monkeypatch.setattr(checkpoints.TrainingState, "save_policy", full)
    with pytest.raises(UserError, match=r"the disk is full.*the previous checkpoint is whole: .*checkpoint-1"):
        train(tmp_path, "checkpoints.every=1")


def test_a_run_starts_from_another_runs_newest_weights(finished: tuple[Path, FakeEvaluator], tmp_path: Path) -> None:
    newest = checkpoint(finished[0], 6)
    assert load_vla_recipe(["recipe=vla_franka", f"policy.path={finished[0]}"]).policy.path == str(newest)
    run = train(tmp_path, f"policy.path={newest}", "training.steps=1", "optim.lr=1e-12")
    before, after = weights(newest), weights(checkpoint(run, 1))
    assert all(torch.allclose(value, after[name], atol=1e-6) for name, value in before.items())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["policy.freeze=[{part: connector, until: 2}, {pattern: nothing_like_it}]"], "pattern=nothing_like_it"),
        (["policy.options.image_size=33"], "image_size=33"),
        (
            ["policy.type=rlspec_adapter", "policy.path=nowhere/at/all"],
            "policy.path=nowhere/at/all: neither a local path nor a hub id",
        ),
        (["report.wandb=true"], "wandb is not installed"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    overrides: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else there(name, *rest)
    )
    with pytest.raises(ConfigError, match=said) as caught:
        train(tmp_path, *overrides)
    assert "\n" not in str(caught.value)


def test_a_loop_in_several_workers_reads_the_same_batches(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", "training.steps=3")
    helped = train(tmp_path / "helped", "training.steps=3", "training.num_workers=1")
    assert course(helped) == course(alone)
