"""One episode: who acts, what is rendered, how it ends."""

from __future__ import annotations

import os
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import fake_sim
import numpy as np
import pytest
import torch
from PIL import Image

from rlspec.vla.evaluation.actors import Actor, ExpertActor, ReplayActor
from rlspec.vla.evaluation.episodes import INVALID_ACTION, EpisodePlan, plan_episodes
from rlspec.vla.evaluation.jobs import FilmSpec
from rlspec.vla.evaluation.observation import to_batch
from rlspec.vla.evaluation.policy_actor import PolicyActor
from rlspec.vla.evaluation.rollout import rollout
from rlspec.vla.evaluation.simulator import Simulator
from rlspec.vla.evaluation.video import FilmRecorder

PLAN = EpisodePlan("near", 0, 7)
SIMULATOR = Simulator("fake", module="fake_sim")


class Pipeline:
    """Stands in for a processor: hands on what it gets, and keeps it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.steps: list[Any] = []

    def __call__(self, value: Any) -> Any:
        self.seen.append(value)
        return value

    def reset(self) -> None:
        pass


class ChunkPolicy(torch.nn.Module):
    """Answers random actions in chunks, and keeps the batches that it looked at."""

    def __init__(self, n_action_steps: int) -> None:
        super().__init__()
        self.n_action_steps = n_action_steps
        self.looked_at: list[dict[str, Any]] = []

    def reset(self) -> None:
        self._action_queue: deque[torch.Tensor] = deque()

    def select_action(self, batch: dict[str, Any]) -> torch.Tensor:
        if not self._action_queue:
            self.looked_at.append(batch)
            self._action_queue.extend(torch.randn(1, self.n_action_steps, 2).unbind(1))
        return self._action_queue.popleft()


def policy_actor(n_action_steps: int = 4, **config: Any) -> PolicyActor:
    return PolicyActor(ChunkPolicy(n_action_steps), Pipeline(), Pipeline(), SimpleNamespace(type="fake", **config))


def expert_actions(env: fake_sim.PointEnv, plan: EpisodePlan) -> tuple[np.ndarray, np.ndarray]:
    """What the expert does from the plan's seed, and the states before each action."""
    observation, _ = env.reset(seed=plan.seed)
    actions, states = [], []
    done = False
    while not done:
        states.append(observation["agent_pos"])
        actions.append(fake_sim.PointExpert(env).act())
        observation, _, done, _, _ = env.step(actions[-1])
    return np.stack(actions), np.stack(states)


def test_the_expert_succeeds_without_a_single_picture() -> None:
    env = fake_sim.PointEnv("near")
    episode = rollout(env, ExpertActor(SIMULATOR), PLAN)
    # 0.5 away, at most 0.1 per step in each axis: by hand between 4 and 5 steps.
    assert episode.success and episode.failure == "" and 4 <= episode.steps <= 5
    assert episode.sim_seconds == episode.steps / 10
    assert (env.rendered, episode.images) == (0, 0)


