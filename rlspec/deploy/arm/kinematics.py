"""Where a Franka arm is for given joints, and which joints bring its hand where it should be. Pure numpy.

Both arms share all lengths (frankarobotics/franka_description). The tool centre point lies between the fingertips of
the Franka hand, as in `rlspec_envs.franka`. Positions are metres in the base frame.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.droid import HAND_LENGTH, tip_of

Array = NDArray[np.float64]

HOME = np.array([0.0, -math.pi / 5, 0.0, -4 * math.pi / 5, 0.0, 3 * math.pi / 5, 0.0])
"""DROID's reset pose, radians."""

# Each joint's frame in that of the previous link: metres, and the sign of a quarter turn about x.
_OFFSETS = (
    (0.0, 0.0, 0.333),
    (0.0, 0.0, 0.0),
    (0.0, -0.316, 0.0),
    (0.0825, 0.0, 0.0),
    (-0.0825, 0.384, 0.0),
    (0.0, 0.0, 0.0),
    (0.088, 0.0, 0.0),
)
_QUARTERS = (0, -1, 1, 1, -1, 1, 1)
_FLANGE = 0.107
_HAND_WIDTH, _HAND_HEIGHT = 0.1, 0.066  # half width along y and depth along z of the Franka hand's body

POINTS = ("elbow", "elbow_back", "wrist", "joint7", "flange", "hand_left", "hand_right", "tcp")
"""What the workspace box holds: both ends of the elbow's offset, the wrist, the flange, the hand's corners, its tip."""

_DAMPING = 0.05
_HOMING = 0.1  # share of the way home that the redundant direction goes per solution


def _link(offset: tuple[float, float, float], quarter: int) -> Array:
    link = np.eye(4)
    link[:3, 3] = offset
    if quarter:
        link[1:3, 1:3] = [[0.0, -quarter], [quarter, 0.0]]
    return link


_LINKS = np.stack([_link(offset, quarter) for offset, quarter in zip(_OFFSETS, _QUARTERS, strict=True)])
_TOOL = np.eye(4)
_TOOL[:3, 3], _TOOL[:3, :3] = tip_of(np.array([0.0, 0.0, _FLANGE]), np.eye(3))
_SIDE = _HAND_WIDTH * _TOOL[:3, 1]
_ON_JOINT_4 = np.array([[0.0, 0.0, 0.0, 1.0], [-0.0825, 0.0, 0.0, 1.0]]).T
_MIDDLE = np.array([0.0, 0.0, _FLANGE + _HAND_HEIGHT])


def hand_points(length: float = HAND_LENGTH) -> Array:
    """What of `POINTS` moves with joint 7, in its frame, (4, 5), for a hand whose tip is `length` m from the flange.

    A Robotiq 2F-85 is narrower than the Franka hand, so that its corners are within those.
    """
    tip = [0.0, 0.0, _FLANGE + length]
    places = np.array([np.zeros(3), [0.0, 0.0, _FLANGE], _MIDDLE + _SIDE, _MIDDLE - _SIDE, tip])
    return np.vstack([places.T, np.ones(5)])


_FRANKA_HAND = hand_points()


def _frames(q: Array) -> list[Array]:
    """Frames of the seven joints, (..., 4, 4) each."""
    cos, sin = np.cos(q)[..., None], np.sin(q)[..., None]
    x, y = _LINKS[:, :, 0], _LINKS[:, :, 1]
    turned = np.empty((*q.shape, 4, 4))
    turned[...] = _LINKS
    turned[..., 0] = cos * x + sin * y
    turned[..., 1] = cos * y - sin * x
    frame = turned[..., 0, :, :]
    frames = [frame]
    for i in range(1, 7):
        frame = frame @ turned[..., i, :, :]
        frames.append(frame)
    return frames


def points(q: Array, on_hand: Array = _FRANKA_HAND) -> Array:
    """Positions of `POINTS`, (..., 3, 8) metres (a column each), for joint angles (..., 7) and `hand_points`."""
    frames = _frames(q)
    elbow = frames[3][..., :3, :] @ _ON_JOINT_4
    hand = frames[6][..., :3, :] @ on_hand
    return np.concatenate([elbow, frames[4][..., :3, 3:], hand], axis=-1)


