"""What the folder of a sweep says: the arms of its report.json, or of the runs that lie in it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlspec.comparison.estimates import has_spread
from rlspec.comparison.history import PLAN, plan_text, read_history
from rlspec.errors import DataError
from rlspec.intervals import t_interval
from rlspec.reporting.reading import RunRecord, find_run, items, mapping, number, read_mapping, read_run

REPORT = "report.json"
SCORE_WORDS = {"sampled_pass_at_1": "sampled pass@1", "success_rate": "success"}
_TUNING = "tune-"  # begins the folder of a run that only chose a learning rate
# Keys by which runs are told apart, in the order in which a reader would name them; others follow.
_FIRST = ("recipe", "algorithm", "model.name", "data.name", "policy.name", "env.name", "optim.name", "optim.lr")
_PLACES = ("run", "output_dir", "resume", "device")
_SHOWN = ("before", "every", "during_episodes", "replay", "video", "workers")  # of an evaluation
# These change no run's course and no score.
_ASIDE = ("checkpoints.", "guard.", "report.", "grader.workers", *(f"evaluation.{key}" for key in _SHOWN))
_STOPPED = re.compile(r"\.stopped-\d+$")  # ends the folder of a run that another one took the place of


@dataclass(frozen=True)
class Member:
    """A run of a sweep.

    Attributes:
        folder: Of the run; None: it is not there.
        seed: As the sweep says.
        status: finished, collapsed, failed, interrupted, running or missing.
        score: In [0, 1].
        lr: Learning rate, of tuning runs.
        numbers: What else the sweep says of it.
    """

    folder: Path | None
    seed: str
    status: str
    score: float | None
    lr: float | None = None
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but the seed, and those that chose their learning rate."""

    name: str
    members: list[Member]
    tuning: list[Member]
    statistics: dict[str, Any]
    lr: float | None = None
    at_edge: bool = False

    @property
    def scores(self) -> list[float]:
        """Of the runs that have one."""
        return [member.score for member in self.members if member.score is not None]


@dataclass(frozen=True)
class SweepRecord:
    """A comparison of arms.

    Attributes:
        folder: Of the sweep; several runs that were named have none.
        about: (label, text) of what its report says of itself.
        plan: As written beforehand; empty where there is none.
        deviations: From the plan; None: the report does not say whether it was followed.
        unfinished: What is still to come, a line for each arm.
        score: Name of the score.
        baseline: The arm to which others are compared.
        hypotheses: Stated before the runs.
        waiting: There is a plan, and no report of its results yet.
        problems: A line for each file that could not be read.
    """

    folder: Path | None
    title: str
    arms: list[Arm]
    about: list[tuple[str, str]] = field(default_factory=list)
    plan: str = ""
    deviations: list[str] | None = None
    unfinished: list[str] = field(default_factory=list)
    score: str = "score"
    baseline: str | None = None
    command: str = ""
    hypotheses: list[str] = field(default_factory=list)
    waiting: bool = False
    problems: list[str] = field(default_factory=list)


def is_sweep(folder: Path) -> bool:
    """Whether a folder is more than one run."""
    return (folder / REPORT).is_file() or (folder / PLAN).is_file() or any(_runs_in(folder))


def read_sweep(folder: Path) -> SweepRecord:
    """Read a sweep.

    Raises:
        DataError: There is nothing to compare in it.
    """
    problems: list[str] = []
    report = read_mapping(folder / REPORT, problems)
    plan = _plan(folder, problems)
    arms = [_stored_arm(mapping(each), folder) for each in items(report.get("arms"))]
    if arms:
        return SweepRecord(
            folder=folder,
            title=folder.resolve().name,
            arms=arms,
            about=_about(report),
            plan=plan,
            deviations=[str(each) for each in items(report.get("deviations"))] if "followed" in report else None,
            unfinished=[str(each) for each in items(report.get("unfinished"))],
            score=SCORE_WORDS.get(str(report.get("score")), str(report.get("score", "score"))),
            baseline=str(report["baseline"]) if report.get("baseline") else None,
            command=str(report.get("command") or ""),
            hypotheses=[str(each) for each in items(mapping(report.get("plan")).get("hypotheses"))],
            problems=problems,
        )
    runs = [(path, read_run(path)) for path in sorted(_runs_in(folder))]
    if not runs:
        reason = problems[0] if problems else "no arm in report.json and no run below it"
        raise DataError(f"{folder}: nothing to report: {reason}; give the folder of a run, or wait for the first one")
    found = compare_runs([run for _, run in runs], folder.resolve().name)
    waiting = bool(plan) and not report
    problems += found.problems
    return SweepRecord(
        folder, found.title, found.arms, plan=plan, score=found.score, waiting=waiting, problems=problems
    )


