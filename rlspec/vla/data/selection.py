"""Which episodes of a data set are trained on: those of some tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlspec_envs.errors import EnvironmentUnavailable

from rlspec.config.vla_schema import Dataset, Env
from rlspec.contract.records import DATA_RECORD
from rlspec.errors import DataError, nearest

OF_ENV = "env"


def with_tasks(section: Dataset, env: Env | None, meta: Any) -> Dataset:
    """The section with the episodes of its tasks in place of them.

    Args:
        section: source, tasks and perhaps episodes, of which those of the tasks remain.
        env: what `env` among the tasks stands for.
        meta: LeRobot's metadata.

    Raises:
        DataError: There are no such tasks, or no episodes of them.
    """
    if not section.tasks:
        return section
    told = [" ".join(row["tasks"]) for row in _rows(meta)]
    named = _names(Path(meta.root), len(told))
    wanted: set[int] = set()
    for task in section.tasks:
        words = _words(task, env, {*named})
        found = {index for index, text in enumerate(told) if _plain(text) in words or named[index] in words}
        if not found:
            known = sorted({*told} | {name for name in named if name})
            hint = nearest(task, known) if len(known) < 20 else f"it has {len(known)} tasks, such as {known[0]!r}"
            raise DataError(f"dataset.tasks={task}: the data has no episode of that; {hint}")
        wanted |= found
    chosen = sorted(wanted if section.episodes is None else wanted & {*section.episodes})
    if not chosen:
        raise DataError("dataset.tasks: none of dataset.episodes is of these tasks; leave out one of them")
    return section.model_copy(update={"episodes": chosen, "tasks": []})


def _rows(meta: Any) -> Iterable[Any]:
    return sorted(meta.episodes, key=lambda row: int(row["episode_index"]))


def _names(root: Path, count: int) -> Sequence[str]:
    """What our own record calls the task of each episode; elsewhere nothing."""
    path = root / DATA_RECORD
    episodes = json.loads(path.read_text(encoding="utf-8")).get("episodes") if path.is_file() else None
    named = [str(episode.get("task", "")) for episode in episodes or []]
    return named if len(named) == count else [""] * count


def _words(task: str, env: Env | None, named: set[str]) -> set[str]:
    """Names and instructions that an entry stands for."""
    from rlspec_envs.libero.tasks import LIBERO_SUITES

    if task == OF_ENV:
        assert env is not None, "checked with the recipe"
        if env.suite not in LIBERO_SUITES or named & {*env.tasks}:
            return {*env.tasks} or named - {""}
        return _instructions(env.suite, env.tasks)
    suite, _, number = task.partition("/")
    if suite in LIBERO_SUITES:
        return _instructions(suite, [number] if number else [])
    return {task, _plain(task)} - {""}


def _instructions(suite: str, numbers: Sequence[str]) -> set[str]:
    from rlspec_envs.libero.tasks import get_task, list_libero_tasks

    try:
        return {_plain(get_task(suite, int(number)).instruction) for number in numbers or list_libero_tasks(suite)}
    except (ValueError, EnvironmentUnavailable) as error:
        raise DataError(f"dataset.tasks={'/'.join([suite, *numbers])}: {error}") from None


def _plain(text: str) -> str:
    return " ".join(text.lower().strip(" .").split())
