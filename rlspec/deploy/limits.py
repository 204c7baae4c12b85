"""Limits of the Franka arms (reference tables; on hardware the connected robot's own go before them)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RobotLimits:
    """What an arm must not exceed, joint by joint.

    Attributes:
        model: "fr3", "fr3_pre_5_9" or "fer".
        low, high: Joint angles, (7,) radians.
        velocity: Largest rad/s, (7,).
        acceleration: rad/s^2, (7,).
        jerk: rad/s^3, (7,).
        envelope: Coefficients o, c, a, b of the FR3's position-dependent velocity limit, (4, 7); None: there is none.
        source: Where the figures come from.
    """

    model: str
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    velocity: NDArray[np.float64]
    acceleration: NDArray[np.float64]
    jerk: NDArray[np.float64]
    envelope: NDArray[np.float64] | None
    source: str
