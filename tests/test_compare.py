"""Comparisons: which runs they consist of, what is run again, and what the table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlspec import compare
from rlspec.config.load import dump_recipe, load_recipe
from rlspec.runtime import sweep


def store(folder: Path, before: float, after: float, status: str = "finished") -> None:
    folder.mkdir(parents=True)
    rates = {"before": {"sampled_pass_at_1": before}, "after": {"sampled_pass_at_1": after}}
    (folder / "summary.json").write_text(json.dumps({"status": status, "seconds": 1.0, **rates}))


def test_commas_in_brackets_do_not_split() -> None:
    assert sweep.split_values("a,[1,8],{b: 1, c: 2}") == ["a", "[1,8]", "{b: 1, c: 2}"]


def test_arms_are_all_combinations_and_seeds_their_runs() -> None:
    arms = sweep.plan_arms({"recipe": "x,y", "optim": "pion,adamw", "optim.lr": "1e-4", "seed": "0,1,2"})
    assert [arm.name for arm in arms] == ["x, pion", "x, adamw", "y, pion", "y, adamw"]
    assert arms[1].runs[2] == ("recipe=x", "optim=adamw", "optim.lr=1e-4", "seed=2")
    names = {sweep.run_name(run) for arm in arms for run in arm.runs}
    assert len(names) == 12


def test_a_finished_comparison_is_read_and_its_table_is_arithmetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for optim, results in {"pion": (0.8, 0.7, 0.9), "adamw": (0.5, 0.5, 0.5)}.items():
        for seed, after in enumerate(results):
            store(tmp_path / f"debug_grpo-{optim}-{seed}", 0.4, after)
    assert compare.main(["recipe=debug_grpo", "optim=pion,adamw", "seed=0,1,2", f"out={tmp_path}"]) == 0
    table = (tmp_path / "report.md").read_text()
    # mean 80, standard error 10 / sqrt(3), t(2) = 4.303
    assert "| pion | 40.0 | 80.0, 70.0, 90.0 | 80.0 [55.2, 100.0] | +40.0 | +30.0 | finished |" in table
    assert "| adamw | 40.0 | 50.0, 50.0, 50.0 | 50.0 [50.0, 50.0] | +10.0 | +10.0 | finished |" in table
    assert table in capsys.readouterr().out


def test_robots_policies_are_compared_by_success_also_where_nothing_was_measured_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, after in enumerate((0.6, 0.8)):
        folder = tmp_path / f"vla_franka-muon-{seed}"
        folder.mkdir()
        summary = {"status": "finished", "seconds": 1.0, "before": None, "after": {"success_rate": after}}
        (folder / "summary.json").write_text(json.dumps(summary))
    assert compare.main(["recipe=vla_franka", "optim=muon", "seed=0,1", f"out={tmp_path}"]) == 0
    output = capsys.readouterr().out
    assert "success ? -> 60.0%" in output
    # standard error 10, t(1) = 12.706: wider than what a percentage can be
    assert "| all |  | 60.0, 80.0 | 70.0 [0.0, 100.0] | | | finished |" in output


def test_a_run_that_fails_is_named_with_its_log_and_the_others_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "debug_grpo-path_missing.jsonl-0", 0.4, 0.8)
    arguments = ["recipe=debug_grpo", "data.path=missing.jsonl", "seed=0,1", f"out={tmp_path}"]
    assert compare.main(arguments) == 1
    output = capsys.readouterr().out
    log = tmp_path / "debug_grpo-path_missing.jsonl-1.log"
    assert f"FAILED, see {log}" in output
    assert "missing.jsonl" in log.read_text()
    assert "| 80.0 [0.0, 100.0] |" in output


def test_a_mistake_in_any_combination_is_found_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["recipe=debug_grpo", "optim=pion,adamv", f"out={tmp_path / 'out'}"]) == 2
    assert "adamw" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_comparison_is_not_taken_for_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {sweep.run_name(("recipe=a", f"batch.{key}=8")) for key in ("prompts_per_step", "samples_per_prompt")}
    assert len(names) == 2
    store(tmp_path / "debug_grpo-0", 0.4, 0.8)
    (tmp_path / "debug_grpo-0" / "recipe.yaml").write_text(
        dump_recipe(load_recipe(["recipe=debug_grpo", "optim.lr=9"]))
    )
    assert compare.main(["recipe=debug_grpo", f"out={tmp_path}"]) == 2
    assert "holds a run with another optim.lr; choose another out=DIR" in capsys.readouterr().err


def test_an_interrupted_run_is_not_taken_for_a_result(tmp_path: Path) -> None:
    store(tmp_path / "run", 0.4, 0.8, status="interrupted")
    assert sweep.read_summary(tmp_path / "run") is None
    store(tmp_path / "collapsed", 0.4, 0.1, status="collapsed")
    assert sweep.read_summary(tmp_path / "collapsed") is not None
