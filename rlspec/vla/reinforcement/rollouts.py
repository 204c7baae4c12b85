"""The episodes of a step: groups from one initial state, of which those that differ in themselves are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlspec.config.schema import SEEDS
from rlspec.config.vla_schema import Grpo, VlaRecipe
from rlspec.errors import UserError
from rlspec.policy_gradient import group_advantages
from rlspec.runtime.starting import Run
from rlspec.vla.evaluation.checks import TrainingConditions
from rlspec.vla.evaluation.episodes import CRASHED, SAMPLED, EpisodePlan
from rlspec.vla.evaluation.jobs import ActorSpec, EpisodeRollout, FilmSpec, GroupDone, GroupJob
from rlspec.vla.evaluation.pool import Stopped, WorkerPool
from rlspec.vla.evaluation.protocol import Protocol
from rlspec.vla.evaluation.simulator import Observation
from rlspec.vla.training.loop import StepAbandoned
from rlspec.vla.training.order import derive_seed
from rlspec.vla.training.policy import LoadedPolicy

FOLDER = "rollouts"
NOISE = 5
"""Stream of random numbers beside those of `rlspec.vla.training.order`."""
SCENES_PER_SEED = 1_000_000


class NothingToLearn(UserError):
    """In no group of a step did some episodes succeed and others fail."""


@dataclass(frozen=True)
class LearntGroup:
    """All chunks of a group's episodes, N of them.

    Attributes:
        draws: (N, K + 1, chunk, D).
        advantages: (N,) of the episode that each chunk belongs to.
    """

    observations: list[Observation]
    instructions: list[str]
    draws: Tensor
    advantages: Tensor

    def __len__(self) -> int:
        return len(self.draws)


@dataclass(frozen=True)
class Block:
    """What one step learns from, and what is to be said of its episodes."""

    groups: list[LearntGroup]
    numbers: dict[str, float]


class Rollouts:
    """The blocks of a run's steps, each drawn by the policy as it is then.

    What a step draws depends on its weights, its number and the run's seed, not on workers or on what came before: a
    resumed run draws the same.

    Args:
        recipe: checked, of algorithm grpo.
        run: its folder gets the policy that is acting, and films.
        loaded: the policy that is trained.
        protocol: the simulator and its tasks.
        pool: the workers.
    """

    def __init__(self, recipe: VlaRecipe, run: Run, loaded: LoadedPolicy, protocol: Protocol, pool: WorkerPool) -> None:
        self._recipe, self._run, self._loaded, self._protocol, self._pool = recipe, run, loaded, protocol, pool
        self._device = next(loaded.policy.parameters()).device.type
        self._warned: set[str] = set()
        self._episodes = 0  # of the newest step

    def from_step(self, start: int, stop: int, *, workers: int, pin_memory: bool) -> Iterator[Block]:
        """Blocks of the steps `start` to `stop` - 1, counted from 0; workers and memory are the simulator's affair.

        Raises:
            StepAbandoned: A signal came while episodes were run.
            NothingToLearn: No group differs in itself.
        """
        for step in range(start, stop):
            try:
                yield self.collect(step)
            except Stopped as error:
                raise StepAbandoned from error

    def progress(self, step: int, seconds: float) -> dict[str, float]:
        """How far and how fast, for a log line of a step that took so many seconds."""
        return {"episodes_per_second": self._episodes / seconds}

    def collect(self, step: int) -> Block:
        """Run groups until there are enough that differ in themselves, or refills are used up."""
        grpo = self._recipe.grpo
        spec = self._acting(step)
        kept: list[LearntGroup] = []
        groups: list[Sequence[EpisodeRollout]] = []
        for _ in range(1 + grpo.refills):
            missing = grpo.groups_per_step - len(kept)
            if missing == 0:
                break
            jobs = [self._job(spec, step, len(groups) + each) for each in range(missing)]
            found = self._carry_out(jobs)
            groups += found
            kept += [learnt for group in found if (learnt := learn_from(group, grpo)) is not None]
        self._episodes = sum(map(len, groups))
        numbers = summarise(groups, kept, grpo)
        if not kept:
            raise NothingToLearn(barren(len(groups), numbers, grpo))
        return Block(kept, numbers)

    def _acting(self, step: int) -> ActorSpec:
        """The policy as it is now, in a folder that the workers load."""
        folder = self._run.directory.path / FOLDER / "policy"
        folder.mkdir(parents=True, exist_ok=True)
        self._loaded.save(folder, step=step)
        facts = self._loaded.facts
        known = TrainingConditions(facts.get("control_hz"), facts.get("action_space"))
        return ActorSpec("policy", str(folder), token=f"step {step}", device=self._device, training=known)

    def _job(self, spec: ActorSpec, step: int, number: int) -> GroupJob:
        recipe, grpo, tasks = self._recipe, self._recipe.grpo, self._protocol.tasks
        scene = step * grpo.groups_per_step * (1 + grpo.refills) + number
        task = tasks[(step * grpo.groups_per_step + number) % len(tasks)]  # apart from `scene`, which leaves some out
        seed = (grpo.seed + recipe.seed * SCENES_PER_SEED + scene) % SEEDS
        state = SAMPLED if self._protocol.stored_states else None  # the stored ones are for evaluations
        plans = [EpisodePlan(task, number * grpo.group_size + each, seed, state) for each in range(grpo.group_size)]
        seeds = [derive_seed(recipe.seed, NOISE, step, number, each) for each in range(grpo.group_size)]
        film = None
        if number < grpo.films and step in (0, recipe.training.steps - 1):
            film = FilmSpec(
                self._run.directory.path / FOLDER / f"step-{step + 1}-group-{number}-{{outcome}}.mp4", "mp4"
            )
        return GroupJob(spec, tuple(plans), tuple(seeds), recipe.noise_level, grpo.max_episode_steps, film)

    def _carry_out(self, jobs: Sequence[GroupJob]) -> list[Sequence[EpisodeRollout]]:
        """In the order of the jobs. Episodes of a group that no worker survives are run one by one."""
        found: dict[int, Sequence[EpisodeRollout]] = {}
        alone: dict[int, list[EpisodeRollout]] = {}

        def on_group(job: GroupJob, done: GroupDone) -> None:
            for line in set(done.remarks) - self._warned:
                self._warned.add(line)
                self._run.display.warn(line)
            found[job.plan.index] = done.rollouts

        def on_single(job: GroupJob, done: GroupDone) -> None:
            alone.setdefault(job.plan.index // self._recipe.grpo.group_size, []).extend(done.rollouts)

        self._pool.run_groups(jobs, on_group)
        lost = [job for job in jobs if all(each.episode.failure == CRASHED for each in found[job.plan.index])]
        singles = [
            replace(job, plans=(plan,), noise_seeds=(seed,), film=None)
            for job in lost
            for plan, seed in zip(job.plans, job.noise_seeds, strict=True)
        ]
        if singles:
            self._pool.run_groups(singles, on_single)
        for rollouts in alone.values():
            rollouts.sort(key=lambda each: each.episode.index)
            found[rollouts[0].episode.index] = rollouts
        return [found[job.plan.index] for job in jobs]


def rewards_of(group: Sequence[EpisodeRollout]) -> NDArray[np.float64]:
    """1 for a success, 0 for a failure, NaN for an episode of which nothing is known."""
    return np.array(
        [np.nan if each.episode.failure == CRASHED or each.draws is None else each.episode.success for each in group],
        np.float64,
    )


def learn_from(group: Sequence[EpisodeRollout], grpo: Grpo) -> LearntGroup | None:
    """A group's chunks with their advantages; None where too many or too few of its episodes succeeded."""
    rewards = rewards_of(group)
    known = rewards[~np.isnan(rewards)]
    low, high = grpo.success
    if not len(known) or not low <= known.mean() <= high or known.min() == known.max():
        return None
    advantages = group_advantages(torch.from_numpy(rewards)).float()
    counted = [(each, advantage) for each, advantage in zip(group, advantages, strict=True) if each.draws is not None]
    return LearntGroup(
        observations=[observation for each, _ in counted for observation in each.observations],
        instructions=[each.instruction for each, _ in counted for _ in each.observations],
        draws=torch.cat([torch.from_numpy(each.draws) for each, _ in counted]),
        advantages=torch.cat([advantage.repeat(len(each.observations)) for each, advantage in counted]),
    )


