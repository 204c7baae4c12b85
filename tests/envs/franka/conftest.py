"""Franka scenes without pictures, built once per set of options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import rlspec_envs
from franka_cases import MakeScene
from rlspec_envs.franka.environment import FrankaEnv


@pytest.fixture(scope="session")
def scene() -> Iterator[MakeScene]:
    """`scene(task, **options)`: an environment that renders nothing, shared by all who ask for the same."""
    made: dict[str, FrankaEnv] = {}

    def make(task: str = "pick_place", **options: Any) -> FrankaEnv:
        key = repr((task, sorted(options.items())))
        if key not in made:
            made[key] = cast(FrankaEnv, rlspec_envs.make_env("franka", task, **options).unwrapped)
            made[key].render_observations = False
        return made[key]

    yield make
    for env in made.values():
        env.close()
