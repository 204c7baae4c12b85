"""Data by task or by suite."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.libero.tasks import get_task

from rlspec.checkpoint import write_json_atomically
from rlspec.config.vla_schema import Dataset, Env
from rlspec.contract.records import DATA_RECORD
from rlspec.errors import DataError
from rlspec.vla.data.opening import open_dataset, read_metadata
from rlspec.vla.data.selection import with_tasks

TOY = Env(name="toy", suite="toy", tasks=[], options={})


def chosen(root: Path, tasks: list[str], env: Env | None = TOY, **given: Any) -> list[int] | None:
    section = Dataset(name="toy", tasks=tasks, **given)
    return with_tasks(section, env, read_metadata(section, root)).episodes


def test_a_task_of_our_own_data_is_chosen_by_its_name(images: Path) -> None:
    assert chosen(images, []) is None
    assert chosen(images, ["reach"]) == [0, 1, 2] and chosen(images, ["touch"]) == [3, 4, 5]
    assert chosen(images, ["touch", "reach"]) == chosen(images, ["env"]) == [0, 1, 2, 3, 4, 5]
    assert chosen(images, ["env"], TOY.model_copy(update={"tasks": ["touch"]})) == [3, 4, 5]
    assert chosen(images, ["touch"], episodes=[1, 4]) == [4]


def test_a_task_is_chosen_by_its_words(images: Path) -> None:
    told = [str(row["tasks"][0]) for row in read_metadata(Dataset(name="toy"), images).episodes]
    wanted = told[4]
    expected = [index for index, text in enumerate(told) if text == wanted]
    assert chosen(images, [f" {wanted.upper()}. "]) == expected
    dataset = open_dataset(Dataset(name="toy", episodes=expected), root=images)
    assert {dataset[index]["task"] for index in range(len(dataset))} == {wanted}


def libero(*tasks: str, env: Env | None = None) -> list[int] | None:
    """Of a data set with three tasks of two suites, as LeRobot publishes them."""
    try:
        told = [get_task("libero_object", 0), get_task("libero_goal", 3), get_task("libero_object", 7)]
    except EnvironmentUnavailable as error:
        pytest.skip(str(error))
    rows = [{"episode_index": index, "tasks": [task.instruction]} for index, task in enumerate(told)]
    meta = SimpleNamespace(episodes=rows[::-1], root="/nowhere")
    return with_tasks(Dataset(name="libero", repo_id="lerobot/libero", tasks=[*tasks]), env, meta).episodes


def test_a_suite_stands_for_its_tasks() -> None:
    assert libero("libero_object") == [0, 2] and libero("libero_goal") == [1]
    assert libero("libero_object/7") == [2] and libero("libero_object/7", "libero_goal/3") == [1, 2]
    env = Env(name="libero_object", suite="libero_object", tasks=[], options={})
    assert libero("env", env=env) == [0, 2]
    assert libero("env", env=env.model_copy(update={"tasks": ["7", "9"]})) == [2]


def test_what_our_own_record_calls_a_suites_tasks_counts_whatever_the_words(tmp_path: Path) -> None:
    (tmp_path / DATA_RECORD).parent.mkdir(exist_ok=True)
    write_json_atomically(tmp_path / DATA_RECORD, {"episodes": [{"task": "0"}, {"task": "3"}, {"task": "0"}]})
    rows = [{"episode_index": index, "tasks": ["please do it"]} for index in range(3)]
    env = Env(name="libero_object", suite="libero_object", tasks=["3"], options={})
    section = Dataset(name="libero", repo_id="lerobot/libero", tasks=["env"])
    assert with_tasks(section, env, SimpleNamespace(episodes=rows, root=tmp_path)).episodes == [1]


def test_what_is_not_there_is_named(images: Path) -> None:
    with pytest.raises(DataError, match="dataset.tasks=rech: the data has no episode of that; did you mean reach"):
        chosen(images, ["rech"])
    with pytest.raises(DataError, match="none of dataset.episodes is of these tasks"):
        chosen(images, ["touch"], episodes=[0])
    with pytest.raises(DataError, match="dataset.tasks=libero_spatial: the data has no episode of that"):
        libero("libero_object", "libero_spatial")
    with pytest.raises(DataError, match="dataset.tasks=libero_object/70: libero_object has no task 70"):
        libero("libero_object/70")
