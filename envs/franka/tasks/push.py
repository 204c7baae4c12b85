"""Push the block of a named colour onto the circle of a named colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from rlspec_envs.franka.randomisation import Randomisation
from rlspec_envs.franka.rotations import Array, hand_down, nearest_equivalent
from rlspec_envs.franka.tasks.base import (
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
from rlspec_envs.franka.world import World

_HALF = (0.03, 0.03, 0.02)
_FINGER = 0.010  # half the thickness of the closed fingers in the direction of pushing
_LOW = 0.022  # height of the tool centre point when pushing: the tips are 1 cm above the table
_HOVER = 0.09
_WAY = (0.11, 0.22)  # how far a block is pushed


class Push(Task):
    """Success: the named block's centre is well inside the circle, at rest. The hand stays closed.

    Args:
        distractors: Blocks of other colours, beside the way, 0 to 2.
        colours: Block colours to draw from; all four by default.
        workspace: Where things are laid out, (x from, x to, y from, y to) metres; None: 20 by 25 cm, more for many.
    """

    name = "push"
    radius = 0.06
    templates = (
        "push the {object} block onto the {goal} circle",
        "push the {object} block to the {goal} circle",
        "slide the {object} block onto the {goal} circle",
    )

    def __init__(
        self, distractors: int = 1, colours: Sequence[str] | None = None, workspace: Sequence[float] | None = None
    ) -> None:
        self.distractors = check_count("distractors", distractors, 0, 2)
        self.colours = check_colours(colours, 1)
        self.workspace = check_workspace(workspace, 2 + self.distractors)
        self._blocks = tuple(f"block{i}" for i in range(1 + self.distractors))

    def build(self, spec: mujoco.MjSpec) -> None:
        """See `Task`."""
        for block in self._blocks:
            add_block(spec, block, _HALF, mass=0.1)
        add_plate(spec, "circle", self.radius)

    def objects(self) -> tuple[str, ...]:
        """See `Task`."""
        return self._blocks

    def _layout(self, rng: np.random.Generator) -> Array:
        """Draw block, circle and distractors; those keep off the way of block and hand."""
        distances = [[], [_WAY[0]], *([0.12] * i for i in range(2, 2 + self.distractors))]
        for _ in range(1000):
            points = scatter(rng, self.workspace, distances)
            way = points[1] - points[0]
            length = float(np.linalg.norm(way))
            start = points[0] - 0.08 * way / length  # where the hand comes down
            along = np.clip((points[2:] - start) @ way / length, 0.0, length + 0.08)
            aside = np.linalg.norm(points[2:] - start - along[:, None] * way / length, axis=1)
            if length <= _WAY[1] and (aside > 0.095).all():
                return points
        raise ValueError(f"workspace={self.workspace} has no free way for a block: enlarge it or ask for fewer")

    def arrange(self, world: World, ranges: Randomisation, rng: np.random.Generator) -> None:
        """See `Task`."""
        points = self._layout(rng)
        target = str(rng.choice(self.colours))
        others = rng.permutation([colour for colour in check_colours(None, 1) if colour != target])
        for block, point, colour in zip(
            self._blocks, [points[0], *points[2:]], [target, *others[: self.distractors]], strict=True
        ):
            world.place(block, [*point, _HALF[2]], HOME_YAW + ranges.object_yaw * rng.uniform(-1, 1))
            paint_object(world, block, str(colour), ranges, rng)
        goal = str(rng.choice(PLATE_COLOURS))
        world.place("circle", [*points[1], 0.0])
        paint_object(world, "circle", goal, ranges, rng)
        self.instruction = self.templates[rng.integers(len(self.templates))].format(object=target, goal=goal)
        self.decoys = tuple(map(str, others[: self.distractors]))

    def judge(self, world: World) -> Outcome:
        """See `Task`."""
        if any(fell(world, block) for block in self._blocks):
            return Outcome(failure="out_of_bounds")
        aside = np.linalg.norm((world.position(self._blocks[0]) - world.position("circle"))[:2])
        return Outcome(success=bool(aside < 0.6 * self.radius and world.speed(self._blocks[0]) < 0.05))

    def plan(self, world: World) -> Motion:
        """Get behind the block, go down, push along the line to the circle's centre, and stop there."""
        block, tcp = world.position(self._blocks[0]), world.tcp
        way = (world.position("circle") - block)[:2]
        length = float(np.linalg.norm(way))
        low = tcp[2] < _LOW + 0.015
        if low and length < 0.45 * self.radius:
            return Motion(tcp, hand_down(world.hand_yaw), close=True)
        towards = way / max(length, 1e-6)
        heading = math.atan2(towards[1], towards[0])
        turn = world.yaw(self._blocks[0]) - heading
        standoff = _HALF[0] * (abs(math.cos(turn)) + abs(math.sin(turn))) + _FINGER
        rotation = hand_down(nearest_equivalent(heading, world.hand_yaw, math.pi))
        behind = float((block[:2] - tcp[:2]) @ towards)
        aside = float(abs((block[:2] - tcp[:2]) @ [-towards[1], towards[0]]))
        if low and aside < 0.02 and standoff - 0.02 < behind < standoff + 0.06:
            reach = min(0.04, length + 0.005) if behind < standoff + 0.01 else 0.03
            point = block[:2] - towards * (standoff - reach)
            return Motion(np.array([*point, _LOW]), rotation, close=True)
        return Motion(_approach(block, tcp, block[:2] - towards * (standoff + 0.022)), rotation, close=True)

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "distractors": self.distractors,
            "colours": list(self.colours),
            "workspace": list(self.workspace),
        }


def _approach(block: Array, tcp: Array, start: Array) -> Array:
    """Next position on the way to `start` (2,), where the fingers come down: never through or along the block."""
    error = float(np.linalg.norm(start - tcp[:2]))
    height = _LOW + _HOVER * min(1.0, max(0.0, (error - 0.008) / 0.03))
    if error < 0.03:
        return np.array([*start, height])
    away = tcp[:2] - block[:2]
    distance = float(np.linalg.norm(away))
    if tcp[2] < 0.045 and distance < 0.07:  # rubber pads would lift the block by its side
        return np.array([*(tcp[:2] + 0.03 * away / max(distance, 1e-6)), tcp[2] + (0.05 if distance > 0.055 else 0.0)])
    share = min(1.0, max(0.0, (tcp[2] - _LOW - 0.03) / 0.03))
    return np.array([*(tcp[:2] + share * (start - tcp[:2])), height])
