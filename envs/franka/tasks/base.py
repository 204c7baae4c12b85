"""What a task is, and what tasks share: colours, blocks, plates, layouts."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mujoco
import numpy as np
from rlspec_envs.franka.arm import ARM_BIT, WORLD_BIT
from rlspec_envs.franka.randomisation import Randomisation
from rlspec_envs.franka.robots import HAND_YAW
from rlspec_envs.franka.rotations import Array
from rlspec_envs.franka.world import World

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.08, 0.08),
    "green": (0.08, 0.70, 0.16),
    "blue": (0.10, 0.22, 0.95),
    "yellow": (0.98, 0.85, 0.05),
    "white": (0.97, 0.97, 0.97),
    "purple": (0.60, 0.12, 0.75),
    "black": (0.06, 0.06, 0.07),
}
OBJECT_COLOURS = ("red", "green", "blue", "yellow")
PLATE_COLOURS = ("white", "purple", "black")

BLOCK_HALF = 0.0225
"""Half the edge of a cube, metres."""

HOME_YAW = -HAND_YAW
"""Yaw of the resting hand's x axis, radians."""

Workspace = tuple[float, float, float, float]
WORKSPACE: Workspace = (0.40, 0.60, -0.125, 0.125)
WIDE_WORKSPACE: Workspace = (0.36, 0.64, -0.19, 0.19)
"""Where up to three, and where more objects are laid out: x from, x to, y from, y to, metres in the base's frame."""

_REACH = (0.28, 0.75, -0.45, 0.45)


@dataclass(frozen=True)
class Motion:
    """What an expert wants next: a pose of the tool centre point and the hand open or closed."""

    position: Array
    rotation: Array
    close: bool


@dataclass(frozen=True)
class Outcome:
    """Whether the task is done, or cannot be any more (`failure` names how; "" otherwise)."""

    success: bool = False
    failure: str = ""


def add_block(spec: mujoco.MjSpec, name: str, half: Sequence[float], mass: float = 0.06) -> None:
    """Add a free box named `name` (body, joint and geom)."""
    body = spec.worldbody.add_body(name=name, pos=[0.5, 0, half[2]])
    body.add_freejoint(name=name)
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=list(half),
        mass=mass,
        condim=4,
        contype=WORLD_BIT,
        conaffinity=WORLD_BIT | ARM_BIT,
        friction=[0.8, 0.01, 0.0002],
    )


def add_plate(spec: mujoco.MjSpec, name: str, radius: float) -> None:
    """Add a movable disc, 3 mm thick, that nothing collides with."""
    body = spec.worldbody.add_body(name=name, mocap=True, pos=[0.5, 0, 0])
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[radius, 0.0015, 0],
        pos=[0, 0, 0.0015],
        contype=0,
        conaffinity=0,
    )


def scatter(rng: np.random.Generator, workspace: Workspace, distances: Sequence[Sequence[float]]) -> Array:
    """Draw points in a rectangle that keep their distances.

    Args:
        rng: Randomness.
        workspace: x from, x to, y from, y to.
        distances: `distances[i][j]` for j < i is how far point i keeps from point j, metres.

    Returns:
        (points, 2) metres.

    Raises:
        ValueError: The rectangle is too small for so many objects.
    """
    low, high = np.array(workspace[::2]), np.array(workspace[1::2])
    for _ in range(300):
        points: list[Array] = []
        for row in distances:
            for _ in range(20):
                point = rng.uniform(low, high)
                if all(np.linalg.norm(point - other) >= row[j] for j, other in enumerate(points)):
                    points.append(point)
                    break
            else:
                break
        if len(points) == len(distances):
            return np.array(points)
    raise ValueError(f"workspace={workspace} has no room for {len(distances)} objects: enlarge it or ask for fewer")