@pytest.mark.parametrize("n_action_steps", [1, 4, 7])
def test_a_policy_gets_pictures_only_when_it_needs_a_new_chunk(n_action_steps: int) -> None:
    env = fake_sim.PointEnv("far", max_episode_steps=21)
    actor = policy_actor(n_action_steps)
    episode = rollout(env, actor, PLAN)
    assert (episode.steps, episode.failure) == (21, "timeout")
    chunks = -(-21 // n_action_steps)
    looked_at = actor.policy.looked_at
    assert len(looked_at) == chunks
    assert all(batch["observation.images.front"].min() > 0 for batch in looked_at)
    # After the last action of the last chunk one more observation may be rendered, never more.
    assert chunks <= env.rendered <= chunks + 1
    assert env.rendered == episode.images


def test_a_policy_that_keeps_past_observations_gets_every_picture() -> None:
    env = fake_sim.PointEnv("far", max_episode_steps=12)
    actor = policy_actor(4, n_obs_steps=2)
    rollout(env, actor, PLAN)
    assert env.rendered == 13
    assert all(batch["observation.images.front"].min() > 0 for batch in actor.preprocessor.seen)


def test_a_policys_random_numbers_follow_the_episodes_seed() -> None:
    def path(seed: int, noise: int) -> list[np.ndarray]:
        torch.manual_seed(noise)
        actor = policy_actor(3)
        rollout(fake_sim.PointEnv("far", max_episode_steps=6), actor, EpisodePlan("far", 0, seed))
        return [action.numpy() for action in actor.postprocessor.seen]

    assert np.array_equal(path(3, noise=0), path(3, noise=1))
    assert not np.array_equal(path(3, noise=0), path(4, noise=0))


def test_the_batch_is_what_lerobot_makes_of_the_observation() -> None:
    from lerobot.envs.utils import preprocess_observation

    env = fake_sim.PointEnv("near")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    observation = env.observe()
    observation["pixels"] = {name: rng.integers(0, 256, (12, 16, 3), np.uint8) for name in ("front", "side")}
    observation["agent_pos"] = rng.normal(size=2).astype(np.float32)
    theirs = preprocess_observation(observation)
    ours = to_batch(observation, "go")
    assert ours.pop("task") == ["go"]
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype, name
        assert ours[name].is_contiguous()


def test_a_replay_succeeds_and_one_at_another_rate_says_where_it_left_the_record() -> None:
    actions, states = expert_actions(fake_sim.PointEnv("near"), PLAN)
    faithful = rollout(fake_sim.PointEnv("near"), ReplayActor(actions, states), PLAN)
    assert faithful.success and faithful.note == "" and faithful.steps == len(actions)
    faster = fake_sim.PointEnv("near", control_hz=20.0)
    altered = rollout(faster, ReplayActor(actions, states), PLAN, max_steps=len(actions))
    assert (altered.success, altered.failure) == (False, "timeout")
    assert "left the record at step 1" in altered.note


def test_an_action_that_is_not_finite_ends_the_episode() -> None:
    class Broken(Actor):
        def reset(self, env: Any, seed: int) -> None:
            pass

        def act(self, observation: Any) -> Any:
            return np.array([np.nan, 0.0], np.float32)

    episode = rollout(fake_sim.PointEnv("near"), Broken(), PLAN)
    assert (episode.success, episode.failure, episode.steps) == (False, INVALID_ACTION, 0)


def test_the_limit_of_the_evaluation_comes_before_the_environments() -> None:
    episode = rollout(fake_sim.PointEnv("far", max_episode_steps=30), policy_actor(), PLAN, max_steps=5)
    assert (episode.steps, episode.failure) == (5, "timeout")


def test_episodes_are_numbered_seeds_and_stored_states() -> None:
    plans = plan_episodes(["a", "b"], 3, 100, stored_states=True)
    assert [(plan.task, plan.index, plan.seed, plan.initial_state) for plan in plans] == [
        (task, index, 100 + index, index) for task in ("a", "b") for index in range(3)
    ]
    env = fake_sim.PointEnv("near")
    rollout(env, ExpertActor(SIMULATOR), plans[2])
    assert env.start == 2
    assert plan_episodes(["a"], 1, 0, stored_states=False)[0].initial_state is None


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_film_has_a_frame_for_every_observation_with_both_cameras(kind: Any, tmp_path: Path) -> None:
    env = fake_sim.PointEnv("far", max_episode_steps=9)
    film = FilmRecorder(FilmSpec(tmp_path / f"x-{{outcome}}.{kind}", kind), 10.0)
    episode = rollout(env, policy_actor(4), PLAN, film=film)
    path = film.save(episode.failure)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] == [f"x-timeout.{kind}"]
    assert episode.images == 10
    if kind == "gif":
        with Image.open(path) as clip:
            assert (getattr(clip, "n_frames", 1), clip.info["duration"]) == (10, 100)
            assert clip.size == (384, 192)
    else:
        with av.open(str(path)) as clip:
            assert clip.streams.video[0].average_rate == 10
            frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        assert len(frames) == 10 and frames[0].shape == (192, 384, 3)
        # The right camera is 20 brighter, and every frame 5 brighter than the last one.
        assert abs(float(frames[0][:, 200:].mean() - frames[0][:, :184].mean()) - 20) < 3
        assert abs(float(frames[9].mean() - frames[0].mean()) - 45) < 3


def test_worker_processes_find_the_fake_simulator() -> None:
    assert os.path.dirname(fake_sim.__file__) in sys.path
