"""Grasp candidates for a parallel gripper that points down, from an object's collision geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from rlspec_envs.libero.geometry import CollisionGeometry, grid

OPENING = 0.08
"""Distance (m) between the open fingers."""
MAX_WIDTH = 0.070
PALM_DEPTH = 0.024
"""The palm begins 31 mm above the grasp point, so an object may reach this far (m) above it."""
TIP_CLEARANCE = 0.009
"""The fingers end 5 mm below the grasp point; keep them off the support."""
PAD_TOP, PAD_PRESS = 0.012, 0.003
"""The pads reach this far (m) above the grasp point, and may press that far into an object."""
RIM_DEPTH = 0.018
RIM_VARIANTS = ((0.012, 0.018), (0.024, 0.018), (0.0, 0.012), (0.012, 0.012), (0.024, 0.012))
"""Where a bowl stands in a narrow place: how far (m) inside the rim the gripper is centred, and how deep it goes."""
WRIST_RANGE = 2.2
"""Angle (rad) to which the last joint is turned; it ends at 2.9, and the other joints turn the gripper as well."""
EASY_REACH = 0.70
"""Horizontal distance (m) from the shoulder up to which the arm is never stretched."""
YAWS = np.linspace(-np.pi / 2, np.pi / 2, 24, endpoint=False)

_FINGERS = np.concatenate(
    [grid((side - 0.011, -0.011, -0.006), (side + 0.011, 0.011, 0.05)) for side in (-0.052, 0.052)]
)
_PALM = grid((-0.10, -0.032, 0.032), (0.10, 0.032, 0.11), spacing=0.02)
_GRIPPER = np.concatenate([_FINGERS, _PALM])


@dataclass(frozen=True)
class Grasp:
    """Grasp point (3,) in m, and the angle (rad) of the line between the fingers in the horizontal plane.

    In a planned grasp the angle has a direction: half a turn more is the same line, but not the same wrist.
    """

    position: np.ndarray
    yaw: float
    cost: float
    width: float = 0.0
    """Extent (m) of the object between the fingers, 0 for a rim."""
    blocked: int = 0
    """Points of the open gripper that would be inside something."""


@dataclass(frozen=True)
class Situation:
    """What a grasp has to suit besides the object.

    Attributes:
        robot_geoms: Geoms that are no obstacles.
        yaw: Present angle of the line between the fingers, rad.
        wrist: Present angle of the last joint, rad.
        shoulder: Position (3,) in m of the robot's shoulder.
        release: Position (3,) in m of a grasp -> where the gripper will be when it lets go.
    """

    robot_geoms: np.ndarray
    yaw: float
    wrist: float
    shoulder: np.ndarray
    release: Callable[[np.ndarray], np.ndarray]

    def cost(self, grasp: Grasp) -> float:
        """Turning, and how far the arm is stretched at the grasp or at the goal."""
        turn = abs(grasp.yaw - self.yaw)
        places = (grasp.position, self.release(grasp.position))
        reach = max(float(np.linalg.norm(place[:2] - self.shoulder[:2])) for place in places)
        return 0.3 * turn + 20.0 * max(reach - EASY_REACH, 0.0)


def plan_grasps(geometry: CollisionGeometry, body: int, situation: Situation) -> list[Grasp]:
    """Grasps of `body`, best first: free of collisions, narrow side between the fingers, little turning, near."""
    geoms = geometry.geoms_below(body)
    points = geometry.vertices(geoms)

    def rated(grasp: Grasp, ignored: np.ndarray) -> Grasp:
        blocked = geometry.overlaps(gripper_points(grasp), ignored, margin=0.003)
        there = gripper_points(replace(grasp, position=situation.release(grasp.position)))
        cost = situation.cost(grasp) + geometry.overlaps(there, np.concatenate([ignored, geoms]), margin=0.003)
        turn = wrist_turn(grasp.yaw, situation.yaw, situation.wrist)
        grasp = replace(grasp, yaw=situation.yaw + turn)
        return replace(grasp, cost=grasp.cost + cost + blocked, blocked=blocked)

    across = [replace(grasp, cost=grasp.cost + 2.0 * _overhang(geometry, geoms, grasp)) for grasp in _across(points)]
    grasps = [rated(grasp, np.concatenate([situation.robot_geoms, geoms])) for grasp in across]
    if not grasps:
        grasps = [rated(grasp, situation.robot_geoms) for grasp in _on_rim(points)]
    if all(grasp.blocked for grasp in grasps) and not across:
        variants = [grasp for variant in RIM_VARIANTS for grasp in _on_rim(points, *variant)]
        grasps += [rated(grasp, situation.robot_geoms) for grasp in variants]
    return sorted(grasps, key=lambda grasp: grasp.cost)


def wrap_half_turn(angle: float) -> float:
    """The angle modulo pi (fingers are interchangeable), in [-pi/2, pi/2)."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


