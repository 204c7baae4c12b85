"""What an arm is told before it moves, and what it says of that: contacts, load, tool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlspec.deploy.robots.robotiq import DROID_FORCE, DROID_SPEED, DROID_STROKE


@dataclass(frozen=True)
class FrankySettings:
    """How to treat an arm.

    Attributes:
        torque_threshold: Nm at which a joint's contact becomes a reflex (DROID's).
        force_threshold: N at which a contact of the hand becomes a reflex (DROID's).
        gripper: "franka": Franka's hand; "robotiq": a 2F-85 at `gripper_port`; "none".
        gripper_port: Serial port of a Robotiq hand.
        gripper_stroke: Its positions open and closed; None: measured at the start, with an empty hand.
        gripper_speed, gripper_force: 0 to 1 of what a Robotiq hand can.
        payload_mass: kg of what the hand's entry in Desk does not hold; None: what Desk says.
        payload_centre: Metres from the flange to its centre of mass.
        payload_inertia: kg m^2 about it, row by row; it is symmetric.
        tool: Metres along z from Desk's nominal end effector frame to the one that laws are about; None: Desk's.
        realtime: Refuse a kernel without real-time priority.
        recovery: Seconds that `recover` waits for the robot before it says "not yet".
        patience: Seconds without a state after which the connection counts as lost.
    """

    torque_threshold: float = 40.0
    force_threshold: float = 40.0
    gripper: str = "franka"
    gripper_port: str = "/dev/ttyUSB0"
    gripper_stroke: tuple[int, int] | None = DROID_STROKE
    gripper_speed: float = DROID_SPEED
    gripper_force: float = DROID_FORCE
    payload_mass: float | None = None
    payload_centre: Sequence[float] = (0.0, 0.0, 0.0)
    payload_inertia: Sequence[float] = (0.0,) * 9
    tool: float | None = None
    realtime: bool = True
    recovery: float = 1.0
    patience: float = 0.25


def treat(robot: Any, settings: FrankySettings) -> None:
    """Tell the arm; what is None is left as Desk has it. Raises what franky raises.

    Args:
        robot: franky.Robot.
        settings: How to treat it.
    """
    robot.set_collision_behavior(float(settings.torque_threshold), float(settings.force_threshold))
    if settings.payload_mass is not None:  # as lists of floats: franky takes no whole numbers
        centre, inertia = map(float, settings.payload_centre), map(float, settings.payload_inertia)
        robot.set_load(float(settings.payload_mass), list(centre), list(inertia))
    if settings.tool is not None:
        columns = (
            (1.0, 0.0, 0.0, 0.0),
            (0.0, 1.0, 0.0, 0.0),
            (0.0, 0.0, 1.0, 0.0),
            (0.0, 0.0, float(settings.tool), 1.0),
        )
        robot.set_ee([number for column in columns for number in column])


def described(state: Any, settings: FrankySettings) -> tuple[str, ...]:
    """For the confirmation, a line each: thresholds as set, the rest as the arm reports it.

    Args:
        state: franky.RobotState.
        settings: How it was treated.
    """
    place = [float(number) for number in state.F_T_EE.translation.reshape(-1)]
    centre = [float(number) for number in state.F_x_Cload]
    load = f"{state.m_ee:.2f} kg by Desk; payload {state.m_load:.2f} kg"
    show = lambda values: " ".join(f"{value:+.3f}" for value in values)  # noqa: E731
    return (
        f"contacts   a joint from {settings.torque_threshold:g} Nm, the hand from {settings.force_threshold:g} N",
        f"hand       {settings.gripper}, {load} at {show(centre)} m",
        f"tool frame {show(place)} m from the flange",
    )
