"""Which policy runs on which scene, and in which order: decided, and written down, before the first trial."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from rlspec.config.messages import explain, join_lines
from rlspec.config.paths import recipes_folder
from rlspec.config.schema import Section
from rlspec.errors import ConfigError, nearest

Value = bool | int | float | str | list[int] | list[float] | list[str] | None


TOGETHER = "all"
"""What the table calls a policy's trials of every task."""


class TrialTask(Section):
    """What is tried.

    Attributes:
        name: In tables.
        prompt: The instruction; empty: the robot's own (simulations have one).
        reset: What the operator prepares before each trial.
        scenes: How scene 1, 2, ... is laid out; fewer than there are trials: they begin anew.
        success: When it counts as done.
        credit: What a part of it is worth, for the keys 1 to 9.
        settings: Keys of `python -m rlspec.deploy`, for example robot.task or seconds.
    """

    name: str
    prompt: str = ""
    reset: str = ""
    scenes: list[str] = []
    success: str = ""
    credit: str = ""
    settings: dict[str, Value] = {}

    def scene(self, number: int) -> str:
        """How a scene is laid out, counted from 0."""
        return self.scenes[number % len(self.scenes)] if self.scenes else ""


class TaskFile(Section):
    """A file of tasks."""

    tasks: list[TrialTask] = Field(min_length=1)


@dataclass(frozen=True)
class Trial:
    """One run: its number in the order of the plan, task and policy by name, scene from 0."""

    number: int
    task: str
    scene: int
    policy: str


def read_tasks(names: Sequence[str]) -> list[TrialTask]:
    """Tasks of a file (of recipes/trials by its name, or one's own), or of the simulation by their names.

    Raises:
        ConfigError: A file cannot be read, a name is given twice, or means all of them.
    """
    tasks: list[TrialTask] = []
    for name in names:
        shipped = recipes_folder() / "trials" / f"{name}.yaml"
        if shipped.is_file() or name.endswith((".yaml", ".yml")):
            tasks += _task_file(shipped if shipped.is_file() else Path(name).expanduser()).tasks
        else:
            tasks.append(TrialTask(name=name, settings={"robot.task": name}))
    if len({task.name for task in tasks}) < len(tasks):
        raise ConfigError("tasks: two of them have one name; rename one")
    if any(task.name == TOGETHER for task in tasks):
        raise ConfigError(f"tasks: {TOGETHER} is the table's row of all of them; name that task otherwise")
    return tasks


def _task_file(path: Path) -> TaskFile:
    content = _yaml(path, "tasks")
    try:
        return TaskFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(join_lines([f"tasks={path}: {line}" for line in explain(error, TaskFile)])) from None


def read_policies(names: Sequence[str]) -> dict[str, list[str]]:
    """Name -> settings of `python -m rlspec.deploy`.

    Args:
        names: Of a server (ws://HOST:PORT), of a checkpoint's folder, expert or hold; or one FILE.yaml with
            NAME: {key: value, ...}.

    Raises:
        ConfigError: A file cannot be read, or a name is given twice.
    """
    if len(names) == 1 and names[0].endswith((".yaml", ".yml")):
        content = _yaml(Path(names[0]).expanduser(), "policies")
        if not content or not isinstance(content, dict) or not all(isinstance(each, dict) for each in content.values()):
            raise ConfigError(f"policies={names[0]}: NAME: {{key: value}} is wanted; correct the file")
        return {str(name): [f"{key}={_text(value)}" for key, value in each.items()] for name, each in content.items()}
    if len(set(names)) < len(names):
        raise ConfigError(f"policies={','.join(names)}: one is named twice; leave it out")
    return {name: [_source(name)] for name in names}


def _source(name: str) -> str:
    if name in ("expert", "hold"):
        return f"policy={name}"
    if name.startswith(("ws://", "wss://")):
        return f"server={name}"
    if not Path(name).expanduser().exists():
        near = nearest(name, ("expert", "hold"))
        raise ConfigError(f"policies={name}: no such folder, and no ws://HOST:PORT; {near}, or a folder")
    return f"checkpoint={name}"


def _yaml(path: Path, key: str) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{key}={path}: cannot be read ({' '.join(str(error).split())}); correct the file") from None


def _text(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def settings_of(task: TrialTask) -> list[str]:
    """A task's own keys of `python -m rlspec.deploy`."""
    prompt = [f"prompt={task.prompt}"] if task.prompt else []
    return prompt + [f"{key}={_text(value)}" for key, value in task.settings.items()]


def make_plan(policies: Sequence[str], tasks: Sequence[str], trials: int, seed: int) -> list[Trial]:
    """All trials in their order.

    Scene by scene, so that a series that ends early is balanced; within a scene the tasks, and within a task the
    policies, are in random order: what changes over the day (light, wear, the operator) falls on all alike.

    Args:
        policies: Names.
        tasks: Names.
        trials: Of each policy on each task.
        seed: The same seed, the same order.
    """
    draw = random.Random(seed)
    plan: list[Trial] = []
    for scene in range(trials):
        for task in draw.sample(list(tasks), len(tasks)):
            for policy in draw.sample(list(policies), len(policies)):
                plan.append(Trial(len(plan) + 1, task, scene, policy))
    return plan


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first key in which two plans differ; empty: none."""
    return next((key for key in wanted if stored.get(key) != wanted[key]), "")
