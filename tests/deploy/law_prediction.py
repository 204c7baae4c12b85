"""The motion that an execution law predicts, from its formula alone: what simulated arms are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlspec.deploy.arm.jerk_limited import Profile, Reference
from rlspec.deploy.arm.laws import LAWS, Impedance, JerkLimited, Law, hybrid_torque

Array = NDArray[np.float64]
CONTROL_RATE = 1000  # Hz of the robot's own loop


@dataclass(frozen=True)
class Plant:
    """An arm whose gravity and Coriolis torques are compensated, as far as a prediction needs it.

    Attributes:
        inertia: (7, 7) kg m^2 at joint angles (7,), armature included.
        jacobian: (6, 7) of the tool centre point at joint angles.
        damping: Viscous, Nm s/rad, (7,).
        friction: Dry, Nm, (7,).
        torque: Largest, Nm, (7,).
    """

    inertia: Callable[[Array], Array]
    jacobian: Callable[[Array], Array]
    damping: Array
    friction: Array
    torque: Array


@dataclass(frozen=True)
class Motion:
    """A predicted motion at 1 kHz: seconds (T,), joint angles (T, 7) rad, velocities (T, 7) rad/s."""

    time: Array
    joints: Array
    velocities: Array


Policy = Callable[[Array, Array], tuple[ArrayLike, ArrayLike]]
"""Measured joints and velocities -> target (7,) rad and the velocity (7,) rad/s with which it moves."""


def predict(
    law: str | Law,
    policy: Policy,
    start: ArrayLike,
    *,
    control_hz: float,
    steps: int,
    plant: Plant | None = None,
    profile: Profile | None = None,
    servo: Impedance | None = None,
) -> Motion:
    """Integrate a law's own formula under a policy that sends a target `control_hz` times a second.

    Args:
        law: Key of `LAWS`, or gains.
        policy: Gives the targets.
        start: (7,) rad; the arm is at rest.
        control_hz: Rate of the policy.
        steps: Targets to send.
        plant: For impedance laws, and with `servo`.
        profile: The robot's full limits of velocity, acceleration and jerk, for jerk-limited laws.
        servo: Joint gains of the inner controller that follows a jerk-limited reference; None: it follows exactly.
    """
    gains = LAWS[law] if isinstance(law, str) else law
    if isinstance(gains, Impedance):
        assert plant is not None, "an impedance law needs a plant"
        advance = _impedance_step(gains, plant)
    else:
        assert profile is not None, "a jerk-limited law needs the robot's limits"
        advance = _reference_step(gains, profile)
        if servo is not None and plant is not None:
            advance = _servo_step(advance, gains, servo, plant)
    q: Array = np.array(start, dtype=np.float64)
    dq: Array = np.zeros(7)
    ticks = round(steps * CONTROL_RATE / control_hz)
    joints, velocities = np.empty((ticks, 7)), np.empty((ticks, 7))
    sent = -1
    target: tuple[Array, Array] = (q.copy(), dq.copy())
    for tick in range(ticks):
        if (due := int(tick * control_hz / CONTROL_RATE)) != sent:
            sent = due
            wanted, moving = policy(q.copy(), dq.copy())
            target = (np.array(wanted, dtype=np.float64), np.array(moving, dtype=np.float64))
        q, dq = advance(q, dq, *target)
        joints[tick], velocities[tick] = q, dq
    return Motion((1 + np.arange(ticks)) / CONTROL_RATE, joints, velocities)


Step = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def _impedance_step(law: Impedance, plant: Plant) -> Step:
    """One millisecond of M ddq = tau - damping dq - friction, with the change of torque limited as in the driver."""
    torque: Array = np.zeros(7)

    def advance(q: Array, dq: Array, target: Array, _: Array) -> tuple[Array, Array]:
        nonlocal torque
        wanted = hybrid_torque(target, q, dq, plant.jacobian(q), law)
        change = np.clip(wanted - torque, -law.max_delta_tau, law.max_delta_tau)
        torque = np.clip(torque + change, -plant.torque, plant.torque)
        inertia = plant.inertia(q)
        return _slide(q, dq, torque, inertia, plant)

    return advance


def _servo_step(follow: Step, law: JerkLimited, servo: Impedance, plant: Plant) -> Step:
    """One millisecond of an inner controller that holds the arm to a reference."""
    reference: tuple[Array, Array] | None = None

    def advance(q: Array, dq: Array, target: Array, velocity: Array) -> tuple[Array, Array]:
        nonlocal reference
        reference = follow(*(reference or (q, dq)), target, velocity)
        if law.follows == "velocity":
            torque = servo.damping * (reference[1] - dq)
        else:
            torque = servo.stiffness * (reference[0] - q) - servo.damping * dq
        return _slide(q, dq, np.clip(torque, -plant.torque, plant.torque), plant.inertia(q), plant)

    return advance


def _slide(q: Array, dq: Array, torque: Array, inertia: Array, plant: Plant) -> tuple[Array, Array]:
    """Joints and velocities a millisecond on: implicit in the viscous friction, and dry friction never turns one round.

    The velocity is argmin of v'Mv/2 - p'v + impulse |v|, by Gauss-Seidel over the joints.
    """
    period = 1.0 / CONTROL_RATE
    matrix = inertia + period * np.diag(plant.damping)
    momentum = inertia @ dq + period * torque
    impulse = period * plant.friction
    speed: Array = np.asarray(np.linalg.solve(matrix, momentum), dtype=np.float64)
    if np.any(impulse > 0):
        for _ in range(12):
            for joint in range(7):
                free = momentum[joint] - matrix[joint] @ speed + matrix[joint, joint] * speed[joint]
                speed[joint] = np.sign(free) * max(abs(free) - impulse[joint], 0.0) / matrix[joint, joint]
    return q + period * speed, speed


def _reference_step(law: JerkLimited, profile: Profile) -> Step:
    limits = profile.scaled(law.velocity_factor, law.acceleration_factor, law.jerk_factor)
    reference: Reference | None = None

    def advance(q: Array, dq: Array, target: Array, velocity: Array) -> tuple[Array, Array]:
        nonlocal reference
        reference = reference or Reference(limits, q, dq)
        if law.follows == "velocity":
            reference.follow_velocity(velocity, 1.0 / CONTROL_RATE)
        else:
            reference.follow_position(target, 1.0 / CONTROL_RATE)
        return reference.joints.copy(), reference.velocities.copy()

    return advance
