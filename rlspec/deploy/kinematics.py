"""Where a Franka arm is for given joints, and which joints bring its hand where it should be. Pure numpy.

Both arms share all lengths (frankarobotics/franka_description). The tool centre point lies between the fingertips of
the Franka hand, as in `rlspec_envs.franka`. Positions are metres in the base frame.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

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
_HAND_YAW = -math.pi / 4
_TCP = 0.1034
_HAND_WIDTH, _HAND_HEIGHT = 0.1, 0.066  # half width along y and depth along z of the Franka hand's body

POINTS = ("elbow", "elbow_back", "wrist", "joint7", "flange", "hand_left", "hand_right", "tcp")
"""What the workspace box holds: both ends of the elbow's offset, the wrist, the flange, the hand's corners, its tip."""

_DAMPING = 0.05
_HOMING = 0.1  # share of the way home that the redundant direction goes per solution


def _frames(q: Array) -> tuple[list[tuple[Array, Array, Array]], list[Array]]:
    """Axes (x, y, z) and origins, each (..., 3), of the seven joint frames."""
    cos, sin = np.cos(q)[..., None], np.sin(q)[..., None]
    x, y, z = (np.broadcast_to(axis, (*q.shape[:-1], 3)) for axis in np.eye(3))
    origin = np.zeros((*q.shape[:-1], 3))
    axes, origins = [], []
    for i, (offset, quarter) in enumerate(zip(_OFFSETS, _QUARTERS, strict=True)):
        for distance, axis in zip(offset, (x, y, z), strict=True):
            if distance:
                origin = origin + distance * axis
        if quarter > 0:
            y, z = z, -y
        elif quarter < 0:
            y, z = -z, y
        c, s = cos[..., i, :], sin[..., i, :]
        x, y = c * x + s * y, c * y - s * x
        axes.append((x, y, z))
        origins.append(origin)
    return axes, origins


def points(q: Array) -> Array:
    """Positions of `POINTS`, (..., 8, 3) metres, for joint angles (..., 7)."""
    axes, origins = _frames(q)
    x, y, z = axes[6]
    flange = origins[6] + _FLANGE * z
    middle = flange + _HAND_HEIGHT * z
    side = (_HAND_WIDTH * math.sin(-_HAND_YAW)) * x + (_HAND_WIDTH * math.cos(_HAND_YAW)) * y
    elbow_back = origins[3] - 0.0825 * axes[3][0]
    tip = flange + _TCP * z
    listed = (origins[3], elbow_back, origins[4], origins[6], flange, middle + side, middle - side, tip)
    return np.stack(listed, axis=-2)


def forward(q: Array) -> tuple[Array, Array]:
    """Tool centre point: position (..., 3) in metres and rotation (..., 3, 3) for joint angles (..., 7)."""
    axes, origins = _frames(q)
    x, y, z = axes[6]
    cos, sin = math.cos(_HAND_YAW), math.sin(_HAND_YAW)
    rotation = np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=-1)
    return origins[6] + (_FLANGE + _TCP) * z, rotation


def jacobian(q: Array) -> Array:
    """Of the tool centre point, (6, 7) for joint angles (7,): metres, then radians in the base frame, per radian."""
    axes, origins = _frames(q)
    tip = origins[6] + (_FLANGE + _TCP) * axes[6][2]
    turning = np.stack([axis[2] for axis in axes])
    arms = tip - np.stack(origins)
    return np.concatenate([np.cross(turning, arms), turning], axis=1).T


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


def euler_matrix(angles: Array) -> Array:
    """Rotation (3, 3) of roll, pitch, yaw in radians about the fixed x, then y, then z axis (DROID's convention)."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles), np.sin(angles)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def solve(
    q: Array,
    position: Array,
    rotation: Array,
    *,
    low: Array | None = None,
    high: Array | None = None,
    iterations: int = 2,
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
            homeward = _HOMING * (HOME - solution)
            step = step + homeward - inverse @ (moving @ homeward)
        solution = solution + step
        if low is not None and high is not None:
            solution = np.clip(solution, low, high)
    return solution
