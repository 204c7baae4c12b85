"""What an evaluation leaves: a row per episode, then rates with intervals, as JSON and as lines to read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlspec.checkpoint import write_json_atomically, write_text_atomically
from rlspec.intervals import Interval, wilson_interval
from rlspec.vla.evaluation.episodes import CRASHED, EvaluatedEpisode

EPISODES = "episodes.jsonl"
METRICS = "metrics.json"
SETTINGS = "settings.json"
WRONG_INSTRUCTION = "wrong_instruction"  # the control among the perturbations of rlspec_envs


@dataclass(frozen=True)
class Rate:
    """Successes among episodes, with the 95% Wilson interval; mean steps of all episodes and of successes."""

    successes: int
    episodes: int
    mean_steps: float
    mean_success_steps: float | None
    failures: dict[str, int] = field(default_factory=dict)  # kind -> count

    @property
    def rate(self) -> float:
        """Share of successes; 0 without any episode."""
        return self.successes / self.episodes if self.episodes else 0.0

    @property
    def interval(self) -> Interval:
        """95% Wilson interval."""
        return wilson_interval(self.successes, self.episodes)

    def to_json(self) -> dict[str, Any]:
        """Plain types, rates rounded to 4 digits."""
        return {
            "successes": self.successes,
            "episodes": self.episodes,
            "success_rate": round(self.rate, 4),
            "ci95": [round(end, 4) for end in self.interval],
            "mean_steps": round(self.mean_steps, 1),
            "mean_success_steps": None if self.mean_success_steps is None else round(self.mean_success_steps, 1),
            "failures": self.failures,
        }


def rate_of(episodes: Sequence[EvaluatedEpisode]) -> Rate:
    """Sum up episodes. Steps of crashed ones are not known and not averaged."""
    successes = [episode for episode in episodes if episode.success]
    known = [episode.steps for episode in episodes if episode.failure != CRASHED]
    return Rate(
        successes=len(successes),
        episodes=len(episodes),
        mean_steps=math.fsum(known) / len(known) if known else 0.0,
        mean_success_steps=math.fsum(each.steps for each in successes) / len(successes) if successes else None,
        failures=dict(sorted(Counter(episode.failure for episode in episodes if not episode.success).items())),
    )


@dataclass(frozen=True)
class PerturbedRate:
    """The episodes of one perturbation beside the same ones as they were.

    Attributes:
        rate: Of the perturbed ones.
        lost: That succeeded as they were, and do not perturbed.
        gained: The other way round.
    """

    rate: Rate
    lost: int
    gained: int

    def to_json(self) -> dict[str, Any]:
        """As `Rate`, and the pairs."""
        return {**self.rate.to_json(), "lost": self.lost, "gained": self.gained}


@dataclass(frozen=True)
class SimResult:
    """The result of one evaluation.

    Attributes:
        label: Name of its folder below evaluations/.
        step: Optimizer step of the weights.
        suite: Of the environments.
        tasks: Task -> rate, in the suite's order; of scenes as they are.
        total: Over all tasks; of scenes as they are.
        perturbations: Perturbation -> rate over all tasks.
        context: What else metrics.json says: settings, versions, environment, policy.
        folder: Where its files are.
    """

    label: str
    step: int
    suite: str
    tasks: dict[str, Rate]
    total: Rate
    context: dict[str, Any]
    folder: Path
    perturbations: dict[str, PerturbedRate] = field(default_factory=dict)

    @property
    def success_rate(self) -> float:
        """Successes among all episodes of all tasks, in scenes as they are."""
        return self.total.rate

    @property
    def crashed(self) -> int:
        """Episodes of which nothing is known."""
        rates = [self.total, *(each.rate for each in self.perturbations.values())]
        return sum(rate.failures.get(CRASHED, 0) for rate in rates)

    def to_json(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return {
            "label": self.label,
            "step": self.step,
            "success_rate": round(self.success_rate, 4),
            "total": self.total.to_json(),
            "suites": {self.suite: self.total.to_json()},
            "tasks": {task: rate.to_json() for task, rate in self.tasks.items()},
            "perturbations": {name: found.to_json() for name, found in self.perturbations.items()},
            **self.context,
        }

    def lines(self) -> list[str]:
        """A table: successes, percent with interval, mean steps, kinds of failure."""
        names = [*self.tasks, "total"] if len(self.tasks) > 1 else list(self.tasks)
        rates = [*self.tasks.values(), self.total][: len(names)]
        width = max(len("task"), *map(len, names))
        lines = [f"{'task':{width}}  {'success':>9}  {'rate [95% interval]':>24}  {'steps':>6}  failures"]
        for name, rate in zip(names, rates, strict=True):
            kinds = ", ".join(f"{kind} {count}" for kind, count in rate.failures.items())
            lines.append(f"{name:{width}}  {_cells(rate)}  {rate.mean_steps:>6.1f}  {kinds}".rstrip())
        lines += self._perturbed_lines()
        if crashed := self.crashed:
            lines.append(f"WARNING: {crashed} episodes crashed and count as failures; see {self.folder / EPISODES}")
        return lines

    def _perturbed_lines(self) -> Iterator[str]:
        """A row per perturbation, in which episodes are compared with the same ones as they were."""
        if not self.perturbations:
            return
        yield ""
        width = max(map(len, ["perturbation", *self.perturbations]))
        yield f"{'perturbation':{width}}  {'success':>9}  {'rate [95% interval]':>24}  {'lost':>4}  gained"
        yield f"{'none':{width}}  {_cells(self.total)}"
        for name, found in self.perturbations.items():
            yield f"{name:{width}}  {_cells(found.rate)}  {found.lost:>4}  {found.gained:>6}"
        if (control := self.perturbations.get(WRONG_INSTRUCTION)) is not None:
            apart = control.rate.interval[1] < self.total.interval[0]
            yield (
                "words are read: told to do something else, the policy succeeds at this less often"
                if apart
                else "whether words are read is not shown: told to do something else, the policy succeeds no less often"
            )


def _cells(rate: Rate) -> str:
    """Successes and percent with interval."""
    low, high = rate.interval
    percent = f"{rate.rate:.1%} [{low:.1%}, {high:.1%}]"
    return f"{f'{rate.successes}/{rate.episodes}':>9}  {percent:>24}"


def summarize(
    label: str, step: int, suite: str, episodes: Sequence[EvaluatedEpisode], context: Mapping[str, Any], folder: Path
) -> SimResult:
    """Rates per task and in total, and of each perturbation."""
    plain = [episode for episode in episodes if not episode.perturbation]
    tasks = list(dict.fromkeys(episode.task for episode in plain))
    rates = {task: rate_of([episode for episode in plain if episode.task == task]) for task in tasks}
    named = dict.fromkeys(episode.perturbation for episode in episodes if episode.perturbation)
    changed = {name: _perturbed(plain, [each for each in episodes if each.perturbation == name]) for name in named}
    return SimResult(label, step, suite, rates, rate_of(plain), dict(context), folder, changed)


def _perturbed(plain: Sequence[EvaluatedEpisode], changed: Sequence[EvaluatedEpisode]) -> PerturbedRate:
    before = {(episode.task, episode.index): episode.success for episode in plain}
    pairs = [(before[episode.task, episode.index], episode.success) for episode in changed]
    return PerturbedRate(rate_of(changed), lost=pairs.count((True, False)), gained=pairs.count((False, True)))


class Journal:
    """The rows of one evaluation on the disk, so that an interrupted one goes on.

    Args:
        folder: Of the evaluation.
        settings: All that decides what an episode comes to, JSON-safe.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.observed: dict[str, Any] = {}  # what the workers said of environment and policy

    def changed(self) -> str | None:
        """How the settings of the rows that are there differ from the present ones; None: they do not."""
        path = self.folder / SETTINGS
        if not path.is_file():
            return f"{SETTINGS} is missing" if (self.folder / EPISODES).is_file() else None
        try:
            before = _flat(json.loads(path.read_text(encoding="utf-8"))["settings"])
        except (ValueError, KeyError, TypeError):
            return f"{SETTINGS} cannot be read"
        now = _flat(self._settings)
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return ", ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in names) or None

    def open(self) -> list[EvaluatedEpisode]:
        """Write the settings; returns the episodes that are there, without those that a crash or a kill cut short."""
        path = self.folder / SETTINGS
        if path.is_file():
            self.observed = json.loads(path.read_text(encoding="utf-8")).get("observed", {})
        self._write()
        episodes = {episode.key: episode for episode in self._read() if episode.failure != CRASHED}
        self.rewrite(list(episodes.values()))
        return list(episodes.values())

    def observe(self, **observed: Any) -> None:
        """Keep what the workers say of environment and policy."""
        self.observed |= observed
        self._write()

    def _write(self) -> None:
        write_json_atomically(self.folder / SETTINGS, {"settings": self._settings, "observed": self.observed})

    def _read(self) -> Iterator[EvaluatedEpisode]:
        path = self.folder / EPISODES
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                yield EvaluatedEpisode.from_json(json.loads(line))
            except (ValueError, TypeError):
                continue  # a kill cut it short

    def append(self, episode: EvaluatedEpisode) -> None:
        """Add a row."""
        with (self.folder / EPISODES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(episode.to_json()) + "\n")

    def rewrite(self, episodes: Sequence[EvaluatedEpisode]) -> None:
        """Replace all rows."""
        rows = "".join(json.dumps(episode.to_json()) + "\n" for episode in episodes)
        write_text_atomically(self.folder / EPISODES, rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
