"""A comparison from its plan to its report: tune every arm, train the seeds of the claim, measure, estimate."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rlspec.checkpoint import write_json_atomically
from rlspec.comparison.history import record_plan
from rlspec.comparison.length import same_samples, same_seconds
from rlspec.comparison.measures import SCORES, RunMeasures, check_measured, measure
from rlspec.comparison.plan import Plan, slug
from rlspec.comparison.running import (
    TO_COME,
    PlannedRun,
    RunTrainer,
    Summary,
    check_jobs,
    planned_run,
    unfinished_status,
)
from rlspec.comparison.tuning import Score, Tuned, tune
from rlspec.errors import UserError

Further = Callable[[Path], Mapping[str, float]]
"""Measures a finished run's folder; the numbers have names."""


@dataclass(frozen=True)
class Result:
    """Of one run."""

    job: PlannedRun
    summary: Summary | None  # None: it failed
    measured: RunMeasures | None
    error: str | None = None  # why it could not be measured, or not as a whole


@dataclass
class ArmResults:
    """Of one arm."""

    name: str
    tuned: Tuned | None = None
    lr: float | None = None
    tuning: list[Result] = field(default_factory=list)
    runs: list[Result] = field(default_factory=list)
    no_pace: bool = False  # how long it may train is not known


class Sweep:
    """Runs a plan. Arms go side by side, as many as there are workers, in the plan's order."""

    def __init__(self, plan: Plan, runner: RunTrainer, workers: int, further: Further | None = None) -> None:
        self.plan = plan
        self.runner = runner
        self.workers = workers
        self.further = further
        self.pool = ThreadPoolExecutor(workers)
        self.baseline_pace: float | None = None  # seconds of a step

    def run(self) -> list[ArmResults]:
        """Train what is not trained yet; the results, arm by arm."""
        plan = self.plan
        record_plan(plan, self.runner.out)
        names = list(plan.arms)
        if plan.equal == "seconds":  # the others need its pace
            assert plan.baseline is not None
            names = [plan.baseline, *(name for name in names if name != plan.baseline)]
        try:
            first = [self._arm(names.pop(0))] if plan.equal == "seconds" else []
            with ThreadPoolExecutor(self.workers) as arms:
                try:
                    results = [*first, *arms.map(self._arm, names)]
                except BaseException:
                    self.runner.stopped.set()
                    arms.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            self.pool.shutdown(cancel_futures=True)
        return sorted(results, key=lambda arm: list(plan.arms).index(arm.name))

    def check(self) -> None:
        """Raises ConfigError where a run is no valid recipe, or its folder holds another; before `run`."""
        plan = self.plan
        jobs = [job for arm in plan.arms for job in (*self._possible_tuning(arm), *self._possible_claims(arm))]
        check_jobs(jobs, self.runner.out, partial(check_measured, plan))

    def _possible_tuning(self, arm: str) -> list[PlannedRun]:
        tune = self.plan.tune
        rates = tune.rates(arm) if tune.wanted else []
        return [planned_run(self.plan, arm, "tune", seed, lr) for lr in rates for seed in tune.seeds]

    def _possible_claims(self, arm: str) -> list[PlannedRun]:
        """At every rate of the grid, and at those that an earlier command has chosen beyond it."""
        plan, length = self.plan, self._length(arm)
        rates: set[float | None] = {*plan.tune.rates(arm)} if plan.tune.wanted else {None}
        if plan.tune.wanted:
            folder = self.runner.out / slug(arm)
            found = (re.fullmatch(r"claim-lr_(.+)-seed_\d+", path.name) for path in folder.glob("claim-lr_*"))
            rates |= {float(match[1]) for match in found if match}
        jobs = [planned_run(plan, arm, "claim", seed, lr, length) for lr in rates for seed in plan.seeds]
        unknown = plan.equal == "seconds"  # the steps of what is there
        return [job for job in jobs if not (unknown and (self.runner.out / job.folder).exists())]

    def _length(self, arm: str, pace: float | None = None) -> tuple[str, ...]:
        plan = self.plan
        if plan.equal == "samples":
            return same_samples(plan, arm)
        if plan.equal == "seconds" and pace and self.baseline_pace:
            return same_seconds(plan, arm, self.baseline_pace / pace)
        return ()

    def _arm(self, name: str) -> ArmResults:
        plan, arm = self.plan, ArmResults(name)
        pace = None
        if plan.tune.wanted:
            arm.tuned = tune(plan.tune, name, lambda rates: self._tuning(arm, rates))
            waiting = self.runner.stopped.is_set() and any(map(self._to_come, arm.tuning))
            arm.lr = None if waiting else arm.tuned.best  # what is not tried yet may be better
            paces = sorted(r.measured.seconds_per_step or 0.0 for r in arm.tuning if r.measured)
            pace = paces[len(paces) // 2] if paces else None
            if name == plan.baseline:
                self.baseline_pace = pace
            arm.no_pace = plan.equal == "seconds" and not (pace and self.baseline_pace)
            if arm.lr is None or arm.no_pace:
                return arm
        more = self._length(name, pace)
        arm.runs = self._results([planned_run(plan, name, "claim", seed, arm.lr, more) for seed in plan.seeds])
        return arm

    def _to_come(self, result: Result) -> bool:
        return result.summary is None and unfinished_status(self.runner.out / result.job.folder) in TO_COME

    def _tuning(self, arm: ArmResults, rates: Sequence[float]) -> dict[float, list[Score]]:
        seeds = self.plan.tune.seeds
        jobs = [planned_run(self.plan, arm.name, "tune", seed, lr) for lr in rates for seed in seeds]
        results = self._results(jobs)
        arm.tuning += results
        return {
            lr: [result.measured.score if result.measured else None for result in results if result.job.lr == lr]
            for lr in rates
        }

    def _results(self, jobs: Sequence[PlannedRun]) -> list[Result]:
        """Of every run, in the jobs' order; what other commands in the folder train at the moment comes last."""
        left, turn = list(jobs), threading.Lock()

        def next_one(_: PlannedRun) -> Result:
            with turn:
                free = (job for job in left if unfinished_status(self.runner.out / job.folder) != "running")
                left.remove(chosen := next(free, left[0]))
            return self._result(chosen)

        found = {result.job: result for result in self.pool.map(next_one, jobs)}
        return [found[job] for job in jobs]

    def _result(self, job: PlannedRun) -> Result:
        folder = self.runner.out / job.folder
        known = self.runner.out.joinpath(job.folder, "summary.json").is_file()
        summary = self.runner(job)
        result = Result(job, None, None) if summary is None else self._measured(job, summary, folder)
        if not self.runner.stopped.is_set():
            _say(result, folder, known=known)
        return result

    def _measured(self, job: PlannedRun, summary: Summary, folder: Path) -> Result:
        """What is wrong with one run's measurement is said of that run; the others go on."""
        error = None
        if job.kind == "claim" and self.further is not None and not (folder / "measured.json").is_file():
            try:
                write_json_atomically(folder / "measured.json", dict(self.further(folder)))
            except UserError as reason:
                error = str(reason)
        try:
            measured = measure(summary, folder, self.plan.score, self.plan.target)
            return Result(job, summary, measured, error or measured.problem)
        except UserError as reason:
            return Result(job, summary, None, str(reason))


def _say(result: Result, folder: Path, *, known: bool) -> None:
    job, summary, measured = result.job, result.summary, result.measured
    if summary is None:
        line = f"FAILED, see {folder}.log"
    elif measured is None:
        line = f"{summary['status']}, not measured: {result.error}"
    else:
        words = next((words for key, words in SCORES.items() if key in (summary.get("after") or {})), "score")
        line = f"{summary['status']}, {words} {_percent(measured.before)} -> {_percent(measured.score)}, "
        line += f"{measured.seconds or 0:.0f} s" + (" (earlier)" if known else "")
    sys.stdout.write(f"{job.folder}: {line}\n")
    sys.stdout.flush()


def _percent(score: float | None) -> str:
    return "?" if score is None else f"{100 * score:.1f}%"
