"""Every task of the four ten-task suites, every expert, vector environments: minutes, run with -m slow."""

from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import rlspec_envs
from gymnasium.utils.env_checker import check_env
from rlspec_envs.libero.environment import LiberoEnv
from rlspec_envs.libero.experts import make_libero_expert
from rlspec_envs.libero.tasks import EXPERT_TASKS

pytestmark = pytest.mark.slow

TEN_TASK_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
REST = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)


@pytest.mark.parametrize("task_id", range(10))
@pytest.mark.parametrize("suite", TEN_TASK_SUITES)
def test_every_task_resets_steps_and_renders(libero: Path, suite: str, task_id: int) -> None:
    env = LiberoEnv(suite, task_id)
    observation, info = env.reset(options={"initial_state": 49})
    assert not info["is_success"], "a stored initial state must not solve the task"
    lift = np.array([0, 0, 0.5, 0, 0, 0, -1], dtype=np.float32)
    later = [env.step(lift)[0] for _ in range(3)][-1]
    assert later["agent_pos"][2] > observation["agent_pos"][2] + 0.005
    for name in ("image", "image2"):
        assert observation["pixels"][name].std() > 10, "a scene, not an empty frame"
        assert not np.array_equal(observation["pixels"][name], later["pixels"][name])
    env.close()


@pytest.mark.parametrize(
    ("suite", "task_id"), [(suite, int(task)) for suite, scripted in EXPERT_TASKS.items() for task in scripted]
)
def test_experts_solve_three_initial_states_of_a_task(libero: Path, suite: str, task_id: int) -> None:
    env = LiberoEnv(suite, task_id, render_observations=False, success_condition="released")
    expert = make_libero_expert(env)
    outcomes = []
    for initial_state in (10, 25, 40):
        env.reset(options={"initial_state": initial_state})
        expert.reset()
        ended = False
        while not ended:
            _, _, terminated, truncated, _ = env.step(expert.act())
            ended = terminated or truncated
        outcomes.append(terminated)
    env.close()
    hard = suite == "libero_spatial" and task_id == 4  # the bowl in the drawer
    assert sum(outcomes) >= (1 if hard else 2), outcomes


def test_an_expert_recovers_from_disturbed_actions(libero: Path) -> None:
    env = LiberoEnv("libero_object", 6, render_observations=False)
    expert, generator = make_libero_expert(env), np.random.default_rng(0)
    outcomes = []
    for initial_state in range(5):
        env.reset(options={"initial_state": initial_state})
        expert.reset()
        ended = False
        while not ended:
            noise = np.append(generator.normal(0, 0.3, 6), 0.0)
            action = np.clip(expert.act() + noise, -1, 1).astype(np.float32)
            _, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
        outcomes.append(terminated)
    env.close()
    assert sum(outcomes) >= 4, outcomes


def test_gymnasiums_checker_finds_nothing(libero: Path) -> None:
    env = gymnasium.make("rlspec/LiberoObject-v0", task_id=0, image_size=64, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


def test_worker_processes_render_the_same_as_this_one(libero: Path) -> None:
    def make() -> gymnasium.Env:
        return rlspec_envs.make_env("libero_object", "0", image_size=64)

    vector = gymnasium.vector.AsyncVectorEnv([make, make], context="spawn")
    try:
        observations, _ = vector.reset(seed=[3, 4])
        later = vector.step(np.stack([REST, REST]))[0]
    finally:
        vector.close()
    env = make()
    for index, seed in enumerate((3, 4)):
        expected, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(observations["agent_pos"][index], expected["agent_pos"])
        np.testing.assert_array_equal(observations["pixels"]["image"][index], expected["pixels"]["image"])
    assert later["pixels"]["image2"].shape == (2, 64, 64, 3)
    env.close()


def test_two_environments_of_a_process_do_not_mix_their_pictures(libero: Path) -> None:
    first, second = (LiberoEnv("libero_object", task, image_size=64) for task in (0, 4))
    alone = [env.reset(seed=0)[0]["pixels"]["image"] for env in (first, second)]
    first.reset(seed=0)
    together = [env.observe()["pixels"]["image"] for env in (first, second)]
    for before, after in zip(alone, together, strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(*alone)
    second.close()
    np.testing.assert_array_equal(first.observe()["pixels"]["image"], alone[0])
    first.close()