def _plan(folder: Path, problems: list[str]) -> str:
    """The first one that the folder knows; without a history, its file."""
    try:
        history = read_history(folder)
        if history:
            return plan_text(history[0])
    except (DataError, KeyError, TypeError) as error:
        problems.append(f"plans.jsonl: cannot be read ({error}) and is left out")
    path = folder / PLAN
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _about(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = report.get("machine")
    words = ", ".join(f"{key} {value}" for key, value in machine.items()) if isinstance(machine, dict) else machine
    versions = ", ".join(f"{name} {version}" for name, version in mapping(report.get("versions")).items())
    told = {"date": report.get("date"), "machine": words, "versions": versions}
    told |= {"plan's SHA-256": report.get("plan_sha256")}
    return [(label, str(text)) for label, text in told.items() if text]


def _stored_arm(arm: Mapping[str, Any], folder: Path) -> Arm:
    members = [_stored_member(mapping(run), folder) for run in items(arm.get("runs"))]
    statistics = mapping(arm.get("statistics")) or statistics_of(members)
    tuning = [_stored_member(mapping(run), folder) for run in items(arm.get("tuning"))]
    name, lr = str(arm.get("name", "unnamed")), number(arm.get("lr"))
    return Arm(name, members, tuning, statistics, lr, bool(arm.get("at_edge")))


def _stored_member(run: Mapping[str, Any], folder: Path) -> Member:
    named = run.get("run")
    path = folder / named if isinstance(named, str) and named else None
    own = {
        name: value
        for name in ("peak", "area", "mean_reward", "to_target", "seconds")
        if (value := number(run.get(name))) is not None
    }
    others = {name: value for name, each in mapping(run.get("metrics")).items() if (value := number(each)) is not None}
    return Member(
        folder=path if path is not None and find_run(path) else None,
        seed=str(run.get("seed", "")),
        status=str(run.get("status", "")),
        score=number(run.get("score")),
        lr=number(run.get("lr")),
        numbers=own | others,
    )


def statistics_of(members: Sequence[Member]) -> dict[str, Any]:
    """Mean and 95% t-interval over seeds, cut to [0, 1]; of one, or of seeds that agree, there is none."""
    scores = [member.score for member in members if member.score is not None]
    ended = [member for member in members if member.status in ("finished", "collapsed")]
    found: dict[str, Any] = {"n": len(scores)}
    if ended:
        found["collapsed"] = sum(member.status == "collapsed" for member in ended) / len(ended)
    if scores:
        found["mean"] = math.fsum(scores) / len(scores)
    if has_spread(scores):
        low, high = t_interval(scores)
        found |= {"low": max(low, 0.0), "high": min(high, 1.0)}
    return found


def compare_runs(runs: Sequence[RunRecord], title: str) -> SweepRecord:
    """Runs as arms: those whose recipes differ in nothing but the seed are one.

    Runs in folders `tune-*` are those that chose an arm's learning rate, as far as there are others.
    """
    tuning_runs = [run for run in runs if run.name.startswith(_TUNING)]
    tuned = 0 < len(tuning_runs) < len(runs)
    labels = _labels(runs, tuning_runs if tuned else [])
    problems = [f"{run.name}: {each}" for run in runs for each in run.problems]
    grouped: dict[str, list[RunRecord]] = {}
    for run, label in zip(runs, labels, strict=True):
        grouped.setdefault(label, []).append(run)
    arms = []
    for label, group in grouped.items():
        tuning = [_member(run) for run in group if tuned and run in tuning_runs]
        members = _of_different_seeds([run for run in group if run not in tuning_runs or not tuned], problems)
        rates = {member.lr for member in members}
        lr = rates.pop() if len(rates) == 1 else None
        arms.append(Arm(label, members, tuning, statistics_of(members), lr))
    names = {name for run in runs for name in SCORE_WORDS if name in mapping(run.summary.get("after"))}
    score = SCORE_WORDS[names.pop()] if len(names) == 1 else "score"
    return SweepRecord(None, title, arms, score=score, problems=problems)


def _of_different_seeds(runs: Sequence[RunRecord], problems: list[str]) -> list[Member]:
    """Two runs of one seed are no two trials: the first with a score counts, or the first."""
    members: dict[str, Member] = {}
    for run in runs:
        member = _member(run)
        known = members.setdefault(member.seed, member)
        if known is not member:
            kept, other = (member, known) if known.score is None and member.score is not None else (known, member)
            members[member.seed] = kept
            problems.append(f"{other.folder}: left out, as {kept.folder} is the same with the same seed {member.seed}")
    return list(members.values())


def _member(run: RunRecord) -> Member:
    after = mapping(run.summary.get("after"))
    score = next((value for name in SCORE_WORDS if (value := number(after.get(name))) is not None), None)
    seconds = number(run.summary.get("seconds"))
    return Member(
        folder=run.folder,
        seed=str(run.recipe.get("seed", "")),
        status="running" if run.running else run.status,
        score=None if run.running else score,
        lr=number(mapping(run.recipe.get("optim")).get("lr")),
        numbers={} if seconds is None else {"seconds": seconds},
    )


def _labels(runs: Sequence[RunRecord], tuning: Sequence[RunRecord]) -> list[str]:
    """For each run the values by which it differs from others of its kind, as few as tell all apart."""
    flat = [_flatten(run.recipe) for run in runs]
    kinds = [
        [values for run, values in zip(runs, flat, strict=True) if (run in tuning) is wanted]
        for wanted in (True, False)
    ]
    ignored = (*_PLACES, "seed", *(["optim.lr"] if tuning else []))
    every = {key for values in flat for key in values if key not in ignored and not key.startswith(_ASIDE)}
    varying = [key for key in every if any(_groups(kind, [key]) > 1 for kind in kinds)]
    varying.sort(key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key))
    kept: list[str] = []
    for key in varying:
        if _groups(flat, [*kept, key]) > _groups(flat, kept):
            kept.append(key)
    alone = [values.get("optim.name", "all") for values in flat]
    return [
        ", ".join(_part(key, values) for key in kept) or str(name) for values, name in zip(flat, alone, strict=True)
    ]


def _groups(flat: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({tuple(str(values.get(key)) for key in keys) for values in flat})


def _part(key: str, values: Mapping[str, Any]) -> str:
    value = values.get(key)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if key.endswith(".name") or "." not in key else f"{key.rpartition('.')[2]} {text}"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _runs_in(folder: Path) -> Iterable[Path]:
    """Folders of runs, one or two levels below."""
    for child in folder.iterdir() if folder.is_dir() else ():
        if child.is_dir():
            if find_run(child):
                yield child
            else:
                found = (path for path in child.iterdir() if path.is_dir() and find_run(path))
                yield from (path for path in found if not _STOPPED.search(path.name))
