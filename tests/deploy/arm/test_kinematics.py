"""Pure-numpy kinematics against MuJoCo's, on the simulation's model and on franky-sim's."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import mujoco
import numpy as np
import pytest
from rlspec_envs.franka.kinematics import Kinematics
from rlspec_envs.franka.robots import HOME as SIMULATED_HOME
from rlspec_envs.franka.robots import ROBOTS
from rlspec_envs.franka.rotations import rotation_matrix as mujoco_matrix
from rlspec_envs.franka.rotations import rotation_vector as mujoco_vector
from rlspec_envs.franka.scene import build_model

from rlspec.contract.droid import euler_matrix
from rlspec.deploy.arm.kinematics import (
    HOME,
    POINTS,
    forward,
    hand_points,
    jacobian,
    points,
    rotation_matrix,
    rotation_vector,
    solve,
)

LOW, HIGH = np.array(ROBOTS["fr3"].low), np.array(ROBOTS["fr3"].high)


@pytest.fixture(scope="module")
def simulated() -> tuple[mujoco.MjModel, Kinematics]:
    model = build_model(ROBOTS["fr3"], "primitive", 0.002, lambda spec: None)
    return model, Kinematics(model, ROBOTS["fr3"])


def poses(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LOW, HIGH, (count, 7))


def test_forward_is_mujocos(simulated: tuple[mujoco.MjModel, Kinematics]) -> None:
    joints = poses(200)
    positions, rotations = forward(joints)
    for q, position, rotation in zip(joints, positions, rotations, strict=True):
        expected = simulated[1].pose(q)
        np.testing.assert_allclose(position, expected[0], atol=1e-9)
        np.testing.assert_allclose(rotation, expected[1], atol=1e-9)
        np.testing.assert_allclose(forward(q)[0], position, atol=1e-12)


def test_home_is_the_simulations_and_points_down() -> None:
    np.testing.assert_array_equal(HOME, SIMULATED_HOME)
    np.testing.assert_allclose(forward(HOME)[1][:, 2], [0, 0, -1], atol=1e-12)


def test_jacobian_is_mujocos(simulated: tuple[mujoco.MjModel, Kinematics]) -> None:
    model, _ = simulated
    data, expected = mujoco.MjData(model), np.zeros((6, model.nv))
    for q in poses(50):
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, expected[:3], expected[3:], model.site("tcp").id)
        np.testing.assert_allclose(jacobian(q), expected[:, :7], atol=1e-9)


@pytest.mark.parametrize("length", [0.1034, 0.177])
def test_points_are_mujocos(simulated: tuple[mujoco.MjModel, Kinematics], length: float) -> None:
    model, _ = simulated
    data = mujoco.MjData(model)
    for q, found in zip(poses(50), points(poses(50), hand_points(length)), strict=True):
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        link4, hand = data.body("link4"), data.body("hand")
        turned = hand.xmat.reshape(3, 3)
        expected = {
            "elbow": link4.xpos,
            "elbow_back": link4.xpos - 0.0825 * link4.xmat.reshape(3, 3)[:, 0],
            "wrist": data.body("link5").xpos,
            "joint7": data.body("link7").xpos,
            "flange": hand.xpos,
            "hand_left": hand.xpos + turned @ [0, 0.1, 0.066],
            "hand_right": hand.xpos + turned @ [0, -0.1, 0.066],
            "tcp": data.site("tcp").xpos + (length - 0.1034) * turned[:, 2],
        }
        np.testing.assert_allclose(found.T, [expected[name] for name in POINTS], atol=1e-9)


def test_forward_is_the_descriptions() -> None:
    """The chain of joint origins in the URDF that the robot (and franky-sim) reports."""
    franky_sim = pytest.importorskip("franky_sim")
    root = ElementTree.parse(Path(franky_sim.__file__).parent / "assets" / "fr3.urdf").getroot()
    origins = {joint.get("name"): joint.find("origin") for joint in root.iter("joint")}
    chain = [f"fr3_joint{i}" for i in range(1, 9)] + ["fr3_hand_joint", "fr3_hand_tcp_joint"]
    for q in poses(20):
        pose = np.eye(4)
        for i, name in enumerate(chain):
            place = np.eye(4)
            place[:3, 3] = [float(number) for number in origins[name].get("xyz").split()]
            place[:3, :3] = euler_matrix(np.array([float(number) for number in origins[name].get("rpy").split()]))
            turn = np.eye(4)
            turn[:3, :3] = rotation_matrix(np.array([0.0, 0.0, q[i] if i < 7 else 0.0]))
            pose = pose @ place @ turn
        position, rotation = forward(q)
        np.testing.assert_allclose(position, pose[:3, 3], atol=1e-6)
        np.testing.assert_allclose(rotation, pose[:3, :3], atol=1e-6)


def test_solve_is_the_simulations(simulated: tuple[mujoco.MjModel, Kinematics]) -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        q = np.clip(HOME + random.normal(0, 0.3, 7), LOW, HIGH)
        position, rotation = forward(q)
        position = position + random.normal(0, 0.03, 3)
        rotation = rotation_matrix(random.normal(0, 0.2, 3)) @ rotation
        expected = simulated[1].solve(q, position, rotation)
        np.testing.assert_allclose(solve(q, position, rotation, low=LOW, high=HIGH), expected, atol=1e-7)


def test_solve_reaches() -> None:
    wanted = HOME + np.array([0.1, -0.1, 0.05, 0.1, -0.05, 0.1, 0.2])
    position, rotation = forward(wanted)
    reached = forward(solve(HOME, position, rotation, iterations=20))
    np.testing.assert_allclose(reached[0], position, atol=1e-4)
    np.testing.assert_allclose(reached[1], rotation, atol=1e-3)


@pytest.mark.parametrize("length", [0.0, 1e-9, 0.3, 2.0, 3.14159, np.pi])
def test_rotations_are_mujocos(length: float) -> None:
    random = np.random.default_rng(2)
    for _ in range(30):
        axis = random.normal(size=3)
        vector = length * axis / np.linalg.norm(axis)
        matrix = rotation_matrix(vector)
        np.testing.assert_allclose(matrix, mujoco_matrix(vector), atol=1e-9)
        np.testing.assert_allclose(rotation_matrix(rotation_vector(matrix)), matrix, atol=1e-7)
        if length < 3.0:
            np.testing.assert_allclose(rotation_vector(matrix), mujoco_vector(matrix), atol=1e-7)


def test_euler_angles_turn_about_fixed_axes() -> None:
    roll, pitch, yaw = 0.3, -0.7, 2.0
    about = [rotation_matrix(angle * axis) for angle, axis in zip((roll, pitch, yaw), np.eye(3), strict=True)]
    np.testing.assert_allclose(euler_matrix(np.array([roll, pitch, yaw])), about[2] @ about[1] @ about[0], atol=1e-12)
