"""What one unit of an action does, measured, and which actions are refused."""

from __future__ import annotations

import numpy as np
import pytest
from franka_cases import MakeScene
from rlspec_envs.franka.environment import FrankaEnv
from rlspec_envs.franka.rotations import rotation_vector

SPACES = ("delta_eef", "joint_velocity", "joint_position")


def _unit(env: FrankaEnv, axis: int, size: float = 1.0) -> np.ndarray:
    action = np.zeros(env.action_space.shape or ())
    action[axis] = size
    return action


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("size", [1.0, -0.5])
def test_a_unit_of_delta_eef_puts_the_target_five_centimetres_away(scene: MakeScene, axis: int, size: float) -> None:
    env = scene()
    env.reset(seed=1)
    before, turned = env.world.tcp, env.world.hand_rotation
    joints, _ = env.controller.command(_unit(env, axis, size))
    position, rotation = env.world.kinematics.pose(joints)
    expected = np.zeros(3)
    expected[axis] = 0.05 * size
    np.testing.assert_allclose(position - before, expected, atol=2e-3)
    assert np.linalg.norm(rotation_vector(rotation @ turned.T)) < 0.02


@pytest.mark.parametrize("axis", range(3))
def test_a_unit_of_delta_eef_turns_the_target_by_half_a_radian_about_the_worlds_axis(
    scene: MakeScene, axis: int
) -> None:
    env = scene()
    env.reset(seed=1)
    before, turned = env.world.tcp, env.world.hand_rotation
    joints, _ = env.controller.command(_unit(env, 3 + axis, 0.6))
    position, rotation = env.world.kinematics.pose(joints)
    expected = np.zeros(3)
    expected[axis] = 0.3
    np.testing.assert_allclose(rotation_vector(rotation @ turned.T), expected, atol=0.03)
    assert np.linalg.norm(position - before) < 0.01


def test_a_rotation_of_zero_keeps_the_last_wanted_rotation(scene: MakeScene) -> None:
    env = scene(randomise="none")
    env.reset(seed=0)
    start = env.world.hand_rotation
    env.step(_unit(env, 5, 0.6))
    turned_once = rotation_vector(env.world.hand_rotation @ start.T)[2]
    for _ in range(30):
        env.step(np.zeros(7))
    settled = rotation_vector(env.world.hand_rotation @ start.T)[2]
    assert turned_once < 0.2
    assert settled == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("joint", range(7))
def test_a_unit_of_joint_velocity_puts_the_target_a_fifth_of_a_radian_away(scene: MakeScene, joint: int) -> None:
    env = scene(action_space="joint_velocity")
    env.reset(seed=1)
    before = env.world.joints
    env.step(_unit(env, joint))
    expected = before.copy()
    expected[joint] += 0.2
    np.testing.assert_allclose(env.world.data.ctrl[:7], expected, atol=1e-12)
    moved = env.world.joints - before
    assert 0.05 < moved[joint] < 0.2
    assert np.abs(np.delete(moved, joint)).max() < 0.03


def test_joint_positions_are_reached_and_approached_no_faster_than_droid_allows(scene: MakeScene) -> None:
    env = scene(action_space="joint_position")
    env.reset(seed=1)
    before = env.world.joints
    goal = before + [0.3, 0.25, -0.3, 0.2, 0.3, 0.2, -0.4]
    env.step(np.append(goal, 0.0))
    assert np.abs(env.world.data.ctrl[:7] - before).max() == pytest.approx(0.2)
    for _ in range(40):
        env.step(np.append(goal, 0.0))
    np.testing.assert_allclose(env.world.joints, goal, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "hz", "open_at", "closed_at"),
    [("delta_eef", 20.0, -1.0, 1.0), ("joint_velocity", 15.0, 0.0, 1.0), ("joint_position", 15.0, 0.0, 1.0)],
)
def test_rates_and_the_grippers_convention(
    scene: MakeScene, name: str, hz: float, open_at: float, closed_at: float
) -> None:
    env = scene(action_space=name)
    assert (env.action_space_name, env.control_hz) == (name, hz)
    observation, _ = env.reset(seed=0)
    rest = np.append(env.world.joints, open_at) if name == "joint_position" else _unit(env, -1, open_at)
    assert env.world.gap == pytest.approx(0.08)
    gaps = []
    for grip in (closed_at, open_at):
        rest[-1] = grip
        for _ in range(20):
            observation, *_ = env.step(rest)
        gaps.append(env.world.gap)
        state = observation["agent_pos"]
        if name == "delta_eef":
            np.testing.assert_allclose(state[6:], [env.world.gap / 2, -env.world.gap / 2], atol=1e-4)
        else:
            assert state[7] == pytest.approx(1 - env.world.gap / 0.08, abs=1e-4)
    assert gaps[0] < 0.002 and gaps[1] > 0.078
    # A control step lasts 1 / hz seconds.
    time = env.world.data.time
    env.step(rest)
    assert env.world.data.time - time == pytest.approx(1 / hz)


@pytest.mark.parametrize("name", SPACES)
def test_a_control_rate_can_be_asked_for(scene: MakeScene, name: str) -> None:
    env = scene(action_space=name, control_hz=10)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert env.world.data.time == pytest.approx(0.1)
    assert env.world.model.opt.timestep <= 0.0021


@pytest.mark.parametrize("name", SPACES)
def test_actions_of_a_wrong_shape_or_not_finite_are_refused_by_name(scene: MakeScene, name: str) -> None:
    env = scene(action_space=name)
    env.reset(seed=0)
    state = env.world.data.qpos.copy()
    good = env.action_space.sample()
    with pytest.raises(ValueError, match=rf"shape \(3,\).*{name} takes \({len(good)},\)"):
        env.step(good[:3])
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.where(np.arange(len(good)) == 2, np.nan, good))
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.full(len(good), np.inf))
    np.testing.assert_array_equal(env.world.data.qpos, state)


def test_actions_outside_the_space_act_like_its_border(scene: MakeScene) -> None:
    env = scene()
    ends = []
    for size in (1.0, 7.0):
        env.reset(seed=3)
        env.step(np.array([size, 0, -size, 0, 0, 0, -1.0]))
        ends.append(env.world.data.qpos.copy())
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("name", SPACES)
def test_environments_sample_actions_independently(scene: MakeScene, name: str) -> None:
    env, other = scene(action_space=name), scene("push", action_space=name)
    env.action_space.seed(0)
    first = env.action_space.sample()
    env.action_space.seed(0)
    other.action_space.seed(1)
    np.testing.assert_array_equal(env.action_space.sample(), first)
