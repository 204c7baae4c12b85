"""The command: which runs it consists of, what is run again, what survives, and what its report says."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import MagicMock

import pytest

from rlspec import compare
from rlspec.checkpoint import staged_folder
from rlspec.compare import _stopped_by_signals
from rlspec.comparison.launchers import Local, Submitit, shares_of_devices, visible_devices
from rlspec.comparison.plan import Plan, Tune, plan_of_values, slug
from rlspec.comparison.report import build_report, render_markdown
from rlspec.comparison.running import FAILED, PlannedRun, RunTrainer, read_summary
from rlspec.comparison.sweep import Sweep
from rlspec.comparison.tuning import tune
from rlspec.config.load import dump_recipe, load_recipe
from rlspec.errors import CheckpointError, ConfigError, DataError


def store(folder: Path, after: float | None, before: float | None = 0.4, status: str = "finished") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rates = {
        when: None if value is None else {"sampled_pass_at_1": value}
        for when, value in (("before", before), ("after", after))
    }
    (folder / "summary.json").write_text(json.dumps({"status": status, "steps": 10, "seconds": 1.0, **rates}))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "loss": 0.1}) + "\n")


class Imitation:
    """Takes the place of training: the score is a parabola in the logarithm of the rate, more or less by seed."""

    def __init__(self, best: float = 1e-4, failing: Sequence[str] = ()) -> None:
        self.best, self.failing, self.commands = best, failing, list[dict[str, str]]()

    def run(self, command: Sequence[str], log_path: Path, log: TextIO) -> None:
        import math

        values = dict(argument.split("=", 1) for argument in command if "=" in argument)
        self.commands.append(values)
        if any(text in command for text in self.failing):
            log.write("no such thing\n")
            return
        folder = Path(values["output_dir"], values["run"])
        rate = float(values.get("optim.lr", self.best))
        store(folder, 0.8 - 0.1 * math.log10(rate / self.best) ** 2 + 0.001 * (int(values["seed"]) % 7))
        (folder / "recipe.yaml").write_text(dump_recipe(load_recipe([a for a in command if "=" in a])))


def test_a_finished_comparison_is_read_and_its_table_is_arithmetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for optim, results in {"pion": (0.8, 0.7, 0.9), "adamw": (0.5, 0.5, 0.5)}.items():
        for seed, after in enumerate(results):
            store(tmp_path / optim / f"claim-seed_{seed}", after)
    arguments = ["recipe=debug_grpo", "optim=pion,adamw", "seed=0,1,2", "baseline=adamw", f"out={tmp_path}"]
    assert compare.main(arguments) == 0
    table = (tmp_path / "report.md").read_text()
    assert table in capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("| pion"))
    # mean 80, standard error 10 / sqrt(3), t(2) = 4.303; p of t = 30 / 5.77 with two degrees of freedom
    assert "80.0, 70.0, 90.0" in row and "[55.2, 100.0]" in row
    assert "+30.0 [+5.2, +54.8]" in row and "0.035 (0.035)" in row
    assert "| adamw | 40.0 | 50.0, 50.0, 50.0 | 50.0 |  |" in table  # equal seeds tell no spread


def test_a_comparison_whose_runs_would_all_be_uploaded_to_one_place_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["recipe=debug_grpo", "optim=pion,adamw", "push=me/model", f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err.strip().endswith("every run of the comparison would be uploaded there; leave it out")
    assert not list(tmp_path.rglob("*.log"))


def test_of_one_seed_no_interval_is_claimed(tmp_path: Path) -> None:
    store(tmp_path / "all" / "claim-seed_0", 0.8)
    assert compare.main(["recipe=debug_grpo", "seed=0", f"out={tmp_path}"]) == 0
    table = (tmp_path / "report.md").read_text()
    assert "[" not in table.split("|---", 1)[1]
    statistics = json.loads((tmp_path / "report.json").read_text())["arms"][0]["statistics"]
    assert (statistics["low"], statistics["high"], statistics["student"]) == (None, None, None)


def test_robots_policies_are_compared_by_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, after in enumerate((0.6, 0.8)):
        folder = tmp_path / "all" / f"claim-seed_{seed}"
        folder.mkdir(parents=True)
        summary = {"status": "finished", "seconds": 1.0, "before": None, "after": {"success_rate": after}}
        (folder / "summary.json").write_text(json.dumps(summary))
    assert compare.main(["recipe=vla_franka", "optim=muon", "seed=0,1", f"out={tmp_path}"]) == 0
    assert "success ? -> 60.0%" in capsys.readouterr().out
    # standard error 10, t(1) = 12.706: wider than what a percentage can be
    assert "| all | 60.0, 80.0 | 70.0 [60.0, 80.0] | [0.0, 100.0] |" in (tmp_path / "report.md").read_text()


def test_a_run_that_fails_is_named_with_its_log_and_the_others_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "all" / "claim-seed_0", 0.8)
    arguments = ["recipe=debug_grpo", "data.path=missing.jsonl", "seed=0,1", f"out={tmp_path}"]
    assert compare.main(arguments) == 1
    output = capsys.readouterr().out
    log = tmp_path / "all" / "claim-seed_1.log"
    assert f"FAILED, see {log}" in output
    assert "missing.jsonl" in log.read_text()
    assert "- all: no result of seed 1" in output


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["optim=pion,adamv"], "adamw"),
        (["tune.lr=[1e-5]"], "at least two rates"),
        (["tune.lr=[1e-5,x]"], "tune.lr.1=x"),
        (["tune.lr=[1e-5,1e-4]", "optim.lr=3e-4"], "the rate is tuned"),
        (["tune.lr=[1e-5,1e-4]", "seed=0,100"], "100 is a seed of the claim too"),
        (["baseline=adam"], "no arm adam"),
        (["seed=0,0"], "all different"),
        (["seed=first"], "whole numbers from 0"),
        (["equal=seconds"], "needs baseline=ARM and tuning"),
        (["plan=absent.yaml"], "stands in the plan's file"),
        (["slurm.slurm_partition=gpu"], "needs launcher=slurm"),
        (["match=size"], "published, rms, spectral"),
        (["score=pass_at_k.99"], "needs 99 in evaluation.k"),
        (["score=mean_length"], "no share in [0, 1]"),
        (["kl=true", "evaluation.temperature=0.7"], "needs a language model whose answers"),
        (["tune.lr=[1e-5,1e-4]", "evaluation.after=false"], "the tuning runs have no score"),
        (["optim=adamw,muon", "optim=pion"], "optim: given twice"),
    ],
)
def test_a_mistake_is_found_before_the_first_run(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["recipe=debug_grpo", *wrong, f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert compare.main(["recipe=debug_grpo", f"out={tmp_path / 'file'}"]) == 2
    assert "file: cannot be made" in capsys.readouterr().err


def test_claims_of_a_tuned_comparison_are_not_taken_for_those_of_another(tmp_path: Path) -> None:
    tune = {"lr": [1e-5, 1e-4], "overrides": ["data.seed=7"], "extend": 1}
    values = ["recipe=debug_grpo", "optim=adamw,muon", "seed=0,1"]
    first, other = (plan_of_values([*values, f"data.seed={seed}"], tune=tune) for seed in (1, 2))
    for best in (1e-4, 1e-3):  # in the grid, and beyond it
        out = tmp_path / str(best)
        Sweep(first, RunTrainer(out, Imitation(best)), 1).run()
        Sweep(first, RunTrainer(out, Imitation(best)), 1).check()
        with pytest.raises(ConfigError, match=r"claim.*holds a run with another data\.seed"):
            Sweep(other, RunTrainer(out, Imitation(best)), 1).check()


def test_what_cannot_be_measured_is_said_of_its_run_and_the_others_go_on(tmp_path: Path) -> None:
    def drift(folder: Path) -> dict[str, float]:
        if "adamw" in str(folder) and folder.name.endswith("_1"):
            raise CheckpointError("no answers")
        return {"KL per answer": 0.1}

    plan = plan_of_values(["recipe=debug_grpo", "optim=adamw,muon", "seed=0,1"])
    results = Sweep(plan, RunTrainer(tmp_path, Imitation()), 1, drift).run()
    report = build_report(plan, results, tmp_path, "command")
    assert report["deviations"] == ["adamw/claim-seed_1: no answers"]
    assert all(run["score"] for arm in report["arms"] for run in arm["runs"])
    plan = plan_of_values(["recipe=debug_grpo", "optim=adamw", "seed=0,1"], score="solved")
    store(tmp_path / "all" / "claim-seed_0", 0.8)
    (tmp_path / "all" / "claim-seed_1").mkdir()
    summary = {"status": "finished", "after": {"solved": 0.5}}
    (tmp_path / "all" / "claim-seed_1" / "summary.json").write_text(json.dumps(summary))
    report = build_report(plan, Sweep(plan, RunTrainer(tmp_path, Imitation()), 1).run(), tmp_path, "command")
    assert [run["score"] for run in report["arms"][0]["runs"]] == [None, 0.5]
    assert "all/claim-seed_0: score=solved: not measured" in report["deviations"][-1]


@pytest.mark.parametrize(
    ("failing", "trained"), [("optim=adamw", set()), ("optim=muon", {"adamw"}), ("", {"adamw", "muon"})]
)
def test_an_arm_whose_pace_is_not_known_is_not_trained_for_other_seconds(
    failing: str, trained: set[str], tmp_path: Path
) -> None:
    class Unmeasured(Imitation):  # fails: no seconds are known, though there is a score
        def run(self, command: Sequence[str], log_path: Path, log: TextIO) -> None:
            super().run(command, log_path, log)
            if failing in command:
                path = Path(self.commands[-1]["output_dir"], self.commands[-1]["run"], "summary.json")
                path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": None}))

    imitation = Unmeasured()
    plan = plan_of_values(
        ["recipe=debug_grpo", "optim=adamw,muon", "seed=0,1"],
        tune={"lr": [1e-5, 1e-4, 1e-3]},
        baseline="adamw",
        equal="seconds",
    )
    results = Sweep(plan, RunTrainer(tmp_path, imitation), 1).run()
    assert {values["optim"] for values in imitation.commands if values["seed"] != "100"} == trained
    report = build_report(plan, results, tmp_path, "command")
    assert [line.partition(":")[0] for line in report["deviations"]] == sorted({"adamw", "muon"} - trained)


def test_a_score_that_is_no_number_wins_nothing_and_a_range_is_not_left() -> None:
    nan = float("nan")
    rates = {1e-5: [nan], 1e-4: [0.5], 1e-3: [0.4]}
    assert tune(Tune(lr=list(rates)), "a", lambda asked: {rate: rates[rate] for rate in asked}).best == 1e-4
    within = Tune(range=[1e-6, 1e-3])
    found = tune(within, "a", lambda asked: {rate: [rate] for rate in asked})
    assert list(found.scores) == within.rates("a") and found.edge == "highest"


def test_a_corrupt_summary_is_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"status": "fin')
    with pytest.raises(DataError, match=r"summary.json: no summary; delete it"):
        read_summary(tmp_path)


def test_the_correction_and_the_pairs_are_those_of_the_plan(tmp_path: Path) -> None:
    for optim, results in {"adamw": (0.5, 0.52, 0.51), "a|b": (0.6, 0.61, None)}.items():
        for seed, after in enumerate(results):
            store(tmp_path / slug(optim) / f"claim-seed_{seed}", after)
    arms = {"adamw": ["optim=adamw"], "a|b": ["optim=muon"], "c": ["optim=pion"], "d": ["optim=sgd"]}
    plan = Plan(recipe="debug_grpo", arms=arms, seeds=[0, 1, 2], baseline="adamw")
    trainer = RunTrainer(tmp_path, Imitation())
    trainer.stopped.set()
    report = build_report(plan, Sweep(plan, trainer, 1).run(), tmp_path, "command")
    paired = report["arms"][1]["statistics"]["paired"]
    assert paired["p_holm"] == pytest.approx(min(1, 3 * paired["p"]))
    row = next(line for line in render_markdown(report).splitlines() if line.startswith("| a\\|b |"))
    assert "(2 of 3 seeds)" in row


def test_the_command_of_a_report_can_be_given_again(tmp_path: Path) -> None:
    store(tmp_path / "all" / "claim-seed_0", 0.8)
    given = ["recipe=debug_grpo", "model.system_prompt='a, b'", f"out={tmp_path}"]
    assert compare.main([*given, "train=false"]) == 0
    command = json.loads((tmp_path / "report.json").read_text())["command"]
    assert shlex.split(command) == ["python", "-m", "rlspec.compare", *given]


def test_a_folder_of_another_comparison_is_not_taken_for_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "all" / "claim-seed_0"
    store(folder, 0.8)
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe(["recipe=debug_grpo", "optim.lr=9"])))
    assert compare.main(["recipe=debug_grpo", f"out={tmp_path}"]) == 2
    assert "holds a run with another optim.lr; choose another out=DIR" in capsys.readouterr().err


def test_runs_that_start_from_another_run_are_known_again_until_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, folder = tmp_path / "start", tmp_path / "out" / "all" / "claim-seed_0"
    given = ["recipe=debug_grpo", f"model={start}", "data=arithmetic"]
    newest = start / "checkpoints" / "checkpoint-2"
    with staged_folder(newest, metadata={"step": 2}) as files:
        (files / "config.json").write_text("{}")
    store(folder, 0.8)
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe(given)))
    assert f"path: {newest}" in (folder / "recipe.yaml").read_text()
    assert compare.main([*given, f"out={tmp_path / 'out'}"]) == 0
    with staged_folder(start / "checkpoints" / "checkpoint-3", metadata={"step": 3}) as files:
        (files / "config.json").write_text("{}")
    assert compare.main([*given, f"out={tmp_path / 'out'}"]) == 2
    assert "holds a run with another model.path" in capsys.readouterr().err


def test_an_interrupted_run_is_not_taken_for_a_result(tmp_path: Path) -> None:
    store(tmp_path / "run", 0.8, status="interrupted")
    assert read_summary(tmp_path / "run") is None
    store(tmp_path / "collapsed", 0.1, status="collapsed")
    assert read_summary(tmp_path / "collapsed") is not None


def sweep(tmp_path: Path, launcher: Any, **further: Any) -> Sweep:
    plan = plan_of_values(["recipe=debug_grpo", "optim=adamw,muon", "seed=0,1,2"], **further)
    return Sweep(plan, RunTrainer(tmp_path, launcher), workers=2)


def test_every_arm_is_tuned_on_other_seeds_and_judged_at_its_best_rate_on_fresh_ones(tmp_path: Path) -> None:
    imitation = Imitation(best=1e-4)
    tune = {"lr": [1e-5, 1e-4, 1e-3], "seeds": [100, 101], "overrides": ["data.seed=7"]}
    results = sweep(tmp_path, imitation, tune=tune).run()
    assert [arm.lr for arm in results] == [1e-4, 1e-4]
    tuning = [values for values in imitation.commands if values["seed"] in ("100", "101")]
    claims = [values for values in imitation.commands if values not in tuning]
    assert len(tuning) == 2 * 3 * 2 and len(claims) == 2 * 3
    assert all(values["data.seed"] == "7" for values in tuning)
    assert all(float(values["optim.lr"]) == 1e-4 and "data.seed" not in values for values in claims)


def test_at_the_edge_of_a_grid_it_goes_on_and_says_where_it_stopped(tmp_path: Path) -> None:
    imitation = Imitation(best=1e-1)
    results = sweep(tmp_path, imitation, tune={"lr": [1e-5, 1e-4], "extend": 2}).run()
    assert [arm.lr for arm in results] == [1e-2, 1e-2]
    assert {arm.tuned.edge for arm in results if arm.tuned} == {"highest"}
    assert {values["optim.lr"] for values in imitation.commands} == {"1e-05", "0.0001", "0.001", "0.01"}


@pytest.mark.parametrize(
    ("scores", "best", "tried"),
    [
        ([0.0, 0.0, 0.0], 1e-4, 3),  # nothing learns: further rates would not either
        ([0.5, 0.5, 0.5, 0.0], 1e-4, 4),
        ([0.5, 0.5, 0.2], 1e-5, 4),  # of two the lower one, which is the lowest of all: it goes on
        ([0.2, 0.5, 0.5], 1e-4, 3),
    ],
)
def test_of_rates_that_tie_the_middle_one_is_chosen(scores: list[float], best: float, tried: int) -> None:
    rates = dict(zip([1e-5, 1e-4, 1e-3, 1e-2], scores, strict=False))
    found = tune(Tune(lr=list(rates), extend=1), "a", lambda asked: {rate: [rates.get(rate, 0.1)] for rate in asked})
    assert (found.best, len(found.scores)) == (best, tried)


@pytest.mark.parametrize(("rates", "alike"), [([8e-5, 1e-4, 1.25e-4], True), ([1e-5, 1e-4, 1e-3], False)])
def test_rates_that_score_alike_are_said_to_choose_by_chance(tmp_path: Path, rates: list[float], alike: bool) -> None:
    comparison = sweep(tmp_path, Imitation(best=1e-4), tune={"lr": rates})
    report = build_report(comparison.plan, comparison.run(), tmp_path, "command")
    assert ("a better one may lie outside of what was tried" in render_markdown(report)) == alike


def test_what_is_done_is_not_done_again_and_a_failing_arm_does_not_stop_the_others(tmp_path: Path) -> None:
    failing = Imitation(failing=["optim=muon"])
    tune = {"lr": [1e-5, 1e-4, 1e-3]}
    adamw, muon = sweep(tmp_path, failing, tune=tune).run()
    assert adamw.lr == 1e-4 and [run.summary is None for run in adamw.runs] == [False] * 3
    assert muon.lr is None and not muon.runs
    again = Imitation()
    adamw, muon = sweep(tmp_path, again, tune=tune).run()
    assert muon.lr == 1e-4 and {values["optim"] for values in again.commands} == {"muon"}


def test_what_is_there_is_reported_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = {"lr": [1e-5, 1e-4, 1e-3]}
    sweep(tmp_path, Imitation(failing=["optim=muon"]), tune=tune).run()
    given = ["recipe=debug_grpo", "optim=adamw,muon", "seed=0,1,2", "tune.lr=[1e-5,1e-4,1e-3]", f"out={tmp_path}"]
    before = sorted(tmp_path.rglob("*.json"))
    assert compare.main([*given, "train=false"]) == 1
    table = capsys.readouterr().out
    assert "| adamw | 0.0001 |" in table
    assert "- muon: no result of tuning at 1e-05, 0.0001, 0.001, so that no rate is chosen" in table
    assert sorted(path for path in tmp_path.rglob("*.json") if path.name != "report.json") == before


def test_a_failed_tuning_run_loses_without_training_too(tmp_path: Path) -> None:
    tune = {"lr": [1e-5, 1e-4, 1e-3]}
    sweep(tmp_path, Imitation(failing=["optim.lr=0.001"]), tune=tune).run()
    given = ["recipe=debug_grpo", "optim=adamw,muon", "seed=0,1,2", "tune.lr=[1e-5,1e-4,1e-3]", f"out={tmp_path}"]
    (tmp_path / "muon" / "tune-lr_0.001-seed_100.log").unlink()  # that one is still to come, and may be the best
    assert compare.main([*given, "train=false"]) == 1
    adamw, muon = json.loads((tmp_path / "report.json").read_text())["arms"]
    assert (adamw["lr"], len(adamw["runs"])) == (1e-4, 3)
    assert (muon["lr"], muon["runs"]) == (None, [])


def test_what_is_still_to_come_is_no_departure_from_the_plan(tmp_path: Path) -> None:
    given = ["recipe=debug_grpo", "seed=0,1,2,3", f"out={tmp_path}", "train=false"]

    def reported() -> tuple[list[str], dict[str, Any], str]:
        assert compare.main(given) == 1
        report = json.loads((tmp_path / "report.json").read_text())
        return [run["status"] for run in report["arms"][0]["runs"]], report, (tmp_path / "report.md").read_text()

    assert "No run of the claim is done yet.\n" in reported()[2]
    folder = tmp_path / "all"
    store(folder / "claim-seed_0", 0.8)
    store(folder / "claim-seed_1", 0.1, status="interrupted")
    folder.joinpath("claim-seed_1.log").touch()
    with folder.joinpath("claim-seed_2.log").open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        states, report, text = reported()
    assert states == ["finished", "interrupted", "running", "missing"]
    assert report["followed"] and report["unfinished"] == ["all: still to come: seed 1, 2, 3"]
    assert "Not finished (the same command goes on):\n\n- all: still to come: seed 1, 2, 3\n" in text
    states, report, text = reported()  # the process of seed 2 is gone, and nobody was there to say how
    assert states[2] == "interrupted" and report["followed"]
    folder.joinpath("claim-seed_2.log").write_text(f"no such thing\n\n{FAILED}, exit status 1\n")
    states, report, text = reported()
    assert states[2] == "failed" and report["deviations"] == ["all: no result of seed 2"]
    assert report["unfinished"] == ["all: still to come: seed 1, 3"]


def test_an_arm_without_any_score_has_not_followed_the_plan(tmp_path: Path) -> None:
    for lr in ("1e-05", "0.0001"):
        folder = tmp_path / "all" / f"tune-lr_{lr}-seed_100"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"status": "collapsed", "seconds": 1.0, "after": None}))
    compare.main(["recipe=debug_grpo", "tune.lr=[1e-5,1e-4]", "seed=0", f"out={tmp_path}", "train=false"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["deviations"] == ["all: no tuning run has a score, so that no rate is chosen"]
    assert (report["followed"], report["unfinished"]) == (False, [])


def test_two_commands_in_one_folder_train_every_run_once(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_compare as t\n"
        "class Slow(t.Imitation):\n"
        "    def run(self, command, log_path, log):\n"
        "        time.sleep(0.2); log.write('trained\\n'); log.flush(); super().run(command, log_path, log)\n"
        "t.sweep(Path(sys.argv[2]), Slow(), tune={'lr': [1e-5, 1e-4, 1e-3]}).run()\n"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    logs = list(tmp_path.glob("*/*.log"))
    assert len(logs) == 2 * (3 + 3)
    assert [log.read_text().count("trained") for log in logs] == [1] * len(logs)


def test_a_command_trains_what_another_does_not_and_comes_to_the_rest_at_the_end(tmp_path: Path) -> None:
    plan = plan_of_values(["recipe=debug_grpo", "optim=muon", "seed=0"], tune={"lr": [1e-5, 1e-4, 1e-3]})
    begun: list[str] = []

    class Watched(Imitation):
        def run(self, command: Sequence[str], log_path: Path, log: TextIO) -> None:
            begun.append(log_path.stem)
            if len(begun) == 2:
                fcntl.flock(elsewhere, fcntl.LOCK_UN)
            super().run(command, log_path, log)

    sweep = Sweep(plan, RunTrainer(tmp_path, Watched()), workers=1)
    others = tmp_path / sweep._possible_tuning("all")[0].folder
    others.parent.mkdir(parents=True)
    with others.with_name(f"{others.name}.log").open("a") as elsewhere:
        fcntl.flock(elsewhere, fcntl.LOCK_EX)
        late = threading.Timer(20, lambda: fcntl.flock(elsewhere, fcntl.LOCK_UN))  # for who waits for it at once
        late.start()
        sweep.run()
        late.cancel()
        late.join()
    assert begun[:3] == ["tune-lr_0.0001-seed_100", "tune-lr_0.001-seed_100", others.name]


def test_a_killed_command_leaves_its_runs_locked_until_they_end(tmp_path: Path) -> None:
    script = (
        "import sys, subprocess; from pathlib import Path\n"
        "from rlspec.comparison.running import PlannedRun, RunTrainer\n"
        "class Sleeper:\n"
        "    def run(self, command, log_path, log):\n"
        "        child = subprocess.Popen(['sleep', '60'], stdout=log); print(child.pid, flush=True); child.wait()\n"
        "RunTrainer(Path(sys.argv[1]), Sleeper())(PlannedRun('all', 'claim', 0, None, ()))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    child = int(first.stdout.readline())
    first.kill()
    first.wait()
    second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    assert "another process trains it" in second.stdout.readline()
    os.kill(child, signal.SIGKILL)
    taken_over = int(second.stdout.readline())  # only now does it begin
    assert taken_over != child
    second.kill()
    os.kill(taken_over, signal.SIGKILL)
    second.wait()


@pytest.mark.parametrize(("send", "number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)])
def test_a_signal_ends_the_command_and_its_run_and_begins_no_further_one(
    send: Callable[[int, int], None], number: int, tmp_path: Path
) -> None:
    arguments = ["recipe=debug_grpo", "seed=0,1,2,3", f"out={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rlspec.compare", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    first = tmp_path / "all" / "claim-seed_0.log"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.05)
    send(process.pid, number)  # a terminal signals all of the group, a scheduler may signal the command alone
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert read_summary(tmp_path / "all" / "claim-seed_0") is None
    assert len(list(tmp_path.glob("all/*.log"))) == 1
    report = json.loads((tmp_path / "report.json").read_text())  # of what is there, so that its page knows the plan
    assert report["followed"] and report["unfinished"] == ["all: still to come: seed 0, 1, 2, 3"]


def test_what_runs_here_is_asked_once_to_end_and_so_is_what_was_just_begun(tmp_path: Path) -> None:
    script = (
        "import signal, sys; told = lambda number, _: sys.exit(100 + number)\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, told)\n"
        "print(1); sys.stdout.flush(); "
    )
    launcher, log_path = Local(1), tmp_path / "run.log"
    with log_path.open("w") as log, ThreadPoolExecutor() as pool:
        waiting = pool.submit(launcher.run, [sys.executable, "-c", f"{script}signal.pause()"], log_path, log)
        while not log_path.read_text():
            time.sleep(0.01)
        assert launcher.stop() == 1
        assert waiting.result() == 100 + signal.SIGINT
        assert launcher.run(["sleep", "1000"], log_path, log) == -signal.SIGTERM


def test_a_run_that_still_loads_ends_although_python_loses_an_interrupt_in_imports(tmp_path: Path) -> None:
    launcher, log_path = Local(1), tmp_path / "run.log"
    lost = "import signal; signal.signal(signal.SIGINT, lambda *_: None); print(1, flush=True); signal.pause()"
    with log_path.open("w") as log, ThreadPoolExecutor() as pool:
        waiting = pool.submit(launcher.run, [sys.executable, "-c", lost], log_path, log)
        while not log_path.read_text():
            time.sleep(0.01)
        launcher.stop()
        assert waiting.result(timeout=20) == -signal.SIGTERM


def test_a_signal_reaches_what_a_run_has_launched(tmp_path: Path) -> None:
    launcher, log_path = Local(1), tmp_path / "run.log"
    ranks = "trap 'echo told' INT; echo begun; sleep 20"
    ours = "for number in (2, 15): signal.signal(number, lambda *_: None)"  # as who trains has
    script = f"import subprocess, signal\n{ours}\nsubprocess.run(['bash', '-c', {ranks!r}])"
    with log_path.open("w") as log, ThreadPoolExecutor() as pool:
        waiting = pool.submit(launcher.run, [sys.executable, "-c", script], log_path, log)
        while not log_path.read_text():
            time.sleep(0.01)
        launcher.stop()
        waiting.result()
    assert log_path.read_text().split() == ["begun", "told"]


def test_signals_of_one_moment_are_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who launched the command passes a scheduler's on, and a run may have met it first."""
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("it left at once"))
    trainer = RunTrainer(tmp_path, Local(1))
    handlers: dict[int, Callable[[int, None], None]] = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.update({number: handler}))
    with _stopped_by_signals(trainer):
        trainer.stopped.set()
        with pytest.raises(KeyboardInterrupt):
            handlers[signal.SIGTERM](signal.SIGTERM, None)
        handlers[signal.SIGINT](signal.SIGINT, None)


