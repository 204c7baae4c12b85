"""Franky's motions for each execution law, every one with its own end.

A command becomes a motion that replaces the one before, and carries a reaction: when it is older than `expires`, the
driver's real-time loop itself turns it into a controlled stop. That holds where a Python thread could not act: while
another thread keeps the interpreter's lock, and while the process is busy. (A killed process loses its connection, a
frozen one misses the robot's deadlines; then the robot stops by itself.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rlspec.deploy.arm.interfaces import Command
from rlspec.deploy.arm.laws import LAWS, Impedance, JerkLimited
from rlspec.deploy.arm.robot_limits import RobotLimits

LAWS_HERE = tuple(LAWS)
SHORTEST = 0.02  # seconds; a command never expires sooner, or its own start would stop it
_STOP_FACTOR = 0.9  # of the robot's limits, for a stop of a jerk-limited motion
# A stop of a torque-controlled arm: its stiffness fades out within the ramp, dampers take the speed away.
_STOP_RAMP = 0.03
_STOP_DAMPING = (60.0, 80.0, 60.0, 50.0, 12.0, 12.0, 8.0)  # Nm s/rad
_REPULSION = {"activation_distance": 0.1, "stiffness": 4.0, "damping": 1.0, "max_torque": 5.0}  # at a joint's end

Build = Callable[[Command], Any]


def builder(franky: Any, law: str, limits: RobotLimits) -> Build:
    """Return the function that turns a command into franky's motion for a law."""
    gains = LAWS[law]
    if isinstance(gains, Impedance):
        return _impedance(franky, gains, limits, law)
    if gains.follows == "velocity":
        return _velocity(franky, gains, law)
    return _position(franky, gains, law)


def stopper(franky: Any, law: str) -> Any:
    """A motion that brings the arm to rest; of the kind of signal that the law sends."""
    gains = LAWS[law]
    if isinstance(gains, Impedance):
        return franky.TorqueStopMotion(
            damping=np.array(_STOP_DAMPING), ramp_duration=_STOP_RAMP, max_delta_tau=gains.max_delta_tau
        )
    if gains.follows == "velocity":
        return franky.JointVelocityStopMotion(relative_dynamics_factor=_STOP_FACTOR)
    return franky.JointStopMotion(relative_dynamics_factor=_STOP_FACTOR)


def _floats(values: Any) -> list[float]:
    # Franky takes lists of Python floats alone: an int or a numpy scalar among them is a TypeError.
    return [float(value) for value in values]


def _expired(franky: Any, command: Command) -> Any:
    age = franky.Measure.REL_TIME
    return age >= max(float(command.expires), SHORTEST)


def _impedance(franky: Any, gains: Impedance, limits: RobotLimits, law: str) -> Build:
    settings = {
        "stiffness": gains.stiffness.copy(),
        "damping": gains.damping.copy(),
        "compensate_coriolis": True,
        "max_delta_tau": gains.max_delta_tau,
        "lower_joint_limits": limits.low.copy(),
        "upper_joint_limits": limits.high.copy(),
        **{f"joint_limit_{name}": value for name, value in _REPULSION.items()},
    }
    if gains.cartesian_stiffness is not None and gains.cartesian_damping is not None:
        settings["cartesian_stiffness"] = gains.cartesian_stiffness.copy()
        settings["cartesian_damping"] = gains.cartesian_damping.copy()

    def build(command: Command) -> Any:
        motion = franky.JointImpedanceMotion(np.array(command.joints, dtype=np.float64), **settings)
        motion.add_reaction(franky.TorqueReaction(_expired(franky, command), stopper(franky, law)))
        return motion

    return build


def _factor(franky: Any, gains: JerkLimited) -> Any:
    return franky.RelativeDynamicsFactor(gains.velocity_factor, gains.acceleration_factor, gains.jerk_factor)


def _position(franky: Any, gains: JerkLimited, law: str) -> Build:
    def build(command: Command) -> Any:
        motion = franky.JointMotion(
            _floats(command.joints), relative_dynamics_factor=_factor(franky, gains), return_when_finished=False
        )
        motion.add_reaction(franky.JointPositionReaction(_expired(franky, command), stopper(franky, law)))
        return motion

    return build


def _velocity(franky: Any, gains: JerkLimited, law: str) -> Build:
    def build(command: Command) -> Any:
        expires = max(float(command.expires), SHORTEST)
        motion = franky.JointVelocityMotion(
            _floats(command.velocities),
            franky.Duration(int(1000 * expires)),
            relative_dynamics_factor=_factor(franky, gains),
        )
        motion.add_reaction(franky.JointVelocityReaction(_expired(franky, command), stopper(franky, law)))
        return motion

    return build
