"""The environments' config types: names, sizes and rates that LeRobot's commands read before anything is built."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import draccus
import gymnasium
import numpy as np
import pytest
import rlspec_envs
from lerobot.envs import close_envs, env_to_policy_features, make_env
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import NEW_ROLLOUT_OPTION
from lerobot.utils.constants import OBS_IMAGES

from rlspec.errors import ConfigError
from rlspec.vla import RlspecFrankaEnv, RlspecLiberoEnv
from rlspec.vla.environments import EvaluationView, make_vector


@contextmanager
def made(config: EnvConfig, count: int = 1) -> Iterator[dict[str, dict[int, Any]]]:
    envs = make_env(config, n_envs=count, use_async_envs=False)
    try:
        yield envs
    finally:
        close_envs(envs)


@pytest.mark.parametrize("action_space", ["delta_eef", "joint_velocity", "joint_position"])
def test_what_is_declared_is_what_the_environment_has(action_space: str) -> None:
    config = RlspecFrankaEnv(action_space=action_space, image_size=32, cameras=["wrist"], episode_length=7)
    declared = {name: tuple(feature.shape) for name, feature in env_to_policy_features(config).items()}
    with made(config) as envs:
        (env,) = envs["franka_pick_place"].values()
        seen = env.single_observation_space
        height, width, channels = seen["pixels"]["wrist"].shape
        assert declared == {
            "action": env.single_action_space.shape,
            "observation.state": seen["agent_pos"].shape,
            f"{OBS_IMAGES}.wrist": (channels, height, width),
        }
        assert set(seen["pixels"]) == {"wrist"} and height == 32
        assert env.metadata["render_fps"] == config.fps
        assert env.call("_max_episode_steps") == (7,)
        assert env.call("task_description") == env.get_attr("instruction")


def test_an_episode_that_ended_waits_for_the_others() -> None:
    with made(RlspecFrankaEnv(image_size=16, episode_length=2), 2) as envs:
        env = envs["franka_pick_place"][0]
        first, _ = env.reset(seed=[1, 2], options={NEW_ROLLOUT_OPTION: True})
        rest = np.zeros((2, 7), np.float32)
        steps = [env.step(rest) for _ in range(4)]
        assert [list(step[3]) for step in steps[:2]] == [[False, False], [True, True]]
        assert np.array_equal(steps[1][0]["agent_pos"], steps[3][0]["agent_pos"])
        again, _ = env.reset(seed=[1, 2], options={NEW_ROLLOUT_OPTION: True})
        assert np.array_equal(first["agent_pos"], again["agent_pos"])
        assert np.array_equal(first["pixels"]["wrist"], again["pixels"]["wrist"])
        assert len(env.step(rest)[4]["is_success"]) == 2


def test_tasks_are_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("rlspec.vla.environments.make_vector", lambda make, *rest: asked.append((*make.args, *rest)))
    assert list(RlspecFrankaEnv(task="push, stack").create_envs(3, True)) == ["franka_push", "franka_stack"]
    assert [entry[:2] + entry[3:] for entry in asked] == [("franka", "push", 3, True), ("franka", "stack", 3, True)]
    assert len(RlspecFrankaEnv(task="all").create_envs(1)) == len(rlspec_envs.list_tasks("franka"))
    asked.clear()
    monkeypatch.setattr(rlspec_envs, "list_tasks", lambda suite: ["0", "1", "2"])
    envs = RlspecLiberoEnv(task="libero_object,libero_goal", profile="lerobot").create_envs(1)
    assert {suite: list(tasks) for suite, tasks in envs.items()} == {
        "libero_object": [0, 1, 2], "libero_goal": [0, 1, 2],
    }  # fmt: skip
    assert asked[0][:3] == (
        "libero_object",
        "0",
        {"image_size": 256, "cameras": ["image", "image2"], "profile": "lerobot"},
    )
    assert list(RlspecLiberoEnv(task_ids=[3]).create_envs(1)["libero_object"]) == [3]


def test_the_command_line_reads_them() -> None:
    from dataclasses import dataclass

    @dataclass
    class Command:
        env: EnvConfig

    parsed = draccus.parse(Command, args=["--env.type=rlspec_libero", "--env.task_ids=[1,2]", "--env.image_size=128"])
    assert isinstance(parsed.env, RlspecLiberoEnv)
    assert (parsed.env.task_ids, parsed.env.image_size, parsed.env.fps) == ([1, 2], 128, 20)
    assert env_to_policy_features(parsed.env)[f"{OBS_IMAGES}.image2"].shape == (3, 128, 128)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="env.action_space=joint; allowed: joint_velocity, joint_position, delta_eef"):
        RlspecFrankaEnv(action_space="joint")
    with pytest.raises(ConfigError, match="env.task is empty"):
        RlspecFrankaEnv(task=" , ").create_envs(1)
    with pytest.raises(ValueError, match="'pour'.* pick_place"):
        RlspecFrankaEnv(task="pour").create_envs(1)
    with pytest.raises(ValueError, match="'libero'"):
        RlspecLiberoEnv(task="libero").create_envs(1)


def test_processes_start_with_the_first_episode() -> None:
    class Counted(gymnasium.Env[Any, Any]):
        made = 0
        observation_space = action_space = gymnasium.spaces.Discrete(2)

        def __init__(self) -> None:
            Counted.made += 1

    lazy = make_vector(lambda: EvaluationView(Counted()), 2, True)
    assert Counted.made == 1 and lazy.num_envs == 2
    assert isinstance(make_vector(Counted, 1, True), gymnasium.vector.SyncVectorEnv)


def test_workers_that_only_simulate_import_no_lerobot() -> None:
    code = "import sys, rlspec.vla; assert not {'torch', 'lerobot'} & sys.modules.keys(); rlspec.vla.nothing"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == "AttributeError: module 'rlspec.vla' has no attribute 'nothing'"
