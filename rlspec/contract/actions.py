"""What the numbers of an action mean: typed action spaces with units and rates, and the laws that execute them.

Data sets, checkpoints, the policy server and the robot's loop name their action space and law by these tables, and
refuse to work together where the names differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Closure = TypeVar("Closure", float, "NDArray[np.float64]")

ActionSpaceName = Literal["joint_position", "joint_velocity", "cartesian_position", "cartesian_velocity", "delta_eef"]
JOINT_POSITION: ActionSpaceName = "joint_position"
JOINT_VELOCITY: ActionSpaceName = "joint_velocity"
CARTESIAN_POSITION: ActionSpaceName = "cartesian_position"
CARTESIAN_VELOCITY: ActionSpaceName = "cartesian_velocity"
DELTA_EEF: ActionSpaceName = "delta_eef"

ExecutionLaw = Literal["droid_hybrid", "joint_impedance", "ruckig", "joint_velocity", "stiff_position"]
DROID_HYBRID: ExecutionLaw = "droid_hybrid"
JOINT_IMPEDANCE: ExecutionLaw = "joint_impedance"
RUCKIG: ExecutionLaw = "ruckig"
VELOCITY_LAW: ExecutionLaw = "joint_velocity"
STIFF_POSITION: ExecutionLaw = "stiff_position"

DROID_HZ = 15.0
LIBERO_HZ = 20.0

JOINT_NAMES = tuple(f"joint{i}" for i in range(1, 8))
_POSE = ("x", "y", "z", "roll", "pitch", "yaw")


@dataclass(frozen=True)
class ActionSpace:
    """One meaning of an action vector.

    Attributes:
        name: Key of `ACTION_SPACES`.
        names: Of the numbers, in order; the last one is the gripper.
        units: Of the numbers: "rad", "m", "unitless" (a share of the largest step) or "closure".
        low, high: Of each number; for joint angles in radians the robot's own limits go before these.
        gripper: Value of the gripper's number for (open, closed).
        control_hz: Rate by convention.
        about: One line that says what one unit does.
    """

    name: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    gripper: tuple[float, float]
    control_hz: float
    about: str

    @property
    def size(self) -> int:
        """How many numbers an action has."""
        return len(self.names)

    def closure(self, number: float) -> float:
        """How far the gripper's number closes it, 0 open to 1 closed; numbers beyond the range are cut."""
        opened, closed = self.gripper
        return min(1.0, max(0.0, (number - opened) / (closed - opened)))

    def gripper_number(self, closure: Closure) -> Closure:
        """The gripper's number for a closure, 0 open to 1 closed."""
        opened, closed = self.gripper
        return opened + closure * (closed - opened)

    def hold(self, joints: Iterable[float], closure: float) -> list[float]:
        """The action that leaves a robot where it is.

        Args:
            joints: Seven, measured, radians.
            closure: Measured, 0 open to 1 closed.

        Raises:
            ValueError: The robot's pose would have to be known.
        """
        if self.name == CARTESIAN_POSITION:
            raise ValueError(f"{self.name}: joints do not tell the pose to hold")
        arm = [0.0] * (self.size - 1) if self.name in RELATIVE_SPACES else map(float, joints)
        return [*arm, self.gripper_number(min(1.0, max(0.0, closure)))]


def _space(
    name: str,
    names: tuple[str, ...],
    units: tuple[str, ...],
    reach: tuple[float, ...],
    about: str,
    *,
    control_hz: float = DROID_HZ,
    gripper: tuple[float, float] = (0.0, 1.0),
) -> ActionSpace:
    low = (*(-bound for bound in reach), min(gripper))
    high = (*reach, max(gripper))
    return ActionSpace(name, (*names, "gripper"), (*units, "closure"), low, high, gripper, control_hz, about)


_PI = 3.141592653589793
_UNITLESS = ("unitless",)
ACTION_SPACES: dict[str, ActionSpace] = {
    space.name: space
    for space in (
        _space(
            JOINT_POSITION,
            JOINT_NAMES,
            ("rad",) * 7,
            (_PI,) * 5 + (4.7, _PI),
            "seven joint angles in radians",
        ),
        _space(
            JOINT_VELOCITY,
            JOINT_NAMES,
            _UNITLESS * 7,
            (1.0,) * 7,
            "DROID: one unit puts a joint's target 0.2 rad from where the joint is measured; it is not rad/s",
        ),
        _space(
            CARTESIAN_POSITION,
            _POSE,
            ("m",) * 3 + ("rad",) * 3,
            (2.0,) * 3 + (_PI,) * 3,
            "DROID: pose of the flange in the base frame, extrinsic xyz Euler angles",
        ),
        _space(
            CARTESIAN_VELOCITY,
            _POSE,
            _UNITLESS * 6,
            (1.0,) * 6,
            "DROID: one unit moves the flange's target by 0.075 m or 0.15 rad from where the flange is measured",
        ),
        _space(
            DELTA_EEF,
            ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z"),
            _UNITLESS * 6,
            (1.0,) * 6,
            "LIBERO: one unit moves the hand's target by 0.05 m or 0.5 rad (rotation vector, base frame)",
            control_hz=LIBERO_HZ,
            gripper=(-1.0, 1.0),
        ),
    )
}

DROID_SPACES = (JOINT_POSITION, JOINT_VELOCITY, CARTESIAN_POSITION, CARTESIAN_VELOCITY)
"""Those that DROID records, and RoboArena's servers may have."""

RELATIVE_SPACES = (JOINT_VELOCITY, CARTESIAN_VELOCITY, DELTA_EEF)
"""Those in which zeros leave the arm where it is measured."""

SIMULATED_SPACES = (JOINT_VELOCITY, JOINT_POSITION, DELTA_EEF)
"""Those of `rlspec_envs`, which has tables of its own; a test compares them."""

MAX_JOINT_STEP = 0.2
"""Radians of one unit of `joint_velocity` (droid, RobotIKSolver.max_joint_delta)."""

MAX_CARTESIAN_STEP = (0.075, 0.15)
"""Metres and radians of one unit of `cartesian_velocity` (droid, RobotIKSolver)."""

DELTA_EEF_STEP = (0.05, 0.5)
"""Metres and radians of one unit of `delta_eef` (robosuite's OSC_POSE, as LIBERO sets it)."""

EXECUTION_LAWS: dict[str, str] = {
    DROID_HYBRID: "DROID's hybrid joint impedance: soft joint and Cartesian springs to the target, no feed-forward",
    JOINT_IMPEDANCE: "stiff joint springs to the target",
    RUCKIG: "time-optimal, jerk-limited motion to the target, replanned with each new one",
    VELOCITY_LAW: "joint velocities in rad/s that expire by themselves",
    STIFF_POSITION: "the simulator's own stiff position servo (data generated in simulation)",
}
"""How a target becomes motion. The same action moves a robot at speeds that differ by a factor of two."""