def test_a_job_has_a_day_unless_the_user_says_otherwise_and_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "srun").touch(mode=0o755)  # submitit looks whether there is one
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    limits = [({}, 1440), ({"timeout_min": 30}, 30), ({"slurm_time": 60}, 60)]
    for given, minutes in limits:
        assert Submitit(tmp_path, given).executor()._executor.parameters["time"] == minutes
    launcher, job = Submitit(tmp_path), MagicMock()
    job.result.side_effect = lambda: launcher.stop()
    monkeypatch.setattr(Submitit, "executor", lambda self: MagicMock(submit=lambda *_: job))
    with (tmp_path / "run.log").open("w") as log:
        launcher.run([], tmp_path / "run.log", log)
        assert job.cancel.call_count == 1
        launcher.run([], tmp_path / "run.log", log)  # begun as the signal came
    assert job.cancel.call_count == 3


def test_workers_divide_cores_and_gpus_as_far_as_the_user_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    log_path = tmp_path / "run.log"
    for given, said in (("1", "1 4"), (None, "3 4")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        with log_path.open("w") as log:
            Local(2).run(show, log_path, log)
        assert log_path.read_text().strip() == said
    assert [*shares_of_devices(["4", "7"], 3)] == [{"CUDA_VISIBLE_DEVICES": name} for name in ("4", "7", "4")]
    assert shares_of_devices(["0", "1", "2", "3"], 2)[1] == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert shares_of_devices(["0", "1", "2", "3"], 3) == [{"CUDA_VISIBLE_DEVICES": name} for name in "012"]
    assert shares_of_devices([], 2) == [{}, {}]


def test_gpus_are_those_that_the_user_leaves_or_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: H200 (UUID: GPU-1)'\necho 'GPU 1: H200 (UUID: GPU-2)'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for named, seen in (("", []), ("GPU-2", ["GPU-2"]), (None, ["0", "1"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named or "")
        if named is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert visible_devices() == seen


def test_submitits_imitation_of_a_cluster_runs_the_same_commands(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    launcher = Submitit(tmp_path / "slurm", {"timeout_min": 5}, cluster="local")
    log_path = tmp_path / "run.log"
    with log_path.open("a") as log:
        launcher.run([sys.executable, "-c", "print('trained')"], log_path, log)
    assert "trained" in log_path.read_text()
    with pytest.raises(ConfigError, match="slurm: .*no_such_parameter"):
        Submitit(tmp_path / "slurm", {"no_such_parameter": 1}, cluster="local")


def test_the_name_of_a_job_tells_its_folder() -> None:
    assert PlannedRun("pion, rms", "tune", 100, 1e-5, ()).folder == Path("pion__rms", "tune-lr_1e-05-seed_100")
    assert PlannedRun("all", "claim", 0, None, ()).folder == Path("all", "claim-seed_0")
