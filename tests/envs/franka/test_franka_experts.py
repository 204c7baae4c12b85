"""Experts: success rates, recovery from disturbed actions, smoothness."""

from __future__ import annotations

import numpy as np
import pytest
import rlspec_envs
from franka_cases import MakeScene, play
from rlspec_envs.franka.tasks import TASKS

SPACES = ("delta_eef", "joint_velocity", "joint_position")


def _successes(scene: MakeScene, task: str, space: str, seeds: range, noise: float = 0.0) -> list[bool]:
    env = scene(task, action_space=space)
    return [bool(play(env, seed, noise)[0]["is_success"]) for seed in seeds]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("task", list(TASKS))
def test_experts_succeed(scene: MakeScene, task: str, space: str) -> None:
    assert all(_successes(scene, task, space, range(5 if space == "delta_eef" else 2)))


@pytest.mark.parametrize("task", list(TASKS))
def test_experts_recover_from_disturbed_actions(scene: MakeScene, task: str) -> None:
    assert sum(_successes(scene, task, "delta_eef", range(200, 205), noise=0.3)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("task", list(TASKS))
def test_experts_succeed_on_a_hundred_seeds(scene: MakeScene, task: str, space: str) -> None:
    assert sum(_successes(scene, task, space, range(100))) >= (95 if space == "delta_eef" else 90)


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_experts_recover_on_a_hundred_seeds(scene: MakeScene, task: str) -> None:
    assert sum(_successes(scene, task, "delta_eef", range(100), noise=0.3)) >= 90


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"robot": "panda"}, {"randomise": "strong", "distractors": 3, "plates": 2}])
def test_pick_and_place_in_other_settings(scene: MakeScene, options: dict[str, object]) -> None:
    env = scene(**options)
    assert sum(bool(play(env, seed)[0]["is_success"]) for seed in range(100)) >= 90


def test_episodes_are_short_and_actions_change_little(scene: MakeScene) -> None:
    for seed in range(3):
        _, actions, _ = play(scene(), seed)
        assert 30 <= len(actions) <= 90
        changes = np.abs(np.diff(np.array(actions)[:, :6], axis=0)).max(axis=1)
        assert np.median(changes) < 0.15
        grips = np.array(actions)[:, 6]
        assert set(grips) == {-1.0, 1.0} and (np.diff(grips) != 0).sum() == 2  # closes once, opens once


def test_an_expert_is_a_function_of_the_state(scene: MakeScene) -> None:
    env = scene()
    play(env, 3)
    env.reset(seed=4)
    expert, other = rlspec_envs.make_expert(env), rlspec_envs.make_expert(env)
    first = expert.act()
    np.testing.assert_array_equal(first, expert.act())
    np.testing.assert_array_equal(first, other.act())


def test_the_expert_picks_a_dropped_cube_up_again(scene: MakeScene) -> None:
    env = scene()
    expert = rlspec_envs.make_expert(env)
    env.reset(seed=0)
    dropped, info = False, {}
    for _ in range(200):
        action = expert.act()
        if not dropped and env.world.position("block0")[2] > 0.08:
            for _ in range(6):
                env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
            dropped = True
            continue
        *_, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    assert dropped and info["is_success"]


def test_without_an_expert_nothing_succeeds(scene: MakeScene) -> None:
    for task in TASKS:
        env = scene(task)
        env.action_space.seed(0)
        for seed in range(2):
            env.reset(seed=seed)
            assert not any(env.step(env.action_space.sample())[4]["is_success"] for _ in range(60))
