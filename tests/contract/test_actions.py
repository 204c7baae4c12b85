"""The table of action spaces: what its parts say of each other, and that the simulator's own tables say the same."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from rlspec_envs.franka import control, environment
from rlspec_envs.franka.robots import ROBOTS
from rlspec_envs.libero import environment as libero
from rlspec_envs.libero.simulation import CONTROL_HZ

from rlspec.contract.actions import (
    ACTION_SPACES,
    CARTESIAN_POSITION,
    DELTA_EEF,
    DELTA_EEF_STEP,
    DROID_SPACES,
    EXECUTION_LAWS,
    JOINT_POSITION,
    MAX_JOINT_STEP,
    RELATIVE_SPACES,
    SIMULATED_SPACES,
    ActionSpaceName,
    ExecutionLaw,
)

JOINTS = np.array([0.1, -0.6, 0.2, -2.5, 0.3, 1.9, 0.4])


def test_types_name_what_the_tables_hold() -> None:
    assert set(get_args(ActionSpaceName)) == set(ACTION_SPACES)
    assert set(get_args(ExecutionLaw)) == set(EXECUTION_LAWS)
    assert {*DROID_SPACES, DELTA_EEF} == set(ACTION_SPACES)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_a_space_has_names_units_and_bounds_for_each_number(name: str) -> None:
    space = ACTION_SPACES[name]
    assert space.size == len(set(space.names)) == len(space.units) == len(space.low) == len(space.high)
    assert (space.names[-1], space.units[-1]) == ("gripper", "closure")
    assert all(low < high for low, high in zip(space.low, space.high, strict=True))


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_closures_come_back_and_are_cut(name: str) -> None:
    space = ACTION_SPACES[name]
    assert (space.gripper_number(0.0), space.gripper_number(1.0)) == space.gripper
    assert space.closure(space.gripper_number(0.25)) == 0.25
    assert (space.closure(-9.0), space.closure(9.0)) == (0.0, 1.0)
    many = np.array([[0.0], [0.5], [1.0]])
    np.testing.assert_array_equal(space.gripper_number(many)[:, 0], [space.gripper_number(v) for v in (0.0, 0.5, 1.0)])


def test_holding_is_zero_where_numbers_are_relative_and_the_joints_elsewhere() -> None:
    for name in RELATIVE_SPACES:
        space = ACTION_SPACES[name]
        assert space.hold(JOINTS, 1.2) == [0.0] * (space.size - 1) + [space.gripper[1]]
    assert ACTION_SPACES[JOINT_POSITION].hold(JOINTS, 0.5) == [*JOINTS, 0.5]
    with pytest.raises(ValueError, match="pose"):
        ACTION_SPACES[CARTESIAN_POSITION].hold(JOINTS, 0.5)


@pytest.mark.parametrize("name", SIMULATED_SPACES)
def test_the_simulated_franka_has_the_same_sizes_rates_and_steps(name: str) -> None:
    assert tuple(sorted(SIMULATED_SPACES)) == tuple(sorted(control.CONTROLLERS))
    space, controller = ACTION_SPACES[name], control.CONTROLLERS[name]
    assert controller.default_hz == space.control_hz
    env = environment.FrankaEnv(action_space=name)
    try:
        assert env.action_space.shape == (space.size,)
        assert env.action_space.low[-1] <= min(space.gripper) < max(space.gripper) <= env.action_space.high[-1]
        if name != JOINT_POSITION:  # whose bounds are the robot's own
            np.testing.assert_array_equal(env.action_space.low[:-1], space.low[:-1])
            np.testing.assert_array_equal(env.action_space.high[:-1], space.high[:-1])
        _closes(env, space.gripper)
    finally:
        env.close()


def _closes(env: environment.FrankaEnv, gripper: tuple[float, float]) -> None:
    """The controller reads the gripper's number as the contract writes it, and writes it as the contract reads it."""
    world = env.world
    for closure, number in enumerate(gripper):
        action = np.array(ACTION_SPACES[env.controller.name].hold(world.joints, closure))
        assert action[-1] == number
        env.controller.reset()
        assert env.controller.command(action)[1] == closure
        pose = world.kinematics.pose(world.joints)
        assert env.controller.towards(*pose, close=bool(closure))[-1] == number


def test_the_simulators_steps_are_the_contracts() -> None:
    assert (control.POSITION_SCALE, control.ROTATION_SCALE) == DELTA_EEF_STEP
    assert control.MAX_JOINT_DELTA == MAX_JOINT_STEP
    space = ACTION_SPACES[DELTA_EEF]
    assert (CONTROL_HZ, libero.ACTION_SIZE, libero.LiberoEnv.action_space_name) == (
        space.control_hz,
        space.size,
        space.name,
    )


def test_lerobots_names_of_an_action_are_as_many_as_its_numbers() -> None:
    from rlspec.deploy.lerobot.features import ACTION_KEYS

    assert {name: len(keys) for name, keys in ACTION_KEYS.items()} == {
        name: ACTION_SPACES[name].size for name in SIMULATED_SPACES
    }


def test_joint_angles_of_every_robot_lie_within_the_space() -> None:
    space = ACTION_SPACES[JOINT_POSITION]
    for robot in ROBOTS.values():
        low, high = robot.limits.T
        assert (low >= np.array(space.low[:7]) - 1e-3).all()
        assert (high <= np.array(space.high[:7]) + 1e-3).all()
