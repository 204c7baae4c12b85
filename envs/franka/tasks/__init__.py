"""Tasks of the Franka table-top: objects, layout, instruction, success, and the expert's plan."""

from __future__ import annotations

from rlspec_envs.franka.tasks.base import Task
from rlspec_envs.franka.tasks.drawer import Drawer
from rlspec_envs.franka.tasks.pick_place import PickPlace
from rlspec_envs.franka.tasks.push import Push
from rlspec_envs.franka.tasks.stack import Stack

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (PickPlace, Push, Stack, Drawer)}
