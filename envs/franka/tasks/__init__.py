"""Tasks of the Franka table-top: objects, layout, instruction, success, and the expert's plan."""

from __future__ import annotations

from rlspec_envs.franka.tasks.base import Task
from rlspec_envs.franka.tasks.pick_place import PickPlace

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (PickPlace,)}
