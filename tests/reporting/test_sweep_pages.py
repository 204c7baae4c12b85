"""Sweeps: by their report.json, by the runs that lie in them, and several runs that were named."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlspec import report
from rlspec.comparison.history import record_plan
from rlspec.comparison.plan import plan_of_values
from rlspec.reporting.page import read_content
from rlspec.reporting.reading import read_run
from rlspec.reporting.sweep_section import _table
from rlspec.reporting.sweeps import SweepRecord, read_sweep

pytestmark = pytest.mark.usefixtures("undrawn")
MakeRun = Callable[..., Path]


def stored(folder: Path, **changes: Any) -> dict[str, Any]:
    """A report.json as rlspec.compare writes it."""

    def run(seed: int, score: float | None, status: str = "finished") -> dict[str, Any]:
        return {
            "seed": seed,
            "status": status,
            "score": score,
            "run": f"pion-{seed}",
            "seconds": 60.0,
            "metrics": {"kl": 0.1},
        }

    paired = {"mean": 0.05, "low": 0.01, "high": 0.09, "p": 0.01, "p_holm": 0.02}
    statistics = {"n": 2, "mean": 0.8, "low": 0.7, "high": 0.9, "paired": paired, "collapsed": 0.5}
    statistics |= {"student": [-0.47, 2.07]}
    tuning = [
        {"lr": lr, "seed": 100, "status": "finished", "score": score, "run": "x"}
        for lr, score in ((1e-4, 0.5), (1e-3, 0.7))
    ]
    arms = [
        {"name": "pion", "lr": 1e-3, "at_edge": True, "tuning": tuning, "statistics": statistics}
        | {"runs": [run(0, 0.7), run(1, 0.9), run(2, None, "missing")]},
        {"name": "adamw", "lr": 1e-4, "runs": [run(0, 0.75)], "statistics": {"n": 1, "mean": 0.75, "low": None}},
    ]
    return {
        "plan": {"hypotheses": ["pion wins <i>"]},
        "followed": False,
        "deviations": ["seed 2 is missing"],
        "unfinished": ["pion: still to come: seed 3"],
        "command": "python -m rlspec.compare optim=pion,adamw",
        "machine": {"cores": 2},
        "date": "2026-11-28",
        "score": "sampled_pass_at_1",
        "baseline": "adamw",
        "arms": arms,
    } | changes


def write(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(content))
    return folder


def test_the_table_says_what_the_report_says(make_run: MakeRun, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    make_run("sweep/pion-0")
    make_run("sweep/pion-1", seed=1)
    write(folder, stored(folder))
    (folder / "plan.yaml").write_text("budget: 5 # <b>rates</b>\n")
    assert report.main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    text = page[page.index('aria-label="Results by arm"') :]
    row = text[text.index('<th scope="row">pion</th>') :].partition("</tr>")[0]
    for cell in ("80.0%", "0.0 to 100.0", "70.0, 90.0", "+5.0 [+1.0, +9.0]", "0.02", "50%", "2 finished, 1 missing"):
        assert f"<td>{cell}</td>" in row
    assert "0.001 (edge of the grid)" in row and "<td>60 s</td>" in row
    other = text[text.index('<th scope="row">adamw</th>') :].partition("</tr>")[0]
    assert "<td>baseline</td>" in other and " to " not in other  # one seed has no interval
    assert "plan not followed" in page and "seed 2 is missing" in page
    assert '<span class="status">not finished</span> pion: still to come: seed 3' in page
    assert "pion wins &lt;i&gt;" in page
    assert "budget: 5 # &lt;b&gt;rates" in text
    assert "python -m rlspec.compare optim=pion,adamw" in text


@pytest.mark.parametrize(
    "content",
    [
        {"arms": [{"name": "pion"}]},
        {"arms": [{}, {"runs": [{}], "statistics": None, "tuning": [{"lr": "x", "score": None}]}]},
        {
            "arms": [{"name": 3, "runs": "x", "statistics": {"mean": "0.5", "paired": []}}],
            "machine": "a box",
            "plan": 3,
        },
        {"arms": [{"runs": [{"run": "../../etc", "score": 0.5}]}], "followed": True, "deviations": None},
    ],
)
def test_a_report_with_less_or_other_keys_is_shown_as_far_as_it_goes(content: dict[str, Any], tmp_path: Path) -> None:
    assert report.main([str(write(tmp_path / "sweep", content))]) == 0


def test_without_a_report_arms_are_the_runs_that_differ_in_nothing_but_the_seed(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for optim, scores in {"pion": (0.8, 0.6), "muon": (0.5, 0.5)}.items():
        for seed, score in enumerate(scores):
            make_run(f"sweep/{optim}/claim-{seed}", seed=seed, optim=optim, after=score)
        for lr in (1e-4, 1e-3):
            make_run(f"sweep/{optim}/tune-{lr}", seed=100, optim=optim, lr=lr, after=0.3)
    sweep = read_sweep(tmp_path / "sweep")
    arms = {arm.name: arm for arm in sweep.arms}
    assert arms.keys() == {"pion", "muon"}
    assert arms["pion"].scores == [0.8, 0.6] and len(arms["pion"].tuning) == 2
    # standard error 0.1, t(1) = 12.706: cut to what a share can be
    assert arms["pion"].statistics == {"n": 2, "mean": pytest.approx(0.7), "low": 0.0, "high": 1.0, "collapsed": 0.0}
    assert sweep.score == "sampled pass@1"


def test_arms_are_named_by_as_few_values_as_tell_them_apart(make_run: MakeRun, tmp_path: Path) -> None:
    for optim in ("pion", "muon"):
        for lr in (1e-4, 1e-3):
            make_run(f"sweep/{optim}-{lr}", optim=optim, lr=lr)
    assert {arm.name for arm in read_sweep(tmp_path / "sweep").arms} == {
        *("pion, lr 0.0001", "pion, lr 0.001", "muon, lr 0.0001", "muon, lr 0.001")
    }


@pytest.mark.parametrize(
    ("section", "values", "arms"),
    [
        ("evaluation", [{"problems": 8}, {"problems": 400, "samples": 2}], 2),
        ("grader", [{"timeout": 1.0}, {"timeout": 3.0}], 2),
        ("data", [{"name": "arithmetic", "seed": 1}, {"name": "arithmetic", "seed": 2}], 2),
        ("evaluation", [{"videos": 0, "workers": 2, "every": 5}, {"videos": 2, "workers": 1, "every": None}], 1),
    ],
)
def test_what_changes_the_score_tells_arms_apart(
    section: str, values: list[dict[str, Any]], arms: int, make_run: MakeRun
) -> None:
    folders = [make_run(f"run-{seed}", seed=seed) for seed in range(2)]
    for folder, value in zip(folders, values, strict=True):
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {section: value}))
    (sweep,) = read_content(folders).sweeps
    assert isinstance(sweep, SweepRecord) and len(sweep.arms) == arms


def test_tuning_on_other_problems_leaves_an_arm_whole(make_run: MakeRun, tmp_path: Path) -> None:
    for name, seed, data in (("tune-a", 100, 7), ("tune-b", 100, 7), ("claim-0", 0, 0), ("claim-1", 1, 0)):
        path = make_run(f"sweep/all/{name}", seed=seed, lr=1e-3 if name == "tune-a" else 1e-4) / "recipe.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"data": {"seed": data}}))
    (arm,) = read_sweep(tmp_path / "sweep").arms
    assert (len(arm.members), len(arm.tuning)) == (2, 2)


def test_a_seed_counts_once(make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folders = [make_run("a", after=None), make_run("b", after=0.9), make_run("c", after=0.1), make_run("d", seed=1)]
    (sweep,) = read_content(folders).sweeps
    assert isinstance(sweep, SweepRecord) and sweep.arms[0].scores == [0.9, 0.8]
    assert [problem.partition(":")[0] for problem in sweep.problems] == [str(tmp_path / "a"), str(tmp_path / "c")]


def test_a_run_that_was_stopped_or_killed_does_not_go_on(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("sweep/all/claim-seed_0", after=0.5)
    make_run("sweep/all/claim-seed_0.stopped-1", after=None)
    killed = make_run("sweep/all/claim-seed_1", seed=1, after=None)
    (tmp_path / "sweep" / "plans.jsonl").touch()
    with killed.with_name("claim-seed_1.log").open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        states = [run.status for run in read_sweep(tmp_path / "sweep").arms[0].members]
        assert states == ["finished", "running"] and read_content([tmp_path / "sweep"]).running
    assert [run.status for run in read_sweep(tmp_path / "sweep").arms[0].members] == ["finished", "interrupted"]
    assert not read_content([tmp_path / "sweep"]).running


def test_a_log_beside_a_run_of_its_own_says_nothing_of_it(make_run: MakeRun) -> None:
    run = make_run("checkpoints/x", after=None)
    run.with_name("x.log").write_text("from a shell")
    assert read_run(run).running


def test_the_plan_is_the_first_one(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("sweep/a")
    for seeds in ("0", "0,1"):
        record_plan(plan_of_values(["recipe=x", f"seed={seeds}"]), tmp_path / "sweep")
    first, now = read_sweep(tmp_path / "sweep").plan, (tmp_path / "sweep" / "plan.yaml").read_text()
    assert "seeds" not in first and "sha256" in first and "- 1" in now
    (tmp_path / "sweep" / "plans.jsonl").write_text("{}\n")
    assert read_sweep(tmp_path / "sweep").plan == now


def test_runs_that_are_named_are_compared(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run(f"{optim}-run", optim=optim) for optim in ("pion", "muon")]
    out = tmp_path / "both.html"
    assert report.main([*map(str, folders), f"out={out}"]) == 0
    text = out.read_text()
    assert "Curves by arm" in text and text.count('<details class="run">') == 2
    (sweep,) = read_content(folders).sweeps
    assert isinstance(sweep, SweepRecord) and [arm.name for arm in sweep.arms] == ["pion", "muon"]


def test_a_sweep_that_goes_on_is_watched_until_its_runs_have_ended(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("sweep/a", after=0.5)
    assert not read_content([tmp_path / "sweep"]).running
    (tmp_path / "sweep" / "plan.yaml").write_text("seeds: [0, 1]")
    assert read_content([tmp_path / "sweep"]).running  # the next run has not begun
    make_run("sweep/b", seed=1, after=None)
    assert read_content([tmp_path / "sweep"]).running
    write(tmp_path / "sweep", stored(tmp_path))
    assert not read_content([tmp_path / "sweep"]).running


def test_a_mean_says_of_how_many_runs_it_is_and_who_never_came_to_the_target(tmp_path: Path) -> None:
    content = stored(tmp_path)
    first, second = content["arms"][0]["runs"][:2]
    first |= {"peak": 0.8, "to_target": 20}
    second |= {"peak": 0.9}
    content["arms"][1]["runs"][0] |= {"peak": 0.6}
    (tmp_path / "report.json").write_text(json.dumps(content))
    sweep = read_sweep(tmp_path)
    header, rows = _table(sweep, sweep.arms)
    cells = {name: [row[header.index(name)] for row in rows] for name in ("peak", "steps to the target")}
    assert cells == {"peak": ["85.0%", "60.0%"], "steps to the target": ["20 (1 of 2)", "never"]}