def wrist_turn(target: float, yaw: float, wrist: float) -> float:
    """The least turn (rad) from `yaw` to the finger line `target` that keeps the last joint, now at `wrist`, in range.

    The gripper points down, so the joint turns against the yaw; half a turn more or less gives the same finger line.
    """
    turn = wrap_half_turn(target - yaw)
    turns = (turn, turn - np.pi, turn + np.pi)
    return min(turns, key=lambda turn: abs(turn) + 10.0 * max(abs(wrist - turn) - WRIST_RANGE, 0.0))


def gripper_points(grasp: Grasp) -> np.ndarray:
    """World points (n, 3) that fill the open gripper at `grasp`."""
    return np.asarray(_GRIPPER @ _turn(grasp.yaw).T + grasp.position)


def _turn(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _across(points: np.ndarray) -> list[Grasp]:
    """Grasps with the whole object between the fingers."""
    bottom, top = points[:, 2].min(), points[:, 2].max()
    height = max(top - PALM_DEPTH, bottom + TIP_CLEARANCE)
    grasps = []
    for yaw in YAWS:
        axis, side = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
        along, across = points[:, :2] @ axis, points[:, :2] @ side
        width = along.max() - along.min()
        if width <= MAX_WIDTH:
            centre = axis * (along.max() + along.min()) / 2 + side * (across.max() + across.min()) / 2
            grasps.append(Grasp(np.array([*centre, height]), float(yaw), 10.0 * width, width=float(width)))
    return grasps


def _overhang(geometry: CollisionGeometry, geoms: np.ndarray, grasp: Grasp) -> float:
    """Fraction of the pads that would press into a hollow with something above it, such as the gable of a carton.

    Such a pad hooks under the roof and carries the object along when the gripper opens and leaves.
    """
    half = grasp.width / 2 - PAD_PRESS
    pads = np.concatenate([grid((x, -0.006, 0.0), (x, 0.006, PAD_TOP), spacing=0.004) for x in (-half, half)])
    points = pads @ _turn(grasp.yaw).T + grasp.position
    hollow = ~geometry.inside(points, geoms)
    roofed = [geometry.inside(points + np.array([0.0, 0.0, rise]), geoms) for rise in np.arange(0.002, 0.03, 0.003)]
    return float((hollow & np.any(roofed, axis=0)).mean())


def _on_rim(points: np.ndarray, inside: float = 0.0, depth: float = RIM_DEPTH) -> list[Grasp]:
    """Grasps with one finger inside a bowl and the wall between them, at angles all around."""
    top = points[:, 2].max()
    rim = points[points[:, 2] > top - 0.01]
    centre = (rim[:, :2].max(0) + rim[:, :2].min(0)) / 2
    radius = np.linalg.norm(rim[:, :2] - centre, axis=1).max() - 0.002 - inside
    grasps = []
    for angle in np.linspace(-np.pi, np.pi, 32, endpoint=False):
        direction = np.array([np.cos(angle), np.sin(angle)])
        position = np.array([*(centre + radius * direction), top - depth])
        cost = 20.0 * inside + 50.0 * (RIM_DEPTH - depth)
        grasps.append(Grasp(position, wrap_half_turn(float(angle)), cost))
    return grasps
