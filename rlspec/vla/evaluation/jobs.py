"""What goes to a worker and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlspec.vla.evaluation.checks import TrainingConditions
from rlspec.vla.evaluation.episodes import EpisodePlan, EvaluatedEpisode, crashed_episode
from rlspec.vla.evaluation.simulator import Observation, Simulator


@dataclass(frozen=True)
class ActorSpec:
    """Who acts; a worker keeps the last one that it made.

    Attributes:
        kind: The scripted expert, records, or a LeRobot policy.
        path: Of a policy: folder or hub id; of records: root of the data set.
        token: Tells two states of one path apart.
        n_action_steps: Actions of a chunk that are executed; None: the policy's own number.
        replan_steps: The protocol's number where the user gave none; a shorter chunk is executed whole.
        device: "auto", "cpu" or "cuda".
        training: What the policy's training data said of itself.
    """

    kind: Literal["expert", "replay", "policy"]
    path: str = ""
    token: str = ""
    n_action_steps: int | None = None
    replan_steps: int | None = None
    device: str = "auto"
    training: TrainingConditions = field(default_factory=TrainingConditions)


@dataclass(frozen=True)
class FilmSpec:
    """Where the film of an episode goes; `{outcome}` in the name is replaced."""

    path: Path
    kind: Literal["mp4", "gif"]


@dataclass(frozen=True)
class EvaluationJob:
    """One episode; `max_steps` takes the place of the environment's own limit."""

    actor: ActorSpec
    plan: EpisodePlan
    max_steps: int | None = None
    film: FilmSpec | None = None

    def crashed(self, reason: str) -> Done:
        """What comes back where no worker could finish it."""
        return Done(crashed_episode(self.plan, reason), {})


@dataclass(frozen=True)
class GroupJob:
    """Episodes of one task from one initial state, in which a policy draws its actions: for reinforcement learning.

    Attributes:
        plans: One for each episode; task, seed and initial state are the same in all.
        noise_seeds: Of each episode's draws.
        noise_level: Of a flow policy's draws.
        film: Of the first episode.
    """

    actor: ActorSpec
    plans: tuple[EpisodePlan, ...]
    noise_seeds: tuple[int, ...]
    noise_level: float
    max_steps: int | None = None
    film: FilmSpec | None = None

    @property
    def plan(self) -> EpisodePlan:
        """The first one, which says where all begin."""
        return self.plans[0]

    def crashed(self, reason: str) -> GroupDone:
        """What comes back where no worker could finish it."""
        return GroupDone(tuple(EpisodeRollout(crashed_episode(plan, reason), "") for plan in self.plans), {})


@dataclass(frozen=True)
class EpisodeRollout:
    """An episode, and what was seen and drawn at the beginning of each of its T chunks.

    Attributes:
        draws: (T, K + 1, chunk, D) float32, see `ChunkDistribution`.
    """

    episode: EvaluatedEpisode
    instruction: str
    observations: tuple[Observation, ...] = ()
    draws: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class GroupDone:
    """A group came to its end, in the order of its plans; as `Done`."""

    rollouts: tuple[EpisodeRollout, ...]
    environment: dict[str, Any]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process is started with."""

    simulator: Simulator
    threads: int = 1


@dataclass(frozen=True)
class Alive:
    """Sent now and then while a worker is busy."""


@dataclass(frozen=True)
class Done:
    """An episode came to its end.

    Attributes:
        environment: The environment's own description.
        policy: The policy's description, of policies.
        remarks: Lines for the user.
    """

    episode: EvaluatedEpisode
    environment: dict[str, Any]
    policy: dict[str, Any] | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobRefused:
    """The user must change something; the text says what, one mistake per line."""

    text: str


@dataclass(frozen=True)
class Raised:
    """The episode ended in an exception: a program's mistake."""

    reason: str
    traceback: str


Job = EvaluationJob | GroupJob
Reply = Alive | Done | GroupDone | JobRefused | Raised
