"""Execution laws: how a target becomes motion. Parameters as data, and the impedance laws' own formula.

The same action moves a robot at speeds that differ by a factor of two between laws, so a policy names its law. Tests
integrate each law's formula (tests/deploy/law_prediction.py) and compare it with what the driver makes the arm do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlspec.contract.actions import DROID_HYBRID, JOINT_IMPEDANCE, RUCKIG, VELOCITY_LAW

Array = NDArray[np.float64]


def _vector(*values: float) -> Array:
    vector = np.asarray(values, dtype=np.float64)
    vector.flags.writeable = False
    return vector


@dataclass(frozen=True)
class Impedance:
    """Springs and dampers from the joints to the target; the target's velocity is taken as zero.

    Attributes:
        stiffness: Kq, Nm/rad, (7,).
        damping: Kqd, Nm s/rad, (7,).
        cartesian_stiffness: Kx in the base frame at the tool centre point, (6,) N/m and Nm/rad; None: joint space only.
        cartesian_damping: Kxd, (6,) N s/m and Nm s/rad.
        max_delta_tau: Largest change of torque per millisecond, Nm (libfranka's limit is 1).
    """

    stiffness: Array
    damping: Array
    cartesian_stiffness: Array | None = None
    cartesian_damping: Array | None = None
    max_delta_tau: float = 1.0


@dataclass(frozen=True)
class JerkLimited:
    """Time-optimal motion within a share of the robot's limits (Ruckig).

    Attributes:
        velocity_factor, acceleration_factor, jerk_factor: Shares of the robot's limits, 0 to 1.
        follows: "position": comes to rest at the target; "velocity": takes on the target's velocity.
    """

    velocity_factor: float = 0.2
    acceleration_factor: float = 0.2
    jerk_factor: float = 0.2
    follows: str = "position"


Law = Impedance | JerkLimited

LAWS: Mapping[str, Law] = MappingProxyType(
    {
        # droid/config/{panda,fr3} (polymetis HybridJointImpedanceControl); fairo's own default Kx is 750
        DROID_HYBRID: Impedance(
            stiffness=_vector(40, 30, 50, 25, 35, 25, 10),
            damping=_vector(4, 6, 5, 5, 3, 2, 1),
            cartesian_stiffness=_vector(400, 400, 400, 15, 15, 15),
            cartesian_damping=_vector(37, 37, 37, 2, 2, 2),
        ),
        # libfranka's joint impedance example
        JOINT_IMPEDANCE: Impedance(
            stiffness=_vector(600, 600, 600, 600, 250, 150, 50),
            damping=_vector(50, 50, 50, 50, 30, 25, 15),
        ),
        RUCKIG: JerkLimited(),
        # Ruckig takes a velocity as it is, whatever share a motion has: it is the filter that bounds it.
        VELOCITY_LAW: JerkLimited(velocity_factor=1.0, follows="velocity"),
    }
)
"""Named as in contract.actions.EXECUTION_LAWS; `stiff_position` belongs to a simulator and is not among them."""


def hybrid_torque(
    q_target: ArrayLike, q: ArrayLike, dq: ArrayLike, jacobian: ArrayLike | None, law: Impedance | None = None
) -> Array:
    """Torque of an impedance law without the gravity and Coriolis terms that the robot adds.

    tau = (J^T Kx J + Kq) (q_target - q) - (J^T Kxd J + Kqd) dq   (polymetis, HybridJointImpedanceControl)

    Args:
        q_target: (7,) rad.
        q: (7,) measured, rad.
        dq: (7,) measured, rad/s.
        jacobian: (6, 7) of the tool centre point in the base frame, translation first; None where the law has no
            Cartesian part.
        law: Its gains; None: DROID's.

    Returns:
        (7,) Nm, neither clipped nor limited in rate.
    """
    gains = law if law is not None else LAWS[DROID_HYBRID]
    assert isinstance(gains, Impedance)
    error = np.asarray(q_target, dtype=np.float64) - np.asarray(q, dtype=np.float64)
    speed = np.asarray(dq, dtype=np.float64)
    torque = gains.stiffness * error - gains.damping * speed
    if gains.cartesian_stiffness is not None and gains.cartesian_damping is not None:
        assert jacobian is not None, "this law has a Cartesian part"
        matrix = np.asarray(jacobian, dtype=np.float64)
        force = gains.cartesian_stiffness * (matrix @ error) - gains.cartesian_damping * (matrix @ speed)
        torque = torque + matrix.T @ force
    return torque
