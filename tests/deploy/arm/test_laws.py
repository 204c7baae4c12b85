"""The laws' formulas against plain loops, and the motions that they predict against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from law_prediction import Plant, predict

from rlspec.contract.actions import EXECUTION_LAWS
from rlspec.deploy.arm.jerk_limited import Profile, Reference, stopping_distance
from rlspec.deploy.arm.laws import LAWS, Impedance, hybrid_torque

PROFILE = Profile(np.full(7, 2.0), np.full(7, 10.0), np.full(7, 1000.0))


def loop_torque(target: list[float], q: list[float], dq: list[float], jacobian: list[list[float]]) -> list[float]:
    """DROID's law with the matrices J^T K J written out, number by number."""
    kq, kqd = [40, 30, 50, 25, 35, 25, 10], [4, 6, 5, 5, 3, 2, 1]
    kx, kxd = [400, 400, 400, 15, 15, 15], [37, 37, 37, 2, 2, 2]
    torque = []
    for row in range(7):
        total = 0.0
        for column in range(7):
            stiffness = sum(jacobian[k][row] * kx[k] * jacobian[k][column] for k in range(6))
            damping = sum(jacobian[k][row] * kxd[k] * jacobian[k][column] for k in range(6))
            if row == column:
                stiffness += kq[row]
                damping += kqd[row]
            total += stiffness * (target[column] - q[column]) - damping * dq[column]
        torque.append(total)
    return torque


def test_the_hybrid_torque_is_that_of_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        target, q, dq = generator.uniform(-2, 2, (3, 7))
        jacobian = generator.uniform(-1, 1, (6, 7))
        expected = loop_torque(target.tolist(), q.tolist(), dq.tolist(), jacobian.tolist())
        np.testing.assert_allclose(hybrid_torque(target, q, dq, jacobian), expected, rtol=1e-12, atol=1e-10)


def test_a_law_without_a_cartesian_part_needs_no_jacobian() -> None:
    law = LAWS["joint_impedance"]
    assert isinstance(law, Impedance)
    torque = hybrid_torque(np.full(7, 0.1), np.zeros(7), np.full(7, 0.5), None, law)
    np.testing.assert_allclose(torque, 0.1 * law.stiffness - 0.5 * law.damping)


def test_each_law_of_a_robot_has_parameters() -> None:
    assert set(LAWS) == set(EXECUTION_LAWS) - {"stiff_position"}


def oscillator(friction: float = 0.0) -> Plant:
    return Plant(lambda q: np.eye(7), lambda q: np.zeros((6, 7)), np.zeros(7), np.full(7, friction), np.full(7, 1e3))


def test_an_impedance_on_a_unit_inertia_is_a_damped_oscillator() -> None:
    stiffness, damping = 50.0, 5.0
    law = Impedance(np.full(7, stiffness), np.full(7, damping), max_delta_tau=1e9)
    goal = np.full(7, 0.3)
    motion = predict(law, lambda q, dq: (goal, np.zeros(7)), np.zeros(7), control_hz=15, steps=15, plant=oscillator())
    decay, omega = damping / 2, math.sqrt(stiffness - damping**2 / 4)
    t = motion.time
    exact = 0.3 * (1 - np.exp(-decay * t) * (np.cos(omega * t) + decay / omega * np.sin(omega * t)))
    np.testing.assert_allclose(motion.joints[:, 0], exact, atol=3e-3)


def test_dry_friction_holds_what_the_spring_cannot_move() -> None:
    law = Impedance(np.full(7, 10.0), np.full(7, 1.0), max_delta_tau=1e9)

    def nudge(q: np.ndarray, dq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([0.09, 0.5, 0, 0, 0, 0, 0]), np.zeros(7)

    motion = predict(law, nudge, np.zeros(7), control_hz=15, steps=30, plant=oscillator(friction=1.0))
    assert np.all(motion.joints[:, 0] == 0)  # 0.9 Nm against 1 Nm
    assert motion.joints[-1, 1] > 0.35
    assert 10.0 * abs(0.5 - motion.joints[-1, 1]) <= 1.001  # rests where friction carries the spring


def rest_to_rest(distance: float, v: float, a: float, j: float) -> float:
    """Least time of a jerk-limited motion from rest to rest (Biagiotti and Melchiorri, double S)."""
    if v * j < a * a:
        jerk_time, acceleration_time = math.sqrt(v / j), math.sqrt(v / j)
    else:
        jerk_time, acceleration_time = a / j, v / a
    if distance >= v * (acceleration_time + jerk_time):
        return distance / v + acceleration_time + jerk_time
    if distance < 2 * a**3 / j**2:
        return 4 * (distance / (2 * j)) ** (1 / 3)
    return a / j + math.sqrt((a / j) ** 2 + 4 * distance / a)


@pytest.mark.parametrize("distance", [0.001, 0.01, 0.1, 0.5, 2.0])
def test_a_reference_arrives_in_the_least_time_and_never_overshoots(distance: float) -> None:
    reference = Reference(PROFILE, np.zeros(7), np.zeros(7))
    arrived, positions = 0.0, []
    ticks = int(1000 * rest_to_rest(distance, 2.0, 10.0, 1000.0)) + 60
    for tick in range(ticks):
        reference.follow_position(np.full(7, distance), 0.001)
        positions.append(reference.joints[0])
        assert abs(reference.velocities[0]) <= 2.0 + 1e-6
        assert abs(reference.accelerations[0]) <= 10.0 + 1e-9
        if abs(reference.joints[0] - distance) > 1e-5 + 1e-3 * distance:
            arrived = (tick + 1) / 1000
    assert abs(reference.joints[0] - distance) < 1e-6 and abs(reference.velocities[0]) < 1e-3
    assert max(positions) < distance + 2e-6
    assert arrived == pytest.approx(rest_to_rest(distance, 2.0, 10.0, 1000.0), abs=0.03)


def test_the_stopping_distance_is_that_of_a_simulated_stop() -> None:
    generator = np.random.default_rng(1)
    for _ in range(6):
        v, a = generator.uniform(-2, 2, 7), generator.uniform(-10, 10, 7)
        expected = stopping_distance(v, a, PROFILE)
        reference = Reference(PROFILE, np.zeros(7), v)
        reference.accelerations = a.copy()
        for _ in range(1500):
            reference.follow_velocity(np.zeros(7), 4e-4)
        np.testing.assert_allclose(reference.joints, expected, atol=2e-3)


def test_a_velocity_is_reached_and_kept() -> None:
    speed = np.array([0.3, -0.3, 0.1, 5.0, 0, 0, 0])
    profile = Profile(np.full(7, 2.6), np.full(7, 10.0), np.full(7, 5000.0))
    motion = predict("joint_velocity", lambda q, dq: (q, speed), np.zeros(7), control_hz=15, steps=24, profile=profile)
    np.testing.assert_allclose(motion.velocities[-1, :3], speed[:3], atol=1e-6)
    assert motion.velocities[-1, 3] == pytest.approx(2.6)  # the robot's limit
