"""Poses as DROID writes them, beside scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rlspec.contract import droid


@pytest.mark.parametrize("seed", range(3))
def test_euler_angles_are_scipys(seed: int) -> None:
    for rotation in Rotation.random(200, rng=seed):
        np.testing.assert_allclose(droid.euler_angles(rotation.as_matrix()), rotation.as_euler("xyz"), atol=1e-12)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_euler_angles_in_gimbal_lock_are_the_same_rotation(pitch: float) -> None:
    rotation = Rotation.from_euler("xyz", [0.4, pitch, -0.9]).as_matrix()
    again = Rotation.from_euler("xyz", droid.euler_angles(rotation)).as_matrix()
    np.testing.assert_allclose(again, rotation, atol=1e-9)
