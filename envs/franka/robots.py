"""Tables of the two Franka arms: kinematics, joint limits, inertias."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

JOINTS = 7
HOME = (0.0, -math.pi / 5, 0.0, -4 * math.pi / 5, 0.0, 3 * math.pi / 5, 0.0)
"""DROID's reset pose in radians: the hand points straight down."""

FLANGE_OFFSET = 0.107
HAND_YAW = -math.pi / 4
TCP_OFFSET = 0.1034
"""Metres from joint 7 to the flange, radians from flange to hand, metres from the hand to the tool centre point."""

FINGER_BASE = 0.0584
FINGER_STROKE = 0.04
"""Metres from hand to finger frame, and how far each of the two fingers opens."""


@dataclass(frozen=True)
class Link:
    """One moving link: where its joint sits in the previous link, and how its mass is spread.

    Attributes:
        xyz: Position of the joint in the previous link's frame, metres.
        roll: Rotation about the previous x axis, radians (the joint turns about its own z axis).
        mass: Kilograms.
        com: Centre of mass in the link's frame, metres.
        inertia: xx, yy, zz, xy, xz, yz about the centre of mass, kg m^2.
    """

    xyz: tuple[float, float, float]
    roll: float
    mass: float
    com: tuple[float, float, float]
    inertia: tuple[float, float, float, float, float, float]


_QUARTER = math.pi / 2
# Joint frames, masses and inertias as published in frankarobotics/franka_description (robots/fr3). The two arms share
# all lengths; the Panda's masses are not published by the maker, so it borrows the FR3's.
_Vector = tuple[float, float, float]
_PLACES: tuple[tuple[_Vector, float], ...] = (
    ((0, 0, 0.333), 0.0),
    ((0, 0, 0), -_QUARTER),
    ((0, -0.316, 0), _QUARTER),
    ((0.0825, 0, 0), _QUARTER),
    ((-0.0825, 0.384, 0), -_QUARTER),
    ((0, 0, 0), _QUARTER),
    ((0.088, 0, 0), _QUARTER),
)
_MASSES: tuple[tuple[float, _Vector, tuple[float, float, float, float, float, float]], ...] = (
    (2.9275, (0, -0.0181, -0.0386), (0.02393, 0.02248, 0.00635, 1.3e-5, -1.1e-4, -2.0e-3)),
    (2.9355, (0.0032, -0.0743, 0.0088), (0.04194, 0.02515, 0.0617, 2e-4, 4.1e-3, -4.2e-3)),
    (2.2449, (0.0407, -0.0048, -0.029), (0.0241, 0.01974, 0.01904, 2.4e-3, -2.9e-3, -2.1e-3)),
    (2.6156, (-0.0459, 0.063, -0.0085), (0.03453, 0.02888, 0.04125, 0.01323, 0.01015, -1e-3)),
    (2.3271, (-0.0016, 0.0293, -0.0973), (0.05161, 0.04788, 0.01642, -5.7e-3, -3.6e-3, 0.01067)),
    (1.817, (0.0597, -0.041, -0.0102), (0.00541, 0.01406, 0.01608, 6.2e-3, 1.4e-3, -1.3e-3)),
    (0.6271, (0.0045, 0.0086, -0.0162), (2.2e-4, 2.2e-4, 8.0e-5, 0, 0, 0)),
)
LINKS: tuple[Link, ...] = tuple(
    Link(xyz, roll, mass, com, inertia) for (xyz, roll), (mass, com, inertia) in zip(_PLACES, _MASSES, strict=True)
)


@dataclass(frozen=True)
class Robot:
    """What differs between the arms.

    Attributes:
        name: "fr3" or "panda".
        low, high: Joint limits, radians.
        max_velocity: rad/s.
        max_torque: N m.
        source: Where the figures come from.
    """

    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    max_velocity: tuple[float, ...]
    max_torque: tuple[float, ...]
    source: str

    @property
    def limits(self) -> NDArray[np.float64]:
        """Joint limits, (7, 2) radians."""
        return np.stack([self.low, self.high], axis=1).astype(np.float64)


_TORQUE = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)
ROBOTS: dict[str, Robot] = {
    "fr3": Robot(
        name="fr3",
        low=(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
        high=(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
        max_velocity=(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26),
        max_torque=_TORQUE,
        source="Franka FR3 before system 5.9, whose limits lie inside those of later systems (libfranka 0.15)",
    ),
    "panda": Robot(
        name="panda",
        low=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
        high=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
        max_velocity=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
        max_torque=_TORQUE,
        source="Franka Emika Panda (FER), Franka Control Interface documentation",
    ),
}
