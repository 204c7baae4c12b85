"""What the numbers of an action mean: typed action spaces with units and rates, and the laws that execute them.

Data sets, checkpoints, the policy server and the robot's loop name their action space and law by these tables, and
refuse to work together where the names differ.
"""

from __future__ import annotations

from dataclasses import dataclass

_JOINTS = tuple(f"joint{i}" for i in range(1, 8))
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


def _space(
    name: str,
    names: tuple[str, ...],
    units: tuple[str, ...],
    reach: tuple[float, ...],
    about: str,
    *,
    control_hz: float = 15.0,
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
            "joint_position",
            _JOINTS,
            ("rad",) * 7,
            (_PI,) * 5 + (4.7, _PI),
            "seven joint angles in radians",
        ),
        _space(
            "joint_velocity",
            _JOINTS,
            _UNITLESS * 7,
            (1.0,) * 7,
            "DROID: one unit puts a joint's target 0.2 rad from where the joint is measured; it is not rad/s",
        ),
        _space(
            "cartesian_position",
            _POSE,
            ("m",) * 3 + ("rad",) * 3,
            (2.0,) * 3 + (_PI,) * 3,
            "DROID: pose of the hand in the base frame, extrinsic xyz Euler angles",
        ),
        _space(
            "cartesian_velocity",
            _POSE,
            _UNITLESS * 6,
            (1.0,) * 6,
            "DROID: one unit moves the hand's target by 0.075 m or 0.15 rad from where the hand is measured",
        ),
        _space(
            "delta_eef",
            ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z"),
            _UNITLESS * 6,
            (1.0,) * 6,
            "LIBERO: one unit moves the hand's target by 0.05 m or 0.5 rad (rotation vector, base frame)",
            control_hz=20.0,
            gripper=(-1.0, 1.0),
        ),
    )
}

MAX_JOINT_STEP = 0.2
"""Radians of one unit of `joint_velocity` (droid, RobotIKSolver.max_joint_delta)."""

MAX_CARTESIAN_STEP = (0.075, 0.15)
"""Metres and radians of one unit of `cartesian_velocity` (droid, RobotIKSolver)."""

DELTA_EEF_STEP = (0.05, 0.5)
"""Metres and radians of one unit of `delta_eef` (robosuite's OSC_POSE, as LIBERO sets it)."""

EXECUTION_LAWS: dict[str, str] = {
    "droid_hybrid": "DROID's hybrid joint impedance: soft joint and Cartesian springs to the target, no feed-forward",
    "joint_impedance": "stiff joint springs to the target",
    "ruckig": "time-optimal, jerk-limited motion to the target, replanned with each new one",
    "joint_velocity": "joint velocities in rad/s that expire by themselves",
    "stiff_position": "the simulator's own stiff position servo (data generated in simulation)",
}
"""How a target becomes motion. The same action moves a robot at speeds that differ by a factor of two."""
