"""One evaluation from its plan to its metrics."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlspec.checkpoint import write_json_atomically
from rlspec.errors import ConfigError, UserError
from rlspec.versions import library_versions
from rlspec.vla.evaluation.episodes import CRASHED, EpisodePlan, EvaluatedEpisode
from rlspec.vla.evaluation.jobs import ActorSpec, Done, EvaluationJob, FilmSpec
from rlspec.vla.evaluation.pool import WorkerPool
from rlspec.vla.evaluation.protocol import Protocol
from rlspec.vla.evaluation.results import METRICS, Journal, SimResult, summarize
from rlspec.vla.pace import Pace

PROGRESS_SECONDS = 20.0
VIDEOS = "videos"


@dataclass(frozen=True)
class Campaign:
    """What is to be measured.

    Attributes:
        label: Name of the folder.
        step: Optimizer step of the weights.
        checkpoint: What the user calls them.
        spec: Who acts.
        plans: All episodes.
        folder: Where the files go.
        videos: Episodes per task that are filmed.
    """

    label: str
    step: int
    checkpoint: str
    spec: ActorSpec
    plans: tuple[EpisodePlan, ...]
    folder: Path
    videos: int = 0
    video_format: Literal["mp4", "gif"] = "mp4"


def conduct(
    campaign: Campaign, protocol: Protocol, pool: WorkerPool, say: Callable[[str], None], warn: Callable[[str], None]
) -> SimResult:
    """Run the episodes that are missing, film the chosen ones, and write metrics.json.

    Args:
        campaign: What to measure.
        protocol: The simulator and how it is used.
        pool: The workers.
        say: Gets lines of progress.
        warn: Gets lines that must not be overlooked.

    Raises:
        UserError: Every episode crashed.
        ConfigError: Another process is measuring into the same folder.
    """
    with _alone(campaign.folder):
        return _conduct(campaign, protocol, pool, say, warn)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the lock ends with the process that holds it, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another process is measuring into this folder; wait for it, or choose another out="
            ) from None
        yield


def _conduct(
    campaign: Campaign, protocol: Protocol, pool: WorkerPool, say: Callable[[str], None], warn: Callable[[str], None]
) -> SimResult:
    started = time.monotonic()
    journal = Journal(campaign.folder, protocol.identity(campaign.spec))
    found = {episode.key: episode for episode in journal.open()}
    missing = [plan for plan in campaign.plans if plan.key not in found]
    if len(missing) < len(campaign.plans):
        there = len(campaign.plans) - len(missing)
        say(f"{campaign.label}: {there} of {len(campaign.plans)} episodes are there already")
    progress = _Progress(campaign.label, len(missing), say)

    def on_done(job: EvaluationJob, done: Done) -> None:
        _keep_observed(journal, done, warn)
        found[job.plan.key] = done.episode
        journal.append(done.episode)
        progress.count(done.episode)

    limit = _limit(campaign.spec, protocol)
    pool.run([EvaluationJob(campaign.spec, plan, limit) for plan in missing], on_done)
    episodes = [found[plan.key] for plan in campaign.plans]
    if missing:
        others = [episode for key, episode in found.items() if key not in {plan.key for plan in campaign.plans}]
        journal.rewrite([*episodes, *others])  # in the order of the plan, however they arrived
    _refuse_crash(episodes)
    for line in repeated_states(campaign.plans, journal.observed.get("environment") or {}):
        warn(f"{campaign.label}: {line}")
    _film(campaign, episodes, limit, pool, warn)
    context = _context(campaign, protocol, journal.observed, seconds=round(time.monotonic() - started, 1))
    suite = protocol.simulator.suite
    result = summarize(campaign.label, campaign.step, suite, episodes, context, campaign.folder)
    write_json_atomically(campaign.folder / METRICS, result.to_json())
    return result


def _refuse_crash(episodes: Sequence[EvaluatedEpisode]) -> None:
    """Raises UserError where no episode came to its end: of nothing there is no rate."""
    if episodes and all(episode.failure == CRASHED for episode in episodes):
        how = "the only episode" if len(episodes) == 1 else f"all {len(episodes)} episodes"
        raise UserError(f"{how} crashed, so there is no success rate: {episodes[0].note}")


def repeated_states(plans: Sequence[EpisodePlan], environment: Mapping[str, Any]) -> Iterator[str]:
    """A line where more episodes are asked for than there are stored initial states: intervals count them as new."""
    stored = environment.get("initial_states")
    episodes = 1 + max((plan.initial_state or 0 for plan in plans), default=0)
    if stored and episodes > stored:
        yield (
            f"{episodes} episodes of a task that has {stored} stored initial states: from the next on they repeat, "
            "and the intervals are narrower than what is known"
        )


def _context(campaign: Campaign, protocol: Protocol, observed: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    """What has to be known before a rate may be compared with another."""
    environment, policy = observed.get("environment") or {}, observed.get("policy") or {}
    return {
        "checkpoint": campaign.checkpoint,
        "settings": protocol.identity(campaign.spec),
        "n_action_steps": policy.get("n_action_steps"),
        "max_steps": environment.get("max_episode_steps"),
        "renderer": environment.get("gl"),
        "environment": environment or None,
        "policy": policy or None,
        "versions": library_versions(),
        "seconds": seconds,
        "workers": protocol.settings.workers,
        "cpu_count": os.cpu_count(),
    }


def _keep_observed(journal: Journal, done: Done, warn: Callable[[str], None]) -> None:
    if "environment" not in journal.observed and done.environment:
        journal.observe(environment=done.environment, policy=done.policy)
        for line in done.remarks:
            warn(line)


def choose_filmed(episodes: Sequence[EvaluatedEpisode], count: int) -> list[EvaluatedEpisode]:
    """The first successes and the first failures of one task, half of each as far as there are."""
    known = [episode for episode in episodes if episode.failure != CRASHED]
    successes = [episode for episode in known if episode.success]
    failures = [episode for episode in known if not episode.success]
    most = min(len(successes), max(count - count // 2, count - len(failures)))
    return [*successes[:most], *failures[: count - most]]


def _limit(spec: ActorSpec, protocol: Protocol) -> int | None:
    """A record is as long as it is."""
    return None if spec.kind == "replay" else protocol.settings.max_steps


def _film(
    campaign: Campaign,
    episodes: Sequence[EvaluatedEpisode],
    limit: int | None,
    pool: WorkerPool,
    warn: Callable[[str], None],
) -> None:
    """Run the chosen episodes again with all cameras: they repeat exactly, and no other pays for pictures."""
    plans = {plan.key: plan for plan in campaign.plans}
    chosen: list[EvaluatedEpisode] = []
    kinds = dict.fromkeys((plan.task, plan.perturbation) for plan in campaign.plans)
    for kind in kinds if campaign.videos else ():
        chosen += choose_filmed([each for each in episodes if (each.task, each.perturbation) == kind], campaign.videos)
    folder = campaign.folder / VIDEOS
    jobs = []
    for episode in chosen:
        changed = episode.perturbation.replace(":", "-")
        stem = "-".join(filter(None, (episode.task, changed, f"{episode.index:03d}")))
        if not list(folder.glob(f"{stem}-*.{campaign.video_format}")):
            film = FilmSpec(folder / f"{stem}-{{outcome}}.{campaign.video_format}", campaign.video_format)
            jobs.append(EvaluationJob(campaign.spec, plans[episode.key], limit, film))
    outcomes = {episode.key: (episode.success, episode.steps) for episode in chosen}

    def on_done(job: EvaluationJob, done: Done) -> None:
        if (done.episode.success, done.episode.steps) != outcomes[job.plan.key]:
            warn(f"{campaign.label}: {job.plan.task}, episode {job.plan.index} went another way when it was filmed")

    pool.run(jobs, on_done)


class _Progress:
    """A line once in a while."""

    def __init__(
        self, label: str, total: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._label, self._total, self._say, self._clock = label, total, say, clock
        self._last = clock()
        self._pace = Pace(clock)
        self._successes = 0

    def count(self, episode: EvaluatedEpisode) -> None:
        self._pace.count()
        self._successes += episode.success
        done, now = self._pace.done, self._clock()
        if now - self._last > PROGRESS_SECONDS and done < self._total:
            self._last = now
            counts = f"{done}/{self._total} episodes, {self._successes} successes"
            left = self._pace.left(self._total)
            self._say(f"{self._label}: {counts}" + ("" if left is None else f", about {left:.0f} s left"))
