"""Meshes for the look of the arm, from packages that are installed; nothing is downloaded unless asked for."""

from __future__ import annotations

import mujoco
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.franka.robots import Robot


def add_meshes(spec: mujoco.MjSpec, bodies: dict[str, mujoco.MjsBody], robot: Robot, source: str) -> None:
    """Draw the arm with meshes."""
    raise EnvironmentUnavailable(f"arm={source!r} is not there yet: use arm='primitive'")