def forward(q: Array) -> tuple[Array, Array]:
    """Tool centre point: position (..., 3) in metres and rotation (..., 3, 3) for joint angles (..., 7)."""
    tool = _frames(q)[6] @ _TOOL
    return tool[..., :3, 3], tool[..., :3, :3]


def flange(q: Array) -> tuple[Array, Array]:
    """The flange, whose pose DROID records: position (..., 3) in metres and rotation (..., 3, 3)."""
    pose = _frames(q)[6] @ _link((0.0, 0.0, _FLANGE), 0)
    return pose[..., :3, 3], pose[..., :3, :3]


def jacobian(q: Array) -> Array:
    """Of the tool centre point, (6, 7) for joint angles (7,): metres, then radians in the base frame, per radian."""
    frames = np.stack(_frames(q))
    tip = (frames[6] @ _TOOL)[:3, 3]
    (x, y, z), (dx, dy, dz) = frames[:, :3, 2].T, (tip - frames[:, :3, 3]).T
    return np.stack([y * dz - z * dy, z * dx - x * dz, x * dy - y * dx, x, y, z])


def rotation_matrix(vector: Array) -> Array:
    """Rotation (3, 3) about an axis by its length in radians."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + math.sin(angle) * skew + (1.0 - math.cos(angle)) * (skew @ skew)


def rotation_vector(matrix: Array) -> Array:
    """Inverse of `rotation_matrix`: (3,) radians, no longer than pi."""
    # The largest of the four squares keeps the quaternion exact near half turns.
    trace = float(matrix[0, 0] + matrix[1, 1] + matrix[2, 2])
    diagonal = np.array([trace, matrix[0, 0], matrix[1, 1], matrix[2, 2]])
    largest = int(np.argmax(diagonal))
    skew = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    quaternion = np.empty(4)
    if largest == 0:
        quaternion[0], quaternion[1:] = 1.0 + trace, skew
    else:
        i = largest - 1
        quaternion[0] = skew[i]
        quaternion[1:] = matrix[i] + matrix[:, i]
        quaternion[largest] = 1.0 + 2.0 * matrix[i, i] - trace
    quaternion *= math.copysign(1.0, quaternion[0]) / float(np.linalg.norm(quaternion))
    sine = float(np.linalg.norm(quaternion[1:]))
    if sine < 1e-12:
        return 2.0 * quaternion[1:]
    return quaternion[1:] * (2.0 * math.atan2(sine, quaternion[0]) / sine)


def solve(
    q: Array,
    position: Array,
    rotation: Array,
    *,
    low: Array | None = None,
    high: Array | None = None,
    iterations: int = 2,
    homing: float = _HOMING,
) -> Array:
    """Joints near `q` that bring the tool centre point to a pose, by damped least squares.

    The redundant direction leans towards `HOME`, as in `rlspec_envs.franka.kinematics`.

    Args:
        q: Start, (7,) radians.
        position: Wanted, (3,) metres.
        rotation: Wanted, (3, 3).
        low: Joint range, (7,) radians; None: unbounded.
        high: Like `low`.
        iterations: More for poses that are further away.
        homing: Share of the way to `HOME` that the redundant direction goes.

    Returns:
        (7,) radians; the best effort where the pose cannot be reached.
    """
    solution = q.copy()
    for iteration in range(iterations):
        here, turned = forward(solution)
        error = np.concatenate([position - here, rotation_vector(rotation @ turned.T)])
        moving = jacobian(solution)
        inverse = np.linalg.solve(moving @ moving.T + _DAMPING**2 * np.eye(6), moving).T
        step = inverse @ error
        if iteration == 0:
            homeward = homing * (HOME - solution)
            step = step + homeward - inverse @ (moving @ homeward)
        solution = solution + step
        if low is not None and high is not None:
            solution = np.clip(solution, low, high)
    return solution
