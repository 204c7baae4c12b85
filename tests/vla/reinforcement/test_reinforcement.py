"""GRPO of a policy on success: what it learns, what it draws, how it stops and goes on, and what it refuses."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lane_cases import CHUNK, HerePool, make_recipe, resumed, rows, train, write_policy
from safetensors.torch import load_file

from rlspec.errors import INTERRUPTED, ConfigError
from rlspec.vla.evaluation.episodes import CRASHED, SAMPLED, EpisodePlan
from rlspec.vla.evaluation.jobs import ActorSpec, GroupDone, GroupJob, WorkerSettings
from rlspec.vla.evaluation.protocol import Protocol
from rlspec.vla.evaluation.runner import Runner
from rlspec.vla.evaluation.simulator import Simulator
from rlspec.vla.reinforcement import session
from rlspec.vla.reinforcement.rollouts import NothingToLearn, Rollouts, learn_from, rewards_of
from rlspec.vla.reinforcement.start import load_start


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def group_job(policy: Path, *, size: int = 6, number: int = 0, seed: int = 7, **given: Any) -> GroupJob:
    plans = tuple(EpisodePlan("pick_place", number * size + each, seed) for each in range(size))
    return GroupJob(ActorSpec("policy", str(policy), device="cpu"), plans, tuple(range(10, 10 + size)), 1.0, **given)


def run_group(job: GroupJob, **options: Any) -> GroupDone:
    done = Runner(WorkerSettings(Simulator("lane", options, "lane_sim"))).run(job)
    assert isinstance(done, GroupDone)
    return done


def test_success_rises_and_only_the_action_part_moves(lane: None, lane_policy: Path, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, lane_policy, training__steps=6, env__options={"goal": 0.1})
    recipe.optim.lr = 5e-4
    assert train(recipe) == 0
    run = tmp_path / "run"
    success = [row["rollout/success"] for row in rows(run)]
    assert np.mean(success[-2:]) > np.mean(success[:2]) + 0.2, success
    before, after = load_file(lane_policy / "model.safetensors"), weights(run, 6)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved and all("action" in name or "proprio" in name for name in moved), moved
    first = rows(run)[0]
    assert first["rollout/episodes"] == first["rollout/groups"] * 8
    assert first["approx_kl"] == 0 and first["clip_ratio"] == 0  # one update: the policy is the one that acted
    assert first["grad/action_stable_rank"] >= 1 and first["grad/group_noise"] > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["steps"] == 6


def test_a_run_stopped_among_episodes_goes_on_bit_for_bit(
    lane: None, lane_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"training__steps": 4, "grpo__update_epochs": 2, "grpo__mini_batches": 2}
    assert train(make_recipe(tmp_path / "whole", lane_policy, **given)) == 0
    third = sum(int(row["rollout/groups"]) for row in rows(tmp_path / "whole" / "run")[:2]) + 2

    def interrupt(number: int) -> None:
        if number == third:  # within the third step's episodes
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(HerePool, "before", staticmethod(interrupt))
    assert train(make_recipe(tmp_path / "cut", lane_policy, **given)) == INTERRUPTED
    run = tmp_path / "cut" / "run"
    assert sorted(path.name for path in (run / "checkpoints").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    monkeypatch.setattr(HerePool, "before", staticmethod(lambda number: None))
    assert train(resumed(run)) == 0
    assert same(weights(run, 4), weights(tmp_path / "whole" / "run", 4))
    assert rows(run) == rows(tmp_path / "whole" / "run")
    assert rows(run)[-1]["approx_kl"] > 0  # the second pass meets another policy than the one that acted


def test_a_regression_head_learns_its_scale(lane: None, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policy", "rlspec_adapter")
    given = {"policy__type": "rlspec_adapter", "grpo__noise_level": 0.7, "training__steps": 2, "policy__options": {}}
    recipe = make_recipe(tmp_path, policy, **given)
    assert train(recipe) == 0
    run = tmp_path / "run"
    scales = [weights(run, step)["model.action_head.log_scale"].exp() for step in (1, 2)]
    assert not torch.equal(*scales) and all((scale - 0.7).abs().max() < 0.1 for scale in scales)
    assert json.loads((run / "checkpoints" / "checkpoint-2" / "config.json").read_text())["action_std"] == 0.7


def test_episodes_of_a_group_begin_alike_and_go_their_own_ways(lane_policy: Path) -> None:
    done = run_group(group_job(lane_policy))
    starts = [each.observations[0]["agent_pos"].tolist() for each in done.rollouts]
    assert all(start == starts[0] for start in starts)
    assert len({each.draws.tobytes() for each in done.rollouts if each.draws is not None}) == 6
    for each in done.rollouts:
        assert each.draws is not None and len(each.draws) == len(each.observations)
        assert each.draws.shape[1:] == (3, CHUNK, 2)
        assert each.episode.steps <= 8 and len(each.draws) == -(-each.episode.steps // CHUNK)
    assert {each.episode.success for each in done.rollouts} == {True, False}
    again = run_group(group_job(lane_policy))
    assert all(np.array_equal(a.draws, b.draws) for a, b in zip(done.rollouts, again.rollouts, strict=True))


def test_an_action_is_the_draw_in_the_environments_units(lane_policy: Path) -> None:
    """The lane moves by a tenth of the action, whose normalised deviation is 0.5."""
    done = run_group(group_job(lane_policy), goal=9.0)
    for each in done.rollouts:
        assert each.draws is not None
        moved = each.observations[1]["agent_pos"] - each.observations[0]["agent_pos"]
        expected = (0.1 * np.clip(0.5 * each.draws[0, -1], -1, 1)).sum(0)
        np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_a_simulator_that_raises_costs_one_episode_and_is_counted(lane_policy: Path) -> None:
    done = run_group(group_job(lane_policy, size=12), cliff=0.05)
    crashed = [each for each in done.rollouts if each.episode.failure == CRASHED]
    assert 0 < len(crashed) < 12 and all("fell off the lane" in each.episode.note for each in crashed)
    rewards = rewards_of(done.rollouts)
    assert np.isnan(rewards).sum() == len(crashed)


class DyingPool(HerePool):
    """Its worker dies whenever it runs the fourth episode of a step."""

    def run_groups(self, jobs: Sequence[GroupJob], on_done: Callable[[GroupJob, GroupDone], None]) -> None:
        for job in jobs:
            if any(plan.index == 3 for plan in job.plans):
                on_done(job, job.crashed("the worker died"))
            else:
                super().run_groups([job], on_done)


def test_a_worker_that_dies_costs_one_episode_and_the_run_goes_on(
    lane: None, lane_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WorkerPool", DyingPool)
    assert train(make_recipe(tmp_path, lane_policy, training__steps=2)) == 0
    assert [row["rollout/crashed"] for row in rows(tmp_path / "run")] == [1, 1]


def test_groups_that_all_do_alike_are_dropped_and_refilled(lane: None, lane_policy: Path, tmp_path: Path) -> None:
    given = {"training__steps": 1, "grpo__success": [0.45, 0.55], "grpo__refills": 20}
    assert train(make_recipe(tmp_path, lane_policy, **given)) == 0
    (row,) = rows(tmp_path / "run")
    assert row["rollout/groups_kept"] == 4 < row["rollout/groups"]
    assert row["rollout/groups"] == 4 + row["rollout/groups_too_hard"] + row["rollout/groups_too_easy"]


@pytest.mark.parametrize(("goal", "words"), [(9.0, ["fewer in 16", "policy.path"]), (-9.0, ["more in 16", "harder"])])
def test_groups_that_never_differ_end_the_run_in_one_line(
    goal: float, words: list[str], lane: None, lane_policy: Path, tmp_path: Path
) -> None:
    with pytest.raises(NothingToLearn) as caught:
        train(make_recipe(tmp_path, lane_policy, env__options={"goal": goal}))
    text = str(caught.value)
    assert "\n" not in text and "none of 16 groups of 8" in text and all(word in text for word in words), text


def test_what_is_learnt_from_are_not_the_stored_states_of_evaluations(lane_policy: Path, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, lane_policy)
    loaded, jobs = load_start(recipe.policy, device="cpu", seed=0, resume=None, action_std=1.0), []
    for suite in ("libero_object", "franka"):
        protocol = Protocol(Simulator(suite, {}, "lane_sim"), ("0", "1"), recipe.evaluation)
        rollouts = Rollouts(recipe, SimpleNamespace(), loaded, protocol, SimpleNamespace())  # type: ignore[arg-type]
        jobs.append([rollouts._job(ActorSpec("policy"), 2, number) for number in range(4)])
    states = [{plan.initial_state for job in group for plan in job.plans} for group in jobs]
    assert states == [{SAMPLED}, {None}]
    seeds = [plan.seed for job in jobs[0] for plan in job.plans]
    assert len({*seeds}) == 4 and min(seeds) >= recipe.grpo.seed
    assert not {*seeds} & {*range(recipe.evaluation.seed, recipe.evaluation.seed + recipe.evaluation.episodes)}


@pytest.mark.parametrize(("groups", "refills", "count"), [(8, 4, 10), (1, 3, 4), (10, 3, 40), (4, 0, 3)])
def test_every_task_has_its_turn(groups: int, refills: int, count: int, lane_policy: Path, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, lane_policy, grpo__groups_per_step=groups, grpo__refills=refills)
    protocol = Protocol(Simulator("franka", {}, "lane_sim"), tuple(map(str, range(count))), recipe.evaluation)
    loaded = load_start(recipe.policy, device="cpu", seed=0, resume=None, action_std=1.0)
    rollouts = Rollouts(recipe, SimpleNamespace(), loaded, protocol, SimpleNamespace())  # type: ignore[arg-type]
    jobs = [rollouts._job(ActorSpec("policy"), step, number) for step in range(count) for number in range(groups)]
    assert Counter(job.plan.task for job in jobs) == dict.fromkeys(protocol.tasks, groups)


def test_an_environment_that_says_nothing_of_success_is_refused(lane_policy: Path) -> None:
    with pytest.raises(ConfigError, match="do not say whether they succeeded"):
        run_group(group_job(lane_policy), silent=True)


def test_a_checkpoint_of_another_action_space_is_refused(lane: None, lane_policy: Path, tmp_path: Path) -> None:
    facts = {"format": 1, "action_space": "joint_velocity", "control_hz": 10.0}
    policy = write_policy(tmp_path / "policy")
    (policy / "rlspec.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="the data has joint_velocity, the environment delta_eef"):
        train(make_recipe(tmp_path, policy))


def test_a_part_that_the_policy_has_not_is_refused(lane: None, lane_policy: Path, tmp_path: Path) -> None:
    from rlspec.vla.reinforcement.session import untrained

    with pytest.raises(ConfigError, match=r"grpo.train=vision: the policy has no such part; it has action, language"):
        untrained(["vision"], {"a": "language", "b": "action", "c": ""})
    assert untrained([], {"a": "language", "b": "action"}) == []
    patterns = [entry.pattern for entry in untrained(["action"], {"a.x": "language", "b": "action", "c": ""})]
    assert patterns == [r"^a\.x$", "^c$"]


def test_advantages_belong_to_the_chunks_of_their_episode(lane_policy: Path) -> None:
    from rlspec.config.vla_schema import Grpo

    done = run_group(group_job(lane_policy, size=8))
    learnt = learn_from(done.rollouts, Grpo())
    assert learnt is not None
    rewards = rewards_of(done.rollouts)
    scores = (rewards - rewards.mean()) / rewards.std(ddof=1)
    expected = np.repeat(scores, [len(each.observations) for each in done.rollouts])
    np.testing.assert_allclose(learnt.advantages.numpy(), expected, rtol=1e-5)
    assert len(learnt.observations) == len(learnt.draws) == len(learnt.instructions) == len(learnt)
