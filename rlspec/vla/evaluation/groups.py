"""Episodes from one initial state, side by side in one process: the policy draws the chunks of all of them at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.vla.evaluation.episodes import CRASHED, INVALID_ACTION, TIMEOUT, EpisodePlan, EvaluatedEpisode
from rlspec.vla.evaluation.jobs import EpisodeRollout, GroupJob
from rlspec.vla.evaluation.observation import to_batches
from rlspec.vla.evaluation.policy_actor import PolicyActor
from rlspec.vla.evaluation.simulator import Observation, Simulator
from rlspec.vla.evaluation.video import FilmRecorder
from rlspec.vla.policies.likelihood import ChunkDistribution, distribution_of

_SUCCESS = "is_success"


@dataclass
class _Episode:
    """One that is under way."""

    env: gymnasium.Env[Any, Any]
    plan: EpisodePlan
    noise: torch.Generator
    film: FilmRecorder | None
    started: float
    observations: list[Observation] = field(default_factory=list)
    draws: list[NDArray[np.float32]] = field(default_factory=list)
    steps: int = 0
    success: bool = False
    failure: str = ""
    note: str = ""

    @property
    def over(self) -> bool:
        return self.success or bool(self.failure)

    def rollout(self) -> EpisodeRollout:
        """What came out; of a crash nothing is learnt."""
        env: Any = self.env.unwrapped
        plan, crashed = self.plan, self.failure == CRASHED
        seconds = (round(self.steps / env.control_hz, 3), round(time.monotonic() - self.started, 3))
        start = (plan.task, plan.index, plan.seed, plan.initial_state)
        seen = (len(self.observations), self.note)
        episode = EvaluatedEpisode(*start, self.steps, self.success, self.failure, *seconds, *seen)
        if crashed or not self.draws:
            return EpisodeRollout(episode, env.instruction)
        return EpisodeRollout(episode, env.instruction, tuple(self.observations), np.stack(self.draws))


class Group:
    """Environments of one task that are kept from group to group.

    Args:
        simulator: How they are made.
        task: Its name.
        max_steps: Limit in place of the environment's own.
        on_step: Called after every step.
    """

    def __init__(
        self, simulator: Simulator, task: str, max_steps: int | None, on_step: Callable[[], None] | None
    ) -> None:
        self.made_for = (task, max_steps)
        self._simulator, self._on_step = simulator, on_step
        self._envs: list[gymnasium.Env[Any, Any] | None] = []

    def run(self, job: GroupJob, actor: PolicyActor, initial_states: Any) -> tuple[EpisodeRollout, ...]:
        """All episodes of a group, from their initial state to success, failure or limit.

        Raises:
            ConfigError: The policy has no likelihood, or the environment says nothing of success.
        """
        distribution = distribution_of(actor.policy, job.noise_level)
        actor.policy.eval()
        episodes = [self._begin(job, number, initial_states) for number in range(len(job.plans))]
        while going := [episode for episode in episodes if not episode.over]:
            for episode, chunk in zip(going, self._draw(going, actor, distribution), strict=True):
                self._guarded(episode, partial(self._carry_out, episode, chunk))
        for episode in episodes:
            if episode.film is not None and episode.failure != CRASHED:
                episode.film.save("success" if episode.success else episode.failure)
        return tuple(episode.rollout() for episode in episodes)

    def _begin(self, job: GroupJob, number: int, initial_states: Any) -> _Episode:
        self._envs.extend([None] * (number + 1 - len(self._envs)))
        env = self._envs[number] or self._simulator.make(*self.made_for)
        self._envs[number] = env
        plan, noise = job.plans[number], torch.Generator().manual_seed(job.noise_seeds[number])
        rate: float = env.unwrapped.control_hz  # type: ignore[attr-defined]
        film = FilmRecorder(job.film, rate) if job.film is not None and number == 0 else None
        episode = _Episode(env, plan, noise, film, time.monotonic())

        def reset() -> None:
            state = plan.initial_state
            if state is not None and state >= 0 and initial_states:
                state %= int(initial_states)
            env.unwrapped.render_observations = False  # type: ignore[attr-defined]
            env.reset(seed=plan.seed, options=None if state is None else {"initial_state": state})
            env.unwrapped.render_observations = True  # type: ignore[attr-defined]
            self._look(episode, env.unwrapped.observe())  # type: ignore[attr-defined]

        self._guarded(episode, reset)
        return episode

    def _draw(
        self, episodes: Sequence[_Episode], actor: PolicyActor, distribution: ChunkDistribution
    ) -> list[NDArray[np.float32]]:
        """The rows of each episode's next chunk that are carried out, in the environment's units."""
        instructions = [each.env.unwrapped.instruction for each in episodes]  # type: ignore[attr-defined]
        batch = actor.preprocessor(to_batches([each.observations[-1] for each in episodes], instructions))
        noise = torch.stack([torch.randn(distribution.shape, generator=each.noise) for each in episodes])
        drawn = distribution.draw(batch, noise.to(actor.config.device))
        for episode, draw in zip(episodes, drawn.float().cpu().numpy(), strict=True):
            episode.draws.append(draw)
        return list(in_units(drawn[:, -1], actor))

    def _carry_out(self, episode: _Episode, chunk: NDArray[np.float32]) -> None:
        env: Any = episode.env
        for row, action in enumerate(chunk):
            if not np.isfinite(action).all():
                episode.failure = INVALID_ACTION
                return
            last = row == len(chunk) - 1
            env.unwrapped.render_observations = last or episode.film is not None
            observation, _, terminated, truncated, info = env.step(action)
            episode.steps += 1
            if _SUCCESS not in info:
                raise ConfigError(
                    f"env: {episode.plan.task}: its steps do not say whether they succeeded (info['{_SUCCESS}']), so "
                    "there is nothing to reinforce"
                )
            episode.success = bool(info[_SUCCESS])
            if not episode.success and (terminated or truncated):
                episode.failure = str(info.get("failure") or TIMEOUT)
            if self._on_step is not None:
                self._on_step()
            if last and not episode.over:
                self._look(episode, observation)
            elif episode.film is not None:
                episode.film.add(observation["pixels"])
            if episode.over:
                return

    def _look(self, episode: _Episode, observation: Observation) -> None:
        """Keep what the policy sees: the environment may write into its arrays again."""
        pixels = {name: np.array(picture) for name, picture in observation["pixels"].items()}
        episode.observations.append({"pixels": pixels, "agent_pos": np.array(observation["agent_pos"])})
        if episode.film is not None:
            episode.film.add(pixels)

    def _guarded(self, episode: _Episode, what: Callable[[], None]) -> None:
        """A simulator's exception costs this episode alone, and its environment is made anew."""
        try:
            what()
        except ConfigError:
            raise
        except Exception as error:  # whatever a simulator may raise
            episode.failure = CRASHED
            episode.note = f"{type(error).__name__}: {' '.join(str(error).split())}"
            episode.success = False
            self._envs[self._envs.index(episode.env)] = None

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            if env is not None:
                env.close()
        self._envs.clear()


def in_units(chunks: Tensor, actor: PolicyActor) -> NDArray[np.float32]:
    """Rows of normalised chunks (B, chunk, D) that are carried out, in the environment's units, (B, n, A)."""
    rows = actor.config.n_action_steps
    numbers = actor.config.action_feature.shape[0]
    normalised = chunks[:, :rows, :numbers].float()
    flat = actor.postprocessor(normalised.reshape(-1, numbers))
    actions: NDArray[np.float32] = flat.reshape(len(chunks), -1, flat.shape[-1]).float().cpu().numpy()
    return actions
