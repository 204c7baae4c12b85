"""Rotations as matrices, rotation vectors and yaw angles (thin shells around MuJoCo's functions)."""

from __future__ import annotations

import math

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def quaternion_of(matrix: ArrayLike) -> Array:
    """Quaternion (w, x, y, z) of a (3, 3) rotation matrix."""
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(matrix, dtype=np.float64).reshape(9))
    return quaternion


def rotation_vector(matrix: ArrayLike) -> Array:
    """Axis times angle of a (3, 3) rotation matrix, (3,) radians, shorter than pi."""
    vector = np.empty(3)
    mujoco.mju_quat2Vel(vector, quaternion_of(matrix), 1.0)
    return vector


def rotation_matrix(vector: ArrayLike) -> Array:
    """Inverse of `rotation_vector`."""
    axis = np.array(vector, dtype=np.float64)
    angle = float(np.linalg.norm(axis))
    if angle < 1e-12:
        return np.eye(3)
    quaternion, matrix = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quaternion, axis / angle, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def yaw_quaternion(yaw: float) -> Array:
    """Quaternion of a turn about the vertical."""
    return np.array([math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)])


def hand_down(yaw: float) -> Array:
    """Rotation of a hand that points straight down with its x axis at `yaw`."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, sin, 0.0], [sin, -cos, 0.0], [0.0, 0.0, -1.0]])


def nearest_equivalent(angle: float, reference: float, period: float) -> float:
    """Shift `angle` by multiples of `period` as close to `reference` as it gets."""
    return angle + period * round((reference - angle) / period)


def continuous_axis_angle(matrix: ArrayLike, reference: ArrayLike) -> Array:
    """Axis times angle whose sign does not jump around a half turn, where a hand that points down always is.

    Args:
        matrix: (3, 3) rotation.
        reference: Quaternion (w, x, y, z); of the two that stand for `matrix` the one nearer to it is taken.

    Returns:
        (3,) radians, of length 0 to 2 pi.
    """
    quaternion = quaternion_of(matrix)
    if quaternion @ np.asarray(reference) < 0:
        quaternion = -quaternion
    sine = float(np.linalg.norm(quaternion[1:]))
    if sine < 1e-12:
        return np.zeros(3)
    angle = 2.0 * math.atan2(sine, quaternion[0])
    return np.asarray(quaternion[1:] * (angle / sine), dtype=np.float64)
