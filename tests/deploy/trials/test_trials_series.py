"""A series from command line to table: in the simulation by itself, on a robot by an operator's keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlspec.config.vla_schema import Demonstrations, Grpo, SimEvaluation
from rlspec.deploy.outcome import DeploymentOutcome
from rlspec.deploy.settings import Settings
from rlspec.deploy.trials.judge import OperatorJudge, SimulationJudge
from rlspec.deploy.trials.series import Series, TrialsCommand
from rlspec.display import Display
from rlspec.errors import ConfigError
from rlspec.trials import main


def command(out: Path, *more: str) -> TrialsCommand:
    given = ["policies=hold,expert", "tasks=tabletop", "robot=dry_run", "trials=2", f"out={out}"]
    return TrialsCommand.read([*given, *more])


class Robot:
    """Carries out runs: what happened to each is decided by a function of its settings."""

    def __init__(self, fate: Callable[[Settings], DeploymentOutcome]) -> None:
        self.fate, self.ran = fate, list[Settings]()

    def __call__(self, settings: Settings, display: Display) -> DeploymentOutcome:
        self.ran.append(settings)
        return self.fate(settings)


def series(line: TrialsCommand, keys: str, robot: Robot, shown: list[str] | None = None) -> Series:
    pressed = iter(keys)
    judge = OperatorJudge((shown if shown is not None else []).append, lambda: next(pressed, ""))
    return Series(line, Display(quiet=True), judge, robot)


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


def ended(settings: Settings) -> DeploymentOutcome:
    return DeploymentOutcome("user" if settings.policy == "hold" else "time", stops=2)


def test_the_operator_judges_with_one_key_and_is_never_told_the_policy(tmp_path: Path) -> None:
    shown: list[str] = []
    robot = Robot(ended)
    made = series(command(tmp_path), " s f 5 s s f f f s 9 s f", robot, shown)
    assert made.run() == 0
    lines = log(tmp_path)
    assert [line["credit"] for line in lines] == [1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.9, 1.0, 0.0]
    assert [line["policy"] for line in lines] == [trial.policy for trial in made.plan]
    assert {line["intervened"] for line in lines if line["policy"] == "hold"} == {True}
    assert {line["stops"] for line in lines} == {2}
    text = "\n".join(shown)
    assert "hold" not in text and "expert" not in text
    assert "trial 12 of 12" in text and "object on mark 2, target on mark 5" in text
    assert {Path(str(settings.out)).name for settings in robot.ran} == {f"{n:04d}" for n in range(1, 13)}
    report = (tmp_path / "report.md").read_text()
    assert "| hold | all | 6 |" in report and "| hold - expert | 6 |" in report


def test_what_is_repeated_does_not_count(tmp_path: Path) -> None:
    robot = Robot(ended)
    assert series(command(tmp_path), " r s" + " s" * 11, robot).run() == 0
    assert len(robot.ran) == 13
    assert [line["credit"] for line in log(tmp_path)][:2] == [None, 1.0]
    assert robot.ran[1].out is not None and robot.ran[1].out.endswith("0001-2")
    assert "| hold | all | 6 |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("keys", [" s s q", " s s ", " s s q s"])
def test_a_pause_and_the_same_command_give_the_series_that_was_never_paused(tmp_path: Path, keys: str) -> None:
    assert series(command(tmp_path / "a"), keys, Robot(ended)).run() == 130
    with (tmp_path / "a/trials.jsonl").open("a") as file:
        file.write('{"number": 3, "cred')  # a power cut while it was written
    assert series(command(tmp_path / "a"), " f" * 10, Robot(ended)).run() == 0
    assert series(command(tmp_path / "b"), " s s" + " f" * 10, Robot(ended)).run() == 0
    assert (tmp_path / "a/report.md").read_text() == (tmp_path / "b/report.md").read_text()


def test_another_series_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    series(command(tmp_path), "q", Robot(ended)).run()
    with pytest.raises(ConfigError, match=r"a series with other seed is there|a series with other order is there"):
        series(command(tmp_path, "seed=1"), "q", Robot(ended)).run()
    with pytest.raises(ConfigError, match="a series with other settings is there"):
        series(command(tmp_path, "safety.velocity_share=0.2"), "q", Robot(ended)).run()


def test_a_paused_series_keeps_its_judge(tmp_path: Path) -> None:
    series(command(tmp_path), "q", Robot(ended)).run()
    with pytest.raises(ConfigError, match="a series with other judge is there"):
        Series(command(tmp_path), Display(quiet=True), SimulationJudge(), Robot(ended)).run()
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan.pop("judge") == "operator"
    (tmp_path / "plan.json").write_text(json.dumps(plan))  # of a series that was begun before judges were stated
    assert series(command(tmp_path), " s" * 12, Robot(ended)).run() == 0


def test_the_plan_with_its_rule_is_there_before_the_first_trial(tmp_path: Path) -> None:
    def look(settings: Settings) -> DeploymentOutcome:
        plan = json.loads((tmp_path / "plan.json").read_text())
        assert "anytime-valid" in plan["rule"] and len(plan["order"]) == 12
        return DeploymentOutcome()

    series(command(tmp_path, "stop=sequential"), " f" * 12, Robot(look)).run()
    assert len(log(tmp_path)) == 12


def test_a_clear_difference_ends_a_sequential_series_between_two_scenes(tmp_path: Path) -> None:
    line = command(tmp_path, "stop=sequential", "trials=30")

    def fate(settings: Settings) -> DeploymentOutcome:
        return DeploymentOutcome("success" if settings.policy == "expert" else "time")

    assert Series(line, Display(quiet=True), SimulationJudge(), Robot(fate)).run() == 0
    lines = log(tmp_path)
    assert len(lines) == 18, "eight would do (2^8 / 9 > 20), and the third scene ends with nine"
    assert {line["scene"] for line in lines} == {0, 1, 2}


def test_in_the_simulation_every_policy_meets_the_same_scene_and_the_task_judges(tmp_path: Path) -> None:
    given = "policies=expert,hold tasks=pick_place robot=mujoco trials=2 robot.images=false seconds=30"
    assert main([*given.split(), f"out={tmp_path}"]) == 0
    lines = log(tmp_path)
    assert {(line["policy"], line["credit"]) for line in lines} == {("expert", 1.0), ("hold", 0.0)}
    seeds: dict[int, set[int]] = {}
    for line in lines:
        header = json.loads((tmp_path / f"runs/{line['number']:04d}/ticks.jsonl").open().readline())["header"]
        seeds.setdefault(line["scene"], set()).add(header["settings"]["robot"]["options"]["seed"])
    assert [len(each) for each in seeds.values()] == [1, 1]
    assert seeds[0] != seeds[1]
    assert seeds[0] == {200_000} == {Settings.read(["robot=mujoco", "policy=hold"]).robot.options["seed"]}
    assert not seeds[0] & {Demonstrations().seed, SimEvaluation().seed, Grpo().seed}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("policies=hold tasks=stack", "robot: required"),
        ("policies=hold tasks=stack robot=mujoko", "robot=mujoko: unknown; did you mean mujoco?"),
        ("policies=hold tasks=stack robot=mujoco second=3", "second=3: unknown key; did you mean seconds?"),
        ("policies=hold tasks=stack robot=mujoco server=ws://a:1", "server=ws://a:1: the series sets server"),
        ("policies=hold tasks=tabletop robot=dry_run judge=auto", "judge=auto: only a simulation knows"),
        ("policies=hold tasks=tabletop robot=franka_fr3 host=1.2.3.4", "safety.workspace_low, safety.workspace_high:"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(
    given: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*given.split(), f"out={tmp_path}/x"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(line) and printed.count("\n") == 1
    assert not (tmp_path / "x").exists()
