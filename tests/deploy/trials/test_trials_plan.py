"""Who runs when: the same seed the same order, scenes shared by all, mistakes in one line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rlspec.deploy.trials.plan import make_plan, read_policies, read_tasks, settings_of
from rlspec.errors import ConfigError

POLICIES, TASKS = ["a", "b", "c"], ["one", "two"]


def test_every_policy_meets_every_scene_of_every_task_once() -> None:
    plan = make_plan(POLICIES, TASKS, 5, seed=3)
    assert [trial.number for trial in plan] == list(range(1, 31))
    met = Counter((trial.task, trial.scene, trial.policy) for trial in plan)
    assert set(met.values()) == {1} and len(met) == 30


def test_scenes_come_one_after_the_other_and_the_order_within_them_is_random() -> None:
    plan = make_plan(POLICIES, TASKS, 40, seed=0)
    assert [trial.scene for trial in plan] == sorted(trial.scene for trial in plan)
    blocks = [tuple(trial.policy for trial in plan[i : i + 3]) for i in range(0, len(plan), 3)]
    assert len(set(blocks)) == 6, "all orders of three policies occur"
    first = Counter(block[0] for block in blocks)
    assert min(first.values()) > 15


def test_the_seed_is_the_order() -> None:
    assert make_plan(POLICIES, TASKS, 9, 1) == make_plan(POLICIES, TASKS, 9, 1) != make_plan(POLICIES, TASKS, 9, 2)


def test_the_papers_three_tasks_are_shipped() -> None:
    tasks = read_tasks(["tabletop"])
    assert [task.name for task in tasks] == ["cube_to_bowl", "cube_to_plate", "cucumber_to_plate"]
    assert settings_of(tasks[0]) == ["prompt=put the cube in the bowl", "seconds=40"]
    assert tasks[0].scene(7) == tasks[0].scene(1) != tasks[0].scene(2)


def test_a_policy_is_a_server_a_checkpoint_a_word_or_a_files_settings(tmp_path: Path) -> None:
    named = read_policies(["ws://gpu:8000", str(tmp_path), "hold"])
    assert list(named.values()) == [["server=ws://gpu:8000"], [f"checkpoint={tmp_path}"], ["policy=hold"]]
    file = tmp_path / "p.yaml"
    file.write_text("slow: {policy: expert, inference.latency: 0.5}\nfast: {policy: expert, realtime: null}\n")
    assert read_policies([str(file)]) == {
        "slow": ["policy=expert", "inference.latency=0.5"],
        "fast": ["policy=expert", "realtime=null"],
    }


@pytest.mark.parametrize(
    ("policies", "tasks", "line"),
    [
        (["experts"], ["stack"], "policies=experts: no such folder, and no ws://HOST:PORT; did you mean expert?"),
        (["hold", "hold"], ["stack"], "policies=hold,hold: one is named twice"),
        (["none.yaml"], ["stack"], "policies=none.yaml: cannot be read"),
        (["empty.yaml"], ["stack"], "policies=empty.yaml: NAME: {key: value} is wanted; correct the file"),
        (["hold"], ["none.yaml"], "tasks=none.yaml: cannot be read"),
        (["hold"], ["stack", "stack"], "tasks: two of them have one name"),
        (["hold"], ["stack", "all"], "tasks: all is the table's row of all of them; name that task otherwise"),
        (["hold"], ["wrong.yaml"], "tasks=wrong.yaml: tasks.0.promt=x: unknown key; did you mean prompt?"),
    ],
)
def test_mistakes_are_one_line(
    policies: list[str], tasks: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").write_text("{}\n")
    Path("wrong.yaml").write_text("tasks: [{name: a, promt: x}]\n")
    with pytest.raises(ConfigError) as caught:
        read_policies(policies)
        read_tasks(tasks)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
