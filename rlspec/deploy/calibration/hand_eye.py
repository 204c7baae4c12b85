"""Where a camera is, from poses of the arm and of a board in its pictures: AX = XB, by Park and Martin (1994).

OpenCV 5 has no `calibrateHandEye` in Python any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.linalg import inv as inverse
from numpy.typing import NDArray

from rlspec.deploy.arm.kinematics import rotation_vector
from rlspec.errors import ConfigError

Array = NDArray[np.float64]

LEAST_VIEWS = 6
_LEAST_TURN = 0.35  # rad by which the hand must be turned between two of the poses
_LEAST_SPREAD = 0.1  # sine of the angle between the axes about which it was


@dataclass(frozen=True)
class CameraPose:
    """What came of it.

    Attributes:
        pose: (4, 4) of the camera in the base frame, or in the flange's for a camera at the hand.
        metres, radians: Root mean square by which the board was not where the pose says.
    """

    pose: Array
    metres: float
    radians: float


def camera_pose(flanges: Sequence[Array], boards: Sequence[Array], *, at_hand: bool) -> CameraPose:
    """The camera's pose.

    Args:
        flanges: (4, 4) of the flange in the base frame, one per view.
        boards: (4, 4) of the board in the camera's frame.
        at_hand: The camera is fixed to the flange and the board to the room; else the other way round.

    Raises:
        ConfigError: There are too few views, or the hand was not turned about two axes.
    """
    if len(flanges) < LEAST_VIEWS:
        raise ConfigError(f"calibrate=camera: {len(flanges)} views are too few, {LEAST_VIEWS} are needed; take 12")
    pairs = list(combinations(range(len(flanges)), 2))
    if at_hand:  # flange X board is the same for all views
        moved = [(inverse(flanges[j]) @ flanges[i], boards[j] @ inverse(boards[i])) for i, j in pairs]
    else:  # and here inverse(flange) X board
        moved = [(flanges[i] @ inverse(flanges[j]), boards[i] @ inverse(boards[j])) for i, j in pairs]
    turns = np.array([[rotation_vector(a[:3, :3]), rotation_vector(b[:3, :3])] for a, b in moved])
    _check_turns(turns[:, 0])
    u, _, vt = np.linalg.svd(np.einsum("ni,nj->ij", turns[:, 0], turns[:, 1]))
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    left = np.concatenate([a[:3, :3] - np.eye(3) for a, _ in moved])
    right = np.concatenate([rotation @ b[:3, 3] - a[:3, 3] for a, b in moved])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, np.linalg.lstsq(left, right, rcond=None)[0]
    return CameraPose(pose, *_spread(pose, flanges, boards, at_hand=at_hand))


def _check_turns(turns: Array) -> None:
    lengths = np.linalg.norm(turns, axis=1)
    widest = turns[int(np.argmax(lengths))]
    across = np.linalg.norm(np.cross(turns, widest / np.linalg.norm(widest)), axis=1) if lengths.max() else lengths
    if lengths.max() < _LEAST_TURN or across.max() < _LEAST_SPREAD:
        degrees = np.degrees(lengths.max())
        raise ConfigError(
            f"calibrate=camera: between the views the hand was turned by {degrees:.0f} degrees at most, or about one "
            "axis only; tilt it by 30 degrees to all sides"
        )


def _spread(pose: Array, flanges: Sequence[Array], boards: Sequence[Array], *, at_hand: bool) -> tuple[float, float]:
    """How far the board is from where it always is: in the room, or on the hand."""
    base = list(flanges) if at_hand else [inverse(each) for each in flanges]
    seen = [each @ pose @ board for each, board in zip(base, boards, strict=True)]
    places = np.array([each[:3, 3] for each in seen])
    u, _, vt = np.linalg.svd(np.sum([each[:3, :3] for each in seen], axis=0))
    mean = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    turns = np.array([rotation_vector(mean.T @ each[:3, :3]) for each in seen])
    distances = ((places - places.mean(0)) ** 2).sum(1)
    return float(np.sqrt(distances.mean())), float(np.sqrt((turns**2).sum(1).mean()))
