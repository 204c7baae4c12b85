"""Pick up the cube of a named colour and put it on the plate of a named colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from rlspec_envs.franka.randomisation import Randomisation
from rlspec_envs.franka.tasks.base import (
    BLOCK_HALF,
    HOME_YAW,
    PLATE_COLOURS,
    Motion,
    Outcome,
    Task,
    add_block,
    add_plate,
    check_colours,
    check_count,
    check_workspace,
    fell,
    paint_object,
    scatter,
)
from rlspec_envs.franka.tasks.grasping import carry, released
from rlspec_envs.franka.world import World

_BLOCK_DISTANCE, _PLATE_DISTANCE, _START_DISTANCE = 0.10, 0.105, 0.12
_PARKING = (0.9, 0.5)


class PickPlace(Task):
    """Success: the named cube lies on the named plate, the hand is open and has gone.

    Args:
        distractors: Cubes of other colours, 0 to 3.
        plates: 1 or 2 plates of different colours.
        colours: Cube colours to draw from; all four by default.
        workspace: Where things are laid out, (x from, x to, y from, y to) metres; None: 20 by 25 cm, more for many.
        plate_radius: Metres.
    """

    name = "pick_place"
    templates = (
        "pick up the {object} cube and put it on the {goal} plate",
        "put the {object} cube on the {goal} plate",
        "place the {object} cube onto the {goal} plate",
        "move the {object} cube to the {goal} plate",
    )

    def __init__(
        self,
        distractors: int = 1,
        plates: int = 1,
        colours: Sequence[str] | None = None,
        workspace: Sequence[float] | None = None,
        plate_radius: float = 0.06,
    ) -> None:
        self.distractors = check_count("distractors", distractors, 0, 3)
        self.plates = check_count("plates", plates, 1, 2)
        self.colours = check_colours(colours, 1)
        self.workspace = check_workspace(workspace, 1 + self.distractors + self.plates)
        if not 0.04 <= plate_radius <= 0.1:
            raise ValueError(f"plate_radius={plate_radius!r}: give 0.04 to 0.1 metres")
        self.plate_radius = float(plate_radius)
        self._blocks = tuple(f"block{i}" for i in range(1 + self.distractors))
        self._plates = tuple(f"plate{i}" for i in range(self.plates))

    def build(self, spec: mujoco.MjSpec) -> None:
        """See `Task`."""
        for block in self._blocks:
            add_block(spec, block, [BLOCK_HALF] * 3)
        for plate in self._plates:
            add_plate(spec, plate, self.plate_radius)

    def objects(self) -> tuple[str, ...]:
        """See `Task`."""
        return self._blocks

    def _distances(self) -> list[list[float]]:
        """Order: target, its plate, other cubes, other plates."""
        spacing = max(_PLATE_DISTANCE, self.plate_radius + 0.045)
        kinds = ["target", "plate"] + ["block"] * self.distractors + ["plate"] * (self.plates - 1)
        table = []
        for i, kind in enumerate(kinds):
            row = []
            for other in kinds[:i]:
                apart = {kind, other}
                row.append(
                    2 * self.plate_radius + 0.01
                    if apart == {"plate"}
                    else max(spacing, _START_DISTANCE)
                    if apart == {"target", "plate"}
                    else spacing
                    if "plate" in apart
                    else _BLOCK_DISTANCE
                )
            table.append(row)
        return table

    def arrange(self, world: World, ranges: Randomisation, rng: np.random.Generator) -> None:
        """See `Task`."""
        points = scatter(rng, self.workspace, self._distances())
        target = str(rng.choice(self.colours))
        others = [colour for colour in check_colours(None, 1) if colour != target]
        block_colours = [target, *rng.permutation(others)[: self.distractors]]
        plate_colours = [str(colour) for colour in rng.permutation(PLATE_COLOURS)[: self.plates]]
        order = [0, *range(2, 2 + self.distractors)]
        for block, index, colour in zip(self._blocks, order, block_colours, strict=True):
            yaw = HOME_YAW + ranges.object_yaw * rng.uniform(-1, 1)
            world.place(block, [*points[index], BLOCK_HALF], yaw)
            paint_object(world, block, str(colour), ranges, rng)
        for plate, index, colour in zip(
            self._plates, [1, *range(2 + self.distractors, len(points))], plate_colours, strict=True
        ):
            world.place(plate, [*points[index], 0.0])
            paint_object(world, plate, colour, ranges, rng)
        template = self.templates[rng.integers(len(self.templates))]
        self.instruction = template.format(object=target, goal=plate_colours[0])
        self.decoys = tuple(map(str, block_colours[1:]))

    def _goal(self, world: World) -> np.ndarray:
        return world.position(self._plates[0]) + [0.0, 0.0, BLOCK_HALF]

    def judge(self, world: World) -> Outcome:
        """See `Task`."""
        if any(fell(world, block) for block in self._blocks):
            return Outcome(failure="out_of_bounds")
        offset = world.position(self._blocks[0]) - self._goal(world)
        lies = np.linalg.norm(offset[:2]) < self.plate_radius and abs(offset[2]) < 0.01
        return Outcome(success=bool(lies and released(world, self._blocks[0])))

    def plan(self, world: World) -> Motion:
        """See `Task`."""
        return carry(world, self._blocks[0], self._goal(world), tolerance=0.6 * self.plate_radius)

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "distractors": self.distractors,
            "plates": self.plates,
            "colours": list(self.colours),
            "workspace": list(self.workspace),
            "plate_radius": self.plate_radius,
        }
