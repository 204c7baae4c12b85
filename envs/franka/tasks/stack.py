"""Stack the cube of a named colour on the cube of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from rlspec_envs.franka.randomisation import Randomisation
from rlspec_envs.franka.rotations import Array
from rlspec_envs.franka.tasks.base import (
    BLOCK_HALF,
    HOME_YAW,
    Motion,
    Outcome,
    Task,
    add_block,
    check_colours,
    check_count,
    check_workspace,
    fell,
    paint_object,
    scatter,
)
from rlspec_envs.franka.tasks.grasping import carry, released
from rlspec_envs.franka.world import World

_DISTANCE = 0.11


class Stack(Task):
    """Success: the first cube rests on the second, the hand is open and has gone.

    Args:
        distractors: Further cubes, 0 to 2.
        colours: Cube colours to draw from, at least two; all four by default.
        workspace: Where things are laid out, (x from, x to, y from, y to) metres; None: 20 by 25 cm, more for many.
    """

    name = "stack"
    templates = (
        "stack the {object} cube on the {goal} cube",
        "put the {object} cube on top of the {goal} cube",
        "place the {object} cube onto the {goal} cube",
    )

    def __init__(
        self, distractors: int = 0, colours: Sequence[str] | None = None, workspace: Sequence[float] | None = None
    ) -> None:
        self.distractors = check_count("distractors", distractors, 0, 2)
        self.colours = check_colours(colours, 2 + self.distractors)
        self.workspace = check_workspace(workspace, 2 + self.distractors)
        self._blocks = tuple(f"block{i}" for i in range(2 + self.distractors))

    def build(self, spec: mujoco.MjSpec) -> None:
        """See `Task`."""
        for block in self._blocks:
            add_block(spec, block, [BLOCK_HALF] * 3)

    def objects(self) -> tuple[str, ...]:
        """See `Task`."""
        return self._blocks

    def arrange(self, world: World, ranges: Randomisation, rng: np.random.Generator) -> None:
        """See `Task`."""
        points = scatter(rng, self.workspace, [[_DISTANCE] * i for i in range(len(self._blocks))])
        colours = [str(colour) for colour in rng.permutation(self.colours)]
        for block, point, colour in zip(self._blocks, points, colours, strict=False):
            world.place(block, [*point, BLOCK_HALF], HOME_YAW + ranges.object_yaw * rng.uniform(-1, 1))
            paint_object(world, block, colour, ranges, rng)
        template = self.templates[rng.integers(len(self.templates))]
        self.instruction = template.format(object=colours[0], goal=colours[1])
        self.decoys = tuple(colours[1 : len(self._blocks)])

    def _goal(self, world: World) -> Array:
        return world.position(self._blocks[1]) + [0.0, 0.0, 2 * BLOCK_HALF]

    def judge(self, world: World) -> Outcome:
        """See `Task`."""
        if any(fell(world, block) for block in self._blocks):
            return Outcome(failure="out_of_bounds")
        offset = world.position(self._blocks[0]) - self._goal(world)
        rests = np.linalg.norm(offset[:2]) < BLOCK_HALF and abs(offset[2]) < 0.006
        return Outcome(success=bool(rests and released(world, self._blocks[0])))

    def plan(self, world: World) -> Motion:
        """See `Task`."""
        return carry(world, self._blocks[0], self._goal(world), tolerance=0.012, drop=0.009)

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "distractors": self.distractors,
            "colours": list(self.colours),
            "workspace": list(self.workspace),
        }