def check_workspace(workspace: Sequence[float] | None, objects: int) -> Workspace:
    """Return the rectangle as a tuple; None stands for the default for so many objects.

    Raises:
        ValueError: It is no rectangle within the arm's comfortable reach.
    """
    if workspace is None:
        return WORKSPACE if objects <= 3 else WIDE_WORKSPACE
    values = tuple(float(value) for value in workspace)
    inside = len(values) == 4 and _REACH[0] <= values[0] < values[1] <= _REACH[1]
    if not (inside and _REACH[2] <= values[2] < values[3] <= _REACH[3]):
        raise ValueError(f"workspace={workspace!r}: give (x_from, x_to, y_from, y_to) within {_REACH} metres")
    return values[0], values[1], values[2], values[3]


def check_count(name: str, value: int, low: int, high: int) -> int:
    """Return `value` if it is a whole number in the range.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name}={value!r}: give a whole number from {low} to {high}")
    return int(value)


def check_colours(colours: Sequence[str] | None, least: int) -> tuple[str, ...]:
    """Return the names of object colours to draw from.

    Raises:
        ValueError: A name is unknown, or there are fewer than `least`.
    """
    chosen = OBJECT_COLOURS if colours is None else tuple(colours)
    unknown = [name for name in chosen if name not in OBJECT_COLOURS]
    if unknown or len(set(chosen)) < least or len(set(chosen)) != len(chosen):
        raise ValueError(f"colours={colours!r}: give at least {least} different of {', '.join(OBJECT_COLOURS)}")
    return chosen


class Task(ABC):
    """One kind of episode. Options are the constructor's keywords."""

    name: ClassVar[str]

    instruction: str = ""
    decoys: tuple[str, ...] = ()
    """Colours of things in this episode that the instruction does not speak of first, but could."""

    @abstractmethod
    def __init__(self, **options: Any) -> None: ...

    @abstractmethod
    def build(self, spec: mujoco.MjSpec) -> None:
        """Add the objects to the model."""

    @abstractmethod
    def arrange(self, world: World, ranges: Randomisation, rng: np.random.Generator) -> None:
        """Lay out and colour the objects of a new episode and set `instruction`."""

    @abstractmethod
    def judge(self, world: World) -> Outcome:
        """Judge the state after a control step."""

    @abstractmethod
    def plan(self, world: World) -> Motion:
        """Return what the expert wants next: a function of the state alone."""

    @abstractmethod
    def objects(self) -> tuple[str, ...]:
        """Names of the free objects of this episode."""

    def spread(self, world: World, strength: int, rng: np.random.Generator) -> None:
        """Move the objects of an arranged episode apart: by a fifth of their distances, times `strength`."""
        centre, factor = np.array([WORKSPACE[:2], WORKSPACE[2:]]).mean(1), 1 + 0.2 * strength
        model, data = world.model, world.data
        places = [data.joint(name).qpos for name in self.objects()]
        places += [data.mocap_pos[index] for index in range(model.nmocap)]
        for place in places:
            place[:2] = centre + factor * (place[:2] - centre)

    def wrong_instruction(self, rng: np.random.Generator) -> str:
        """The instruction with the colours of the thing that it speaks of first and of another one exchanged."""
        (named, *_) = [word for word in re.findall(r"\w+", self.instruction) if word in COLOURS]
        others = [colour for colour in self.decoys or OBJECT_COLOURS if colour != named]
        swap = {named: (other := str(rng.choice(others))), other: named}
        return re.sub(r"\w+", lambda found: swap.get(found[0], found[0]), self.instruction)

    def describe(self) -> dict[str, Any]:
        """Options as JSON-safe values."""
        return {}


def paint_object(world: World, geom: str, colour: str, ranges: Randomisation, rng: np.random.Generator) -> None:
    """Colour a geom with a named colour, varied."""
    world.paint(geom, np.array(COLOURS[colour]) + ranges.colour * rng.uniform(-1, 1, 3))


def fell(world: World, name: str) -> bool:
    """True when an object has left the table."""
    return bool(world.position(name)[2] < -0.05)
