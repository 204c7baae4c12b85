"""The simulated arm under execution laws, against other ways of computing the same motion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from law_prediction import Plant, predict
from numpy.typing import NDArray
from rlspec_envs import make_env, make_expert
from rlspec_envs.franka.robots import FINGER_BASE, FINGER_STROKE, FLANGE_OFFSET, HAND_YAW, HOME, LINKS, ROBOTS

from rlspec.deploy.arm.interfaces import Command
from rlspec.deploy.robots.mujoco import MujocoRobot

Array = NDArray[np.float64]
TCP = FLANGE_OFFSET + 0.1034
ARMATURE = np.array([0.2] * 4 + [0.08] * 3)


def turn(axis: int, angle: float) -> Array:
    c, s = math.cos(angle), math.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def chain(q: Array) -> list[tuple[Array, Array]]:
    """Frames of the seven links from the maker's published tables."""
    frames, rotation, place = [], np.eye(3), np.zeros(3)
    for link, angle in zip(LINKS, q, strict=True):
        place = place + rotation @ np.array(link.xyz)
        rotation = rotation @ turn(0, link.roll) @ turn(2, angle)
        frames.append((rotation, place))
    return frames


def jacobian(q: Array, point: Array | None = None, links: int = 7) -> Array:
    frames = chain(q)
    rotation, place = frames[-1]
    point = place + rotation @ [0, 0, TCP] if point is None else point
    columns = np.zeros((6, 7))
    for joint in range(links):
        axis = frames[joint][0][:, 2]
        columns[:, joint] = np.concatenate([np.cross(axis, point - frames[joint][1]), axis])
    return columns


def inertia(q: Array) -> Array:
    """Sum of J' m J + J' I J over all bodies: links, hand and the two open fingers."""
    frames = chain(q)
    total = np.diag(ARMATURE).astype(float)

    def add(links: int, rotation: Array, place: Array, mass: float, tensor: Array) -> None:
        columns = jacobian(q, place, links)
        about = rotation @ tensor @ rotation.T
        total[:] += mass * columns[:3].T @ columns[:3] + columns[3:].T @ about @ columns[3:]

    for number, (link, (rotation, place)) in enumerate(zip(LINKS, frames, strict=True), 1):
        xx, yy, zz, xy, xz, yz = link.inertia
        tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        add(number, rotation, place + rotation @ np.array(link.com), link.mass, tensor)
    rotation, place = frames[-1]
    hand = rotation @ turn(2, HAND_YAW)
    origin = place + rotation @ [0, 0, FLANGE_OFFSET]
    add(7, hand, origin + hand @ [0, 0, 0.0207], 0.6544, np.diag([0.00186, 0.0003, 0.00174]))
    for side in (1, -1):
        centre = origin + hand @ [0, side * (FINGER_STROKE + 0.015), FINGER_BASE + 0.022]
        add(7, hand, centre, 0.05, np.diag([2e-5, 2e-5, 5e-6]))
    return total


@pytest.mark.parametrize("law", ["droid_hybrid", "joint_impedance"])
def test_torque_laws_move_the_arm_as_their_formula_integrated_elsewhere(law: str) -> None:
    velocity = np.array([0.3, -0.2, 0.25, 0.4, -0.3, 0.2, 0.5])
    plant = Plant(inertia, jacobian, np.full(7, 0.5), np.zeros(7), np.array(ROBOTS["fr3"].max_torque))
    expected = predict(law, lambda q, _: (q + 0.2 * velocity, velocity), HOME, control_hz=10.0, steps=6, plant=plant)

    robot = MujocoRobot(images=False, randomise="none")
    robot.connect(law, 10.0)
    robot.start_from(np.array(HOME))
    measured = []
    for step in range(6):
        robot.command(Command(robot.read().joints + 0.2 * velocity, velocity, 1.0))
        robot.clock.sleep_until((step + 1) / 10)
        measured.append(robot.read())
    robot.close()
    predicted = expected.joints[99::100]
    moved = np.abs(predicted[-1] - HOME)
    assert moved.min() > 0.01, "a prediction that stands still proves nothing"
    joints = np.stack([state.joints for state in measured])
    np.testing.assert_allclose(joints, predicted, atol=2e-3 * moved.max())
    speeds = np.stack([state.velocities for state in measured])
    np.testing.assert_allclose(speeds, expected.velocities[99::100], atol=1e-2 * np.abs(speeds).max())


def test_the_stiff_servo_is_that_of_the_environment_bit_for_bit() -> None:
    env = make_env("franka", "pick_place", action_space="joint_velocity")
    env.unwrapped.render_observations = False  # type: ignore[attr-defined]
    env.reset(seed=3)
    expert = make_expert(env)
    robot = MujocoRobot(seed=3, images=False)
    robot.connect("stiff_position", 15.0)
    for step in range(25):
        action = expert.act().astype(np.float64)
        env.step(action)
        robot.command(Command(robot.read().joints + 0.2 * action[:7], np.zeros(7), 1.0))
        robot.grip(float(action[7] > 0.5))
        robot.clock.sleep_until((step + 1) / 15.0)
        np.testing.assert_array_equal(robot.read().joints, env.unwrapped.world.joints)  # type: ignore[attr-defined]
    env.close()
    robot.close()


def test_the_same_action_moves_the_arm_at_another_speed_under_another_law() -> None:
    """0.3 units of joint 1 are nominally 0.9 rad/s. Without dry friction the laws are closer than on a robot."""
    speeds = {}
    for law in MujocoRobot.laws:
        robot = MujocoRobot(images=False)
        robot.connect(law, 15.0)
        robot.start_from(np.array(HOME))
        for step in range(30):
            target = robot.read().joints.copy()
            target[0] += 0.2 * 0.3
            robot.command(Command(target, np.zeros(7), 0.2))
            robot.clock.sleep_until((step + 1) / 15)
        speeds[law] = float(robot.read().joints[0] / 2.0)
        robot.close()
    assert 0.2 < speeds["droid_hybrid"] < 0.5
    assert speeds["droid_hybrid"] < 0.95 * min(speeds["joint_impedance"], speeds["stiff_position"])
