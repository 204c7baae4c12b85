"""The command with real processes and a real simulator: killed, it goes on, and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rlspec_envs
from process_groups import wait_until_gone
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.rendering import choose_gl

from rlspec.vla.data.checking import check_dataset
from rlspec.vla.data.episodes import load_episode_actions
from rlspec.vla.data.files import read_columns

SETTINGS = ["env=franka_pick_place", "episodes=4", "noise=0.2", "env.image_size=32"]


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "rlspec.collect", *SETTINGS, f"out={out}", *more]


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_and_continued_gives_the_same_as_one_worker(tmp_path: Path) -> None:
    try:
        choose_gl()
    except EnvironmentUnavailable as error:
        pytest.skip(str(error))
    killed = subprocess.Popen(command(tmp_path / "killed", "workers=2"), start_new_session=True)
    episodes = tmp_path / ".killed.work" / "episodes"
    while not list(episodes.glob("*.npz")):
        assert killed.poll() is None, "it should not have ended before it was killed"
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    wait_until_gone(killed.pid, 120)
    assert not (tmp_path / "killed").exists()
    subprocess.run(command(tmp_path / "killed", "workers=2"), check=True)
    subprocess.run(command(tmp_path / "whole", "workers=1"), check=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    report = check_dataset(tmp_path / "whole")
    assert (report.episodes, report.fps) == (4, 20)
    assert_replays(tmp_path / "whole")


def assert_replays(root: Path) -> None:
    columns = read_columns(root, ["observation.state", "episode_index"])
    stored = load_episode_actions(root, 2)
    env = rlspec_envs.make_env("franka", "pick_place", image_size=32)
    env.unwrapped.render_observations = False
    observation, _ = env.reset(seed=stored.seed)
    states, succeeded = [], False
    for action in stored.actions:
        states.append(observation["agent_pos"])
        observation, _, _, _, info = env.step(action)
        succeeded = info["is_success"]
    env.close()
    assert np.array_equal(np.stack(states), columns["observation.state"][columns["episode_index"][:, 0] == 2])
    assert succeeded