def summarise(groups: Sequence[Sequence[EpisodeRollout]], kept: Sequence[Any], grpo: Grpo) -> dict[str, float]:
    """Numbers of a step's episodes, dropped groups included."""
    episodes = [each.episode for group in groups for each in group]
    known = [episode for episode in episodes if episode.failure != CRASHED]
    rates = [np.nanmean(rewards) for group in groups if not np.isnan(rewards := rewards_of(group)).all()]
    return {
        "rollout/success": float(np.mean([episode.success for episode in known])) if known else 0.0,
        "rollout/episodes": float(len(episodes)),
        "rollout/episode_steps": float(np.mean([episode.steps for episode in known])) if known else 0.0,
        "rollout/crashed": float(len(episodes) - len(known)),
        "rollout/groups": float(len(groups)),
        "rollout/groups_kept": float(len(kept)),
        "rollout/groups_too_hard": float(sum(rate < grpo.success[0] for rate in rates)),
        "rollout/groups_too_easy": float(sum(rate > grpo.success[1] for rate in rates)),
    }


def barren(groups: int, numbers: dict[str, float], grpo: Grpo) -> str:
    """Why there is nothing to learn, and what helps."""
    low, high = grpo.success
    remedy = "start from a better policy (policy.path)"
    if numbers["rollout/groups_too_easy"] > numbers["rollout/groups_too_hard"]:
        remedy = "the policy is about as good as it can be here: choose harder scenes (env.*)"
    return (
        f"grpo: in none of {groups} groups of {grpo.group_size} episodes did {low:.0%} to {high:.0%} succeed (more in "
        f"{numbers['rollout/groups_too_easy']:.0f}, fewer in {numbers['rollout/groups_too_hard']:.0f}), so no action "
        f"is known to be better than another; {remedy}, or raise grpo.noise_level or grpo.refills"
    )
