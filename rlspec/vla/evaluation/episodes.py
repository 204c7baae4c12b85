"""Which episodes an evaluation consists of, and what came out of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rlspec.config.schema import SEEDS

CRASHED = "crashed"  # failure kind: the worker died, hung or raised, twice
TIMEOUT = "timeout"
INVALID_ACTION = "invalid_action"  # the actor answered NaN or infinity

SAMPLED = -1  # in place of a stored initial state's number: the seed places the objects

EpisodeKey = tuple[str, int, str]  # task, number in it, perturbation


@dataclass(frozen=True)
class EpisodePlan:
    """One episode to run; what it starts from says all, so any worker may run it.

    Attributes:
        task: Name of the task in its suite.
        index: Number of the episode in its task.
        seed: Of the environment's reset and of the policy's random numbers.
        initial_state: Number of a stored initial state (LIBERO); SAMPLED in what is learnt from; None: the suite has
            none.
        recorded: Number of the episode of a data set that is replayed; None: the actor decides.
        perturbation: What is changed of the scene, in the words of `rlspec_envs.perturbation`; "": nothing.
    """

    task: str
    index: int
    seed: int
    initial_state: int | None = None
    recorded: int | None = None
    perturbation: str = ""

    @property
    def key(self) -> EpisodeKey:
        """What identifies it within an evaluation."""
        return (self.task, self.index, self.perturbation)


@dataclass(frozen=True)
class EvaluatedEpisode:
    """What an episode came to.

    Attributes:
        failure: "" after a success, else its kind: timeout, dropped, out_of_bounds, ..., invalid_action, crashed.
        sim_seconds: Simulated time.
        wall_seconds: Time it took.
        images: Observations that were rendered.
        note: What else is to be said, such as where a replay left its record.
        perturbation: As in the plan.
    """

    task: str
    index: int
    seed: int
    initial_state: int | None
    steps: int
    success: bool
    failure: str
    sim_seconds: float
    wall_seconds: float
    images: int = 0
    note: str = ""
    perturbation: str = ""

    @property
    def key(self) -> EpisodeKey:
        """What identifies it within an evaluation."""
        return (self.task, self.index, self.perturbation)

    def to_json(self) -> dict[str, Any]:
        """A row of episodes.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> EvaluatedEpisode:
        """The episode of a row; keys that this version does not know are passed over."""
        return cls(**{field.name: row[field.name] for field in fields(cls) if field.name in row})


def crashed_episode(plan: EpisodePlan, note: str) -> EvaluatedEpisode:
    """The episode that no worker could finish."""
    start = (plan.task, plan.index, plan.seed, plan.initial_state)
    return EvaluatedEpisode(*start, 0, False, CRASHED, 0.0, 0.0, note=note, perturbation=plan.perturbation)


def plan_episodes(
    tasks: Sequence[str], count: int, seed: int, *, stored_states: bool, perturbations: Sequence[str] = ()
) -> list[EpisodePlan]:
    """`count` episodes per task with consecutive seeds, the same for every task; then the same ones perturbed.

    Args:
        tasks: Names.
        count: Episodes per task.
        seed: Of the first episode of each task.
        stored_states: Episode i starts from the stored initial state i (LIBERO's protocols).
        perturbations: In which all episodes are run once more each.
    """
    return [
        EpisodePlan(task, index, (seed + index) % SEEDS, index if stored_states else None, perturbation=perturbation)
        for perturbation in ("", *perturbations)
        for task in tasks
        for index in range(count)
    ]
