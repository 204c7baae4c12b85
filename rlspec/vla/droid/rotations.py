"""Rotations of poses in batches: matrices and rotation vectors; Euler angles are in `rlspec.contract.droid`."""

from __future__ import annotations

import numpy as np

from rlspec.vla.droid.episodes import Numbers

_SMALL = 1e-12


def to_vector(matrices: Numbers) -> Numbers:
    """(N, 3) rotation vectors, angles in [0, pi]."""
    quaternions = _to_quaternion(matrices)
    sine = np.linalg.norm(quaternions[:, 1:], axis=1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternions[:, :1])
    # The limit of angle / sine at zero is 2.
    return quaternions[:, 1:] * np.where(sine > _SMALL, angle / np.maximum(sine, _SMALL), 2.0)


def from_vector(vectors: Numbers) -> Numbers:
    """(N, 3, 3) matrices of (N, 3) rotation vectors (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    skew = np.moveaxis(np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]), -1, 0)
    sine = np.sinc(angle / np.pi)  # sin(a) / a
    versine = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2  # (1 - cos(a)) / a^2
    turned: Numbers = np.eye(3) + sine * skew + versine * (skew @ skew)
    return turned


def _to_quaternion(matrices: Numbers) -> Numbers:
    """(N, 4) with the real part first and not negative; from the largest component, so that none is lost."""
    diagonal = np.einsum("nii->ni", matrices)
    trace = diagonal.sum(axis=1, keepdims=True)
    squares = np.concatenate([1 + trace, 1 - trace + 2 * diagonal], axis=1)  # 4 times w^2, x^2, y^2, z^2
    largest = squares.argmax(axis=1)
    m = matrices
    # Row k holds 4 times component k times every component.
    products = np.empty((len(m), 4, 4))
    for k in range(4):
        products[:, k, k] = squares[:, k]
    wx, wy, wz = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    for (i, j), product in zip(((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)), (wx, wy, wz, xy, xz, yz), strict=True):
        products[:, i, j] = products[:, j, i] = product
    chosen = products[np.arange(len(m)), largest]
    quaternions: Numbers = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
    return np.where(quaternions[:, :1] < 0, -quaternions, quaternions)
