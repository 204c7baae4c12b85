"""Actions to joint targets: the simulation's controllers and DROID's formulas as oracles, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from rlspec_envs.franka.control import CONTROLLERS
from rlspec_envs.franka.kinematics import Kinematics
from rlspec_envs.franka.robots import ROBOTS
from rlspec_envs.franka.scene import build_model

from rlspec.contract.actions import ACTION_SPACES
from rlspec.contract.droid import euler_angles, euler_matrix
from rlspec.deploy.arm import targets
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import HOME, flange, rotation_vector
from rlspec.deploy.arm.robot_limits import LIMITS
from rlspec.deploy.arm.targets import Targets
from rlspec.errors import ConfigError


def state(joints: np.ndarray = HOME) -> RobotState:
    return RobotState(0.0, joints, np.zeros(7), 0.0)


@pytest.mark.parametrize("space", ["joint_position", "joint_velocity", "delta_eef"])
def test_targets_are_the_simulations(space: str) -> None:
    robot = ROBOTS["fr3"]
    kinematics = Kinematics(build_model(robot, "primitive", 0.002, lambda spec: None), robot)
    world = SimpleNamespace(kinematics=kinematics, robot=robot)
    controller, ours = CONTROLLERS[space](world), Targets(space, LIMITS["fr3_pre_5_9"])
    random = np.random.default_rng(0)
    controller_started = False
    for _ in range(50):
        world.joints = HOME + random.normal(0, 0.1, 7)
        world.tcp, world.hand_rotation = kinematics.pose(world.joints)
        if not controller_started:
            controller.reset()
            controller_started = True
        action = random.uniform(-1, 1, ACTION_SPACES[space].size)
        action[-1] = abs(action[-1])
        if space == "joint_position":
            action[:7] = world.joints + 0.1 * action[:7]
        if space == "delta_eef" and random.random() < 0.4:
            action[3:6] = 0.0
        expected, _ = controller.command(action)
        found = ours(action, state(world.joints))
        assert found.reasons == ()
        np.testing.assert_allclose(found.joints, expected, atol=1e-7)


def test_joint_velocity_keeps_its_direction() -> None:
    action = np.array([2.0, -1.0, 0.5, 0, 0, 0, 0.1, 0.3])
    step = Targets("joint_velocity")(action, state()).joints - HOME
    np.testing.assert_allclose(step, 0.2 * action[:7] / 2.0)
    slow = Targets("joint_velocity")(0.25 * action, state()).joints - HOME
    np.testing.assert_allclose(slow, 0.05 * action[:7])


def test_cartesian_velocity_moves_by_droids_steps() -> None:
    position, rotation = flange(HOME)
    found = Targets("cartesian_velocity")([0.6, 0, -0.8, 0, 0, 0, 0], state()).joints
    way = flange(found)[0] - position
    np.testing.assert_allclose(way, 0.075 * np.array([0.6, 0, -0.8]), atol=4e-3)
    too_long = Targets("cartesian_velocity")([6.0, 0, -8.0, 0, 0, 0, 0], state()).joints
    np.testing.assert_allclose(too_long, found)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cartesian_velocity_turns_about_droids_flange(axis: int) -> None:
    """About the fingertips, a turn of 0.15 rad about x or y would carry the flange 15 mm along."""
    position, rotation = flange(HOME)
    turn = np.eye(3)[axis]
    moved, turned = flange(Targets("cartesian_velocity")([0, 0, 0, *turn, 0], state()).joints)
    np.testing.assert_allclose(rotation_vector(turned @ rotation.T), 0.15 * turn, atol=6e-3)
    np.testing.assert_allclose(moved, position, atol=4e-3)


@pytest.mark.parametrize("away", [[0.0, 0.0, 0.0], [0.1, -0.1, 0.05]])
def test_a_recorded_pose_of_droid_leads_back_to_its_joints(away: list[float]) -> None:
    """The oracle is the simulation's flange, an eighth turn and 0.1034 m from its hand's point."""
    robot = ROBOTS["fr3"]
    kinematics = Kinematics(build_model(robot, "primitive", 0.002, lambda spec: None), robot)
    recorded = HOME + np.random.default_rng(1).normal(0, 0.1, 7)
    tip, hand = kinematics.pose(recorded)
    half = np.pi / 8  # the hand is turned by -45 degrees about z
    eighth = np.array([[np.cos(2 * half), -np.sin(2 * half), 0], [np.sin(2 * half), np.cos(2 * half), 0], [0, 0, 1]])
    pose = [*(tip - 0.1034 * hand[:, 2]), *euler_angles(hand @ eighth)]
    joints = recorded.copy()
    joints[:3] += away
    for _ in range(30):
        joints = Targets("cartesian_position", LIMITS["fr3"])([*pose, 0.0], state(joints)).joints
    reached, turned = kinematics.pose(joints)
    np.testing.assert_allclose(reached, tip, atol=2e-3)
    np.testing.assert_allclose(rotation_vector(turned @ hand.T), 0.0, atol=5e-3)


def test_cartesian_position_goes_towards_the_pose() -> None:
    position, _ = flange(HOME)
    downwards = [np.pi, 0.0, 0.0]  # how the flange points at home
    np.testing.assert_allclose(euler_matrix(np.array(downwards)), flange(HOME)[1], atol=1e-9)
    space = Targets("cartesian_position", LIMITS["fr3"])
    wanted = position + [0.2, 0.05, -0.1]
    joints, distance = HOME, np.linalg.norm(wanted - position)
    for _ in range(20):
        found = space([*wanted, *downwards, 0.0], state(joints)).joints
        assert np.abs(found - joints).max() <= 0.2 + 1e-12
        joints, before, distance = found, distance, np.linalg.norm(wanted - flange(found)[0])
        assert distance < before or distance < 1e-3
        assert before - distance < 0.08
    assert distance < 2e-3


@pytest.mark.parametrize(
    ("space", "value", "closure"),
    [
        ("joint_position", 0.0, 0.0),
        ("joint_position", 0.7, 0.7),
        ("joint_velocity", 1.1, 1.0),
        ("cartesian_velocity", -0.2, 0.0),
        ("delta_eef", -1.0, 0.0),
        ("delta_eef", 0.0, 0.5),
        ("delta_eef", 1.0, 1.0),
    ],
)
def test_closure_is_zero_open_to_one_closed(space: str, value: float, closure: float) -> None:
    action = [0.0] * (ACTION_SPACES[space].size - 1) + [value]
    if space == "joint_position":
        action[:7] = HOME.tolist()
    assert Targets(space)(action, state()).closure == pytest.approx(closure)


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_what_is_malformed_is_refused(space: str) -> None:
    size = ACTION_SPACES[space].size
    convert = Targets(space)
    fine = [0.1] * size
    cases = {
        targets.MISSING: [None],
        targets.WRONG_LENGTH: [fine[:-1], [*fine, 0.0], [], 0.1, [fine], np.zeros((size, 1))],
        targets.NOT_FINITE: [[*fine[:-1], np.nan], [np.inf, *fine[1:]], [-np.inf] * size],
        targets.NOT_NUMBERS: [["a"] * size, [None] * size, [True] * size, [1j] * size, [fine, [0.1]], "abc", object()],
        targets.WRONG_UNITS: [[90.0, *fine[1:]], [1e300] * size, [*fine[:-1], 80.0]],
        targets.WRONG_KEYS: [{"joint1": 0.1}, {}, dict.fromkeys((*ACTION_SPACES[space].names, "extra"), 0.1)],
    }
    for reason, actions in cases.items():
        for action in actions:
            found = convert(action, state())
            assert (found.joints, found.closure, found.reasons) == (None, None, (reason,)), action
    assert convert(fine, state(np.full(7, np.nan))).reasons == (targets.STATE_NOT_FINITE,)


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_names_are_as_good_as_order(space: str) -> None:
    names = ACTION_SPACES[space].names
    values = np.linspace(-0.4, 0.5, len(names))
    by_name = Targets(space)(dict(reversed(list(zip(names, values.tolist(), strict=True)))), state())
    np.testing.assert_array_equal(by_name.joints, Targets(space)(values, state()).joints)


def test_unknown_space_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="joint_velocity"):
        Targets("joint_velocities")
