"""Grasp candidates for a parallel gripper that points down, from an object's collision geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rlspec_envs.libero.geometry import CollisionGeometry, grid

OPENING = 0.08
"""Distance (m) between the open fingers."""
MAX_WIDTH = 0.070
PALM_DEPTH = 0.024
"""The palm begins 31 mm above the grasp point, so an object may reach this far (m) above it."""
TIP_CLEARANCE = 0.009
"""The fingers end 5 mm below the grasp point; keep them off the support."""
RIM_DEPTH = 0.018
YAWS = np.linspace(-np.pi / 2, np.pi / 2, 24, endpoint=False)

_FINGERS = np.concatenate(
    [grid((side - 0.011, -0.011, -0.006), (side + 0.011, 0.011, 0.05)) for side in (-0.052, 0.052)]
)
_PALM = grid((-0.10, -0.032, 0.032), (0.10, 0.032, 0.11), spacing=0.02)
_GRIPPER = np.concatenate([_FINGERS, _PALM])


@dataclass(frozen=True)
class Grasp:
    """Grasp point (3,) in m, and the angle (rad) of the line between the fingers in the horizontal plane."""

    position: np.ndarray
    yaw: float
    cost: float
    is_rim: bool


def plan_grasps(
    geometry: CollisionGeometry, body: int, ignored: np.ndarray, current_yaw: float, shoulder: np.ndarray
) -> list[Grasp]:
    """Grasps of `body`, best first: free of collisions, narrow side between the fingers, little turning, near.

    Args:
        geometry: The scene.
        body: The object's body id.
        ignored: Geoms that are no obstacles (the robot's).
        current_yaw: Present angle of the line between the fingers, rad.
        shoulder: Position (3,) in m of the robot's shoulder.
    """
    geoms = geometry.geoms_below(body)
    points = geometry.vertices(geoms)
    grasps = _across(points)
    if grasps:
        ignored = np.concatenate([ignored, geoms])
    else:
        grasps = _on_rim(points)
    planned = []
    for grasp in grasps:
        turn = abs(wrap_half_turn(grasp.yaw - current_yaw))
        blocked = geometry.overlaps(gripper_points(grasp), ignored, margin=0.003)
        reach = float(np.linalg.norm(grasp.position[:2] - shoulder[:2]))
        cost = grasp.cost + 0.3 * turn + 5.0 * reach + blocked
        planned.append(Grasp(grasp.position, grasp.yaw, cost, grasp.is_rim))
    return sorted(planned, key=lambda grasp: grasp.cost)


def wrap_half_turn(angle: float) -> float:
    """The angle modulo pi (fingers are interchangeable), in [-pi/2, pi/2)."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


def gripper_points(grasp: Grasp) -> np.ndarray:
    """World points (n, 3) that fill the open gripper at `grasp`."""
    c, s = np.cos(grasp.yaw), np.sin(grasp.yaw)
    rotation = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(_GRIPPER @ rotation.T + grasp.position)


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
            grasps.append(Grasp(np.array([*centre, height]), float(yaw), 10.0 * width, False))
    return grasps


def _on_rim(points: np.ndarray) -> list[Grasp]:
    """Grasps with one finger inside a bowl and the wall between them, at angles all around."""
    top = points[:, 2].max()
    rim = points[points[:, 2] > top - 0.01]
    centre = (rim[:, :2].max(0) + rim[:, :2].min(0)) / 2
    radius = np.linalg.norm(rim[:, :2] - centre, axis=1).max() - 0.002
    grasps = []
    for angle in np.linspace(-np.pi, np.pi, 32, endpoint=False):
        direction = np.array([np.cos(angle), np.sin(angle)])
        position = np.array([*(centre + radius * direction), top - RIM_DEPTH])
        grasps.append(Grasp(position, wrap_half_turn(float(angle)), 0.0, True))
    return grasps
