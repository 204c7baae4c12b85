"""The arm's kinematics and limits against the maker's tables, written down here a second time."""

from __future__ import annotations

import importlib.util
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from franka_cases import MakeScene
from rlspec_envs.franka.robots import HOME
from rlspec_envs.franka.rotations import continuous_axis_angle, quaternion_of, rotation_matrix, rotation_vector

# Franka's Denavit-Hartenberg parameters in Craig's convention: a, d, alpha of joints 1 to 7.
CRAIG = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -math.pi / 2),
    (0.0, 0.316, math.pi / 2),
    (0.0825, 0.0, math.pi / 2),
    (-0.0825, 0.384, -math.pi / 2),
    (0.0, 0.0, math.pi / 2),
    (0.088, 0.0, math.pi / 2),
)
LIMITS = {
    "panda": (
        (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
        (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
    ),
    "fr3": (
        (-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
        (2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
    ),
}


def _turn(axis: str, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.eye(4)
    if axis == "x":
        matrix[1:3, 1:3] = [[cos, -sin], [sin, cos]]
    else:
        matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    return matrix


def _shift(x: float = 0.0, z: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3], matrix[2, 3] = x, z
    return matrix


def tool_pose(joints: np.ndarray) -> np.ndarray:
    """Product of the seven link transforms, flange, hand (turned by -45 degrees) and tool centre point."""
    pose = np.eye(4)
    for (a, d, alpha), theta in zip(CRAIG, joints, strict=True):
        pose = pose @ _turn("x", alpha) @ _shift(x=a) @ _turn("z", theta) @ _shift(z=d)
    return pose @ _shift(z=0.107) @ _turn("z", -math.pi / 4) @ _shift(z=0.1034)


@pytest.mark.parametrize("robot", ["fr3", "panda"])
def test_forward_kinematics_is_the_product_of_denavit_hartenberg_transforms(scene: MakeScene, robot: str) -> None:
    world = scene(robot=robot).world
    low, high = np.array(LIMITS[robot])
    for joints in np.random.default_rng(0).uniform(low, high, (50, 7)):
        expected = tool_pose(joints)
        position, rotation = world.kinematics.pose(joints)
        np.testing.assert_allclose(position, expected[:3, 3], atol=1e-9)
        np.testing.assert_allclose(rotation, expected[:3, :3], atol=1e-9)


@pytest.mark.parametrize("robot", ["fr3", "panda"])
def test_joint_limits_are_the_makers(scene: MakeScene, robot: str) -> None:
    world = scene(robot=robot).world
    np.testing.assert_array_equal(world.model.jnt_range[:7].T, LIMITS[robot])
    assert (world.model.jnt_limited[:7] == 1).all()
    space = scene(robot=robot, action_space="joint_position").action_space
    np.testing.assert_allclose(space.low[:7], LIMITS[robot][0], rtol=1e-6)
    np.testing.assert_allclose(space.high[:7], LIMITS[robot][1], rtol=1e-6)


def test_fr3_limits_equal_those_of_menageries_model(scene: MakeScene) -> None:
    package = importlib.util.find_spec("franky_sim")
    if package is None or not package.submodule_search_locations:
        pytest.skip("franky-sim is not installed")
    tree = ElementTree.parse(Path(package.submodule_search_locations[0]) / "assets" / "fr3.xml")
    ranges = {joint.get("name"): joint.get("range") for joint in tree.iter("joint")}
    for i, (low, high) in enumerate(scene().world.model.jnt_range[:7], start=1):
        assert f"{low:g} {high:g}" == ranges[f"fr3_joint{i}"]


def test_episodes_start_at_droids_reset_pose_with_the_hand_down(scene: MakeScene) -> None:
    env = scene(randomise="none")
    env.reset(seed=0)
    droid = np.array([0, -np.pi / 5, 0, -4 * np.pi / 5, 0, 3 * np.pi / 5, 0])
    np.testing.assert_allclose(env.world.joints, droid, atol=1e-12)
    np.testing.assert_allclose(env.world.hand_rotation[:, 2], [0, 0, -1], atol=1e-9)
    jittered = scene()
    places = []
    for seed in range(8):
        jittered.reset(seed=seed)
        places.append(jittered.world.tcp - env.world.tcp)
        assert jittered.world.hand_rotation[2, 2] < np.cos(np.pi - 0.08), "the hand is moved, not turned"
    reach = np.abs(places).max(0)
    assert (reach > 0.03).all() and (reach < 0.08 + 0.03).all(), "8 cm, and what 0.02 rad per joint add"


def test_the_arm_stands_still_without_gravity_pulling_it_down(scene: MakeScene) -> None:
    env = scene(randomise="none")
    env.reset(seed=0)
    for _ in range(20):
        env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert np.abs(env.world.joints - HOME).max() < 1e-4


@pytest.mark.parametrize("robot", ["fr3", "panda"])
def test_inverse_kinematics_reaches_nearby_poses_within_the_limits(scene: MakeScene, robot: str) -> None:
    kinematics = scene(robot=robot).world.kinematics
    rng = np.random.default_rng(1)
    for _ in range(20):
        position, rotation = kinematics.pose(np.array(HOME))
        position = position + rng.uniform(-0.05, 0.05, 3)
        rotation = rotation_matrix(rng.uniform(-0.3, 0.3, 3)) @ rotation
        joints = kinematics.solve(np.array(HOME), position, rotation, iterations=8)
        reached, turned = kinematics.pose(joints)
        assert np.linalg.norm(reached - position) < 1e-3
        assert np.linalg.norm(rotation_vector(rotation @ turned.T)) < 5e-3
        assert (joints >= LIMITS[robot][0]).all() and (joints <= LIMITS[robot][1]).all()
    far = kinematics.solve(np.array(HOME), np.array([3.0, 0, 0]), np.eye(3), iterations=8)
    assert (far >= LIMITS[robot][0]).all() and (far <= LIMITS[robot][1]).all()


def test_the_axis_angle_of_a_hand_that_points_down_does_not_jump() -> None:
    down = np.diag([1.0, -1.0, -1.0])
    reference = quaternion_of(down)
    vectors = np.array(
        [continuous_axis_angle(rotation_matrix([tilt, 0, 0]) @ down, reference) for tilt in np.linspace(-0.3, 0.3, 61)]
    )
    assert np.abs(np.diff(vectors, axis=0)).max() < 0.02
    np.testing.assert_allclose(vectors[:, 0], np.pi + np.linspace(-0.3, 0.3, 61), atol=1e-9)
    for vector in vectors:
        np.testing.assert_allclose(rotation_matrix(vector), rotation_matrix(rotation_vector(rotation_matrix(vector))))
