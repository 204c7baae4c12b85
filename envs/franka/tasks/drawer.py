"""Open or close the drawer of a named colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from rlspec_envs.franka.arm import ARM_BIT
from rlspec_envs.franka.randomisation import Randomisation
from rlspec_envs.franka.rotations import hand_down, nearest_equivalent
from rlspec_envs.franka.tasks.base import (
    Motion,
    Outcome,
    Task,
    check_colours,
    paint_object,
)
from rlspec_envs.franka.world import World
from rlspec_envs.perturbation import direction

_DRAWERS = ("drawer0", "drawer1")
_STROKE = 0.12  # how far a drawer comes out, metres
_OPEN, _CLOSED = 0.09, 0.015  # from where on it counts as open, up to where as closed
_SPACING = 0.17  # between the middles of the two drawers
_HEIGHT = 0.09
_BAR = (0.055, 0.07)  # the handle's distance from the front, and its height
_HOOK = 0.061  # height of the tool centre point when the fingertips are behind the handle
_HOVER = 0.09
_PLACE = (0.50, -0.14)  # middle of the cabinet's front, which faces +y, the external camera's side
_PLACE_RANGE = (0.04, 0.03)
_WOOD, _STEEL = (0.55, 0.40, 0.26, 1.0), (0.75, 0.76, 0.78, 1.0)


def _box(
    body: mujoco.MjsBody, half: Sequence[float], place: Sequence[float], colour: Sequence[float], name: str = ""
) -> None:
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=list(half),
        pos=list(place),
        rgba=list(colour),
        contype=0,
        conaffinity=ARM_BIT,
        mass=0.05,
    )


def _add_drawer(cabinet: mujoco.MjsBody, name: str, middle: float) -> None:
    drawer = cabinet.add_body(name=name, pos=[middle, 0, 0])
    drawer.add_joint(
        name=name,
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[0, 1, 0],
        limited=mujoco.mjtLimited.mjLIMITED_TRUE,
        range=[0, _STROKE],
        damping=[4.0, 0, 0],
        frictionloss=1.0,
        armature=0.2,
    )
    _box(drawer, (0.075, 0.006, 0.038), (0, 0, 0.045), _WOOD, name=f"{name}_front")
    _box(drawer, (0.07, 0.065, 0.003), (0, -0.065, 0.012), _WOOD)
    _box(drawer, (0.045, 0.006, 0.006), (0, _BAR[0], _BAR[1]), _STEEL)
    for x in (-0.04, 0.04):
        _box(drawer, (0.005, 0.022, 0.005), (x, 0.028, _BAR[1]), _STEEL)


class Drawer(Task):
    """Success: the named drawer is at least 9 cm open, or at most 1.5 cm, as the instruction says.

    Args:
        goal: "open", "close", or "any" to draw one of them per episode.
        colours: Colours of fronts to draw from, at least two; all four by default.
    """

    name = "drawer"
    templates = ("{verb} the {object} drawer", "{verb} the drawer with the {object} front")

    def __init__(self, goal: str = "any", colours: Sequence[str] | None = None) -> None:
        if goal not in ("any", "open", "close"):
            raise ValueError(f"goal={goal!r}: choose one of any, open, close")
        self.goal = goal
        self.colours = check_colours(colours, 2)
        self._opens = True

    def build(self, spec: mujoco.MjSpec) -> None:
        """See `Task`."""
        cabinet = spec.worldbody.add_body(name="cabinet", pos=[*_PLACE, 0])
        width = _SPACING + 0.01
        _box(cabinet, (width, 0.08, 0.004), (0, -0.087, _HEIGHT + 0.004), _WOOD)
        for side in (-1, 0, 1):
            _box(cabinet, (0.004, 0.08, _HEIGHT / 2), (side * (width - 0.004), -0.087, _HEIGHT / 2), _WOOD)
        for name, share in zip(_DRAWERS, (-0.5, 0.5), strict=True):
            _add_drawer(cabinet, name, share * _SPACING)

    def objects(self) -> tuple[str, ...]:
        """See `Task`."""
        return ()

    def arrange(self, world: World, ranges: Randomisation, rng: np.random.Generator) -> None:
        """See `Task`."""
        world.place("cabinet", [*(np.array(_PLACE) + np.array(_PLACE_RANGE) * rng.uniform(-1, 1, 2)), 0.0])
        colours = [str(colour) for colour in rng.permutation(self.colours)[:2]]
        for name, colour in zip(_DRAWERS, colours, strict=True):
            paint_object(world, f"{name}_front", colour, ranges, rng)
            world.data.joint(name).qpos[0] = _STROKE * rng.uniform(0.8, 1.0) * rng.integers(2)
        named = int(rng.integers(2))
        self._opens = self.goal == "open" or (self.goal == "any" and bool(rng.integers(2)))
        world.data.joint(_DRAWERS[named]).qpos[0] = 0.0 if self._opens else _STROKE * rng.uniform(0.8, 1.0)
        self._named = _DRAWERS[named]
        template = self.templates[rng.integers(len(self.templates))]
        self.instruction = template.format(verb="open" if self._opens else "close", object=colours[named])
        self.decoys = (colours[1 - named],)

    def spread(self, world: World, strength: int, rng: np.random.Generator) -> None:
        """Move the cabinet by 2 cm, times `strength`."""
        world.model.body("cabinet").pos[:2] += 0.02 * strength * direction(rng, 2)

    def judge(self, world: World) -> Outcome:
        """See `Task`."""
        travel = float(world.data.joint(self._named).qpos[0])
        return Outcome(success=travel > _OPEN if self._opens else travel < _CLOSED)

    def plan(self, world: World) -> Motion:
        """Bring the closed fingertips behind the handle and pull, or before it and push."""
        handle, tcp = world.position(self._named) + [0.0, _BAR[0], _BAR[1]], world.tcp
        rotation = hand_down(nearest_equivalent(math.pi / 2, world.hand_yaw, math.pi))
        sign = -1.0 if self._opens else 1.0  # the side of the handle on which the fingers are
        offset = tcp - handle
        if abs(offset[0]) < 0.03 and 0.006 < sign * offset[1] < 0.045 and tcp[2] < _HOOK + 0.02:
            return Motion(np.array([handle[0], tcp[1] - sign * 0.04, _HOOK]), rotation, close=True)
        start = handle[:2] + [0.0, sign * 0.026]
        error = float(np.linalg.norm(start - tcp[:2]))
        height = _HOOK + _HOVER * min(1.0, max(0.0, (error - 0.007) / 0.03))
        share = min(1.0, max(0.0, (tcp[2] - _HOOK - 0.03) / 0.03)) if error > 0.03 else 1.0
        return Motion(np.array([*(tcp[:2] + share * (start - tcp[:2])), height]), rotation, close=True)

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {"goal": self.goal, "colours": list(self.colours)}
