"""Plans: what a command line and a file ask for, their hash, and where runs left them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlspec.comparison.history import HISTORY, PLAN, deviations, read_history, record_plan
from rlspec.comparison.plan import Plan, Tune, merged, plan_of_values, read_plan, slug, split_values
from rlspec.errors import ConfigError, DataError

PLANS = Path(__file__).parents[1] / "benchmarks" / "plans"


def test_commas_in_brackets_do_not_split() -> None:
    assert split_values("a,[1,8],{b: 1, c: 2}") == ["a", "[1,8]", "{b: 1, c: 2}"]
    assert split_values("'a, b',\"c, [\",don't,d") == ["'a, b'", '"c, ["', "don't", "d"]


@pytest.mark.parametrize("name", ["", ".", "..", "x" * 300, "\u4e2d" * 300])
def test_an_arms_folder_is_one_folder_below(name: str, tmp_path: Path) -> None:
    (tmp_path / slug(name)).mkdir()
    assert slug(f"{name}y") != slug(name)
    assert slug("x" * 200) == "x" * 200  # of an earlier version's sweep


def test_arms_are_all_combinations_and_seeds_their_runs() -> None:
    plan = plan_of_values(["recipe=x,y", "optim=pion,adamw", "optim.lr=1e-4", "seed=0,1,2"])
    assert list(plan.arms) == ["x, pion", "x, adamw", "y, pion", "y, adamw"]
    assert plan.arguments("x, adamw", seed=2, lr=None) == ("optim.lr=1e-4", "recipe=x", "optim=adamw", "seed=2")


def test_a_step_is_matched_by_one_word() -> None:
    plan = plan_of_values(["recipe=x", "optim=pion"], ["published", "rms", "spectral"])
    assert plan.arms["spectral"] == ["optim.adjust_lr=match_spectral_adamw"]
    assert plan.arms["published"] == ["optim.settings=paper"]


def test_of_two_overrides_of_a_key_the_later_one_counts() -> None:
    assert merged(["a=1", "b=2", "++a=3"]) == ("++a=3", "b=2")


def test_a_range_is_the_same_for_every_arm_and_fills_its_logarithm() -> None:
    tune = Tune(range=[1e-6, 1e-2], trials=4)
    rates = tune.rates("a")
    assert rates == tune.rates("b") == sorted(rates)
    assert [1e-6 <= rates[0] <= 1e-5, 1e-5 <= rates[1] <= 1e-4, 1e-4 <= rates[2] <= 1e-3, 1e-3 <= rates[3] <= 1e-2] == [
        True
    ] * 4


def test_the_hash_knows_content_and_order_of_arms_and_nothing_else(tmp_path: Path) -> None:
    text = "recipe: x\narms: {a: [optim=pion], b: [optim=adamw]}\nseeds: [0, 1]\n"
    files = {
        "plain": text,
        "comment": f"# why\n{text}",
        "turned": "seeds: [0, 1]\n" + text.replace("seeds: [0, 1]\n", ""),
    }
    hashes = set()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        hashes.add(read_plan(tmp_path / name).sha256)
    assert len(hashes) == 1
    plan = read_plan(tmp_path / "plain")
    assert plan.model_copy(update={"arms": {"b": plan.arms["b"], "a": plan.arms["a"]}}).sha256 not in hashes
    assert plan.model_copy(update={"seeds": [0, 2]}).sha256 not in hashes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a", "no plan"),
        ("arms: {}", "arms: none"),
        ("arms: {a: [x=1]}\nseed: [0]", "did you mean seeds"),
        ("a: [", "no YAML"),
        ("arms: {a: [x=1]}\ntune: {lr: [1e-5, 0]}", "tune.lr.1=0"),
        ("arms: {a: [x=1]}\ntune: {lr_of: {b: [1, 2]}}", "no arm b"),
        ("arms: {a: [++optim.lr=3e-3]}\ntune: {lr: [1e-5, 1e-4]}", r"\+\+optim.lr=3e-3: the rate is tuned"),
        ("arms: {a: [seed=9]}", "seed=9: seeds are those of the plan"),
        ("arms: {a: [x=1]}\noverrides: [run=mine]", "run=mine: the comparison says where its runs lie"),
        ("arms: {a: [resume=DIR]}", "resume=DIR: the comparison says"),
        ("arms: {a: [output_dir=DIR]}", "output_dir=DIR: the comparison says"),
        ("arms: {a: [x=1], a: [x=2]}", "a: stands there twice"),
        ("recipe: x\narms: {a: [x=1]}\nrecipe: y", "recipe: stands there twice"),
        ("arms: {'a b': [x=1], a_b: [x=2]}", "would share the folder a_b"),
    ],
)
def test_a_file_that_is_no_plan_says_why(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_plan(tmp_path / "plan.yaml")


def test_a_plan_that_is_changed_after_runs_or_written_after_them_is_said(tmp_path: Path) -> None:
    first = plan_of_values(["recipe=x", "optim=a,b", "seed=0"])
    record_plan(first, tmp_path)
    record_plan(first, tmp_path)
    assert len((tmp_path / HISTORY).read_text().splitlines()) == 1
    assert first.sha256 in (tmp_path / PLAN).read_text()
    run = tmp_path / "a" / "claim-seed_0"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("")
    assert deviations(tmp_path, [run]) == []
    record_plan(plan_of_values(["recipe=x", "optim=a,b", "seed=0,1"]), tmp_path)
    assert deviations(tmp_path, [run]) == ["the plan was changed after 1 runs: seeds"]
    record_plan(plan_of_values(["recipe=x", "optim=b,a", "seed=0,1"]), tmp_path)
    assert deviations(tmp_path, [run])[1] == "the plan was changed after 1 runs: the order of arms"
    os.utime(run / "recipe.yaml", (0, 0))
    assert "1 of 1 runs are older than the plan" in deviations(tmp_path, [run])


def test_a_line_that_a_kill_cut_short_is_no_plan(tmp_path: Path) -> None:
    first, second = (plan_of_values(["recipe=x", "optim=a,b", f"seed={seeds}"]) for seeds in ("0", "0,1"))
    record_plan(first, tmp_path)
    with (tmp_path / HISTORY).open("a") as file:
        file.write('{"sha256": "ab')
    record_plan(first, tmp_path)
    record_plan(second, tmp_path)
    assert [plan["sha256"] for plan in read_history(tmp_path)] == [first.sha256, second.sha256]
    (tmp_path / HISTORY).write_text("no\n")
    with pytest.raises(DataError, match=r"plans.jsonl: a line is no JSON; restore it"):
        read_history(tmp_path)


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_plans_of_the_evidence_can_be_run(path: Path) -> None:
    from rlspec.config.load import load_any_recipe

    plan: Plan = read_plan(path)
    assert plan.hypotheses and len(plan.seeds) >= 3
    for arm in plan.arms:
        load_any_recipe(plan.arguments(arm, seed=plan.seeds[0], lr=1e-4))
        load_any_recipe(plan.arguments(arm, seed=100, lr=1e-4, tuning=True))
