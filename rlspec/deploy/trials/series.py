"""A series of trials on a robot: the plan first, then one run after the other, and a table at the end.

A series that was interrupted goes on: what was judged is in trials.jsonl, what is left is in plan.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlspec.checkpoint import write_json_atomically
from rlspec.config.schema import SEEDS, Key
from rlspec.deploy.outcome import DeploymentOutcome
from rlspec.deploy.robots.drivers import Driver
from rlspec.deploy.robots.options import FIRST_SCENE
from rlspec.deploy.run import deploy
from rlspec.deploy.series import SeriesCommand, SeriesJournal, settings_of_run
from rlspec.deploy.settings import Settings
from rlspec.deploy.trials.judge import Judge, OperatorJudge, Paused, SimulationJudge
from rlspec.deploy.trials.plan import Trial, difference, make_plan, read_policies, read_tasks, settings_of
from rlspec.deploy.trials.table import counted, is_decided, stopping_rule, table_lines
from rlspec.display import Display
from rlspec.errors import INTERRUPTED, ConfigError

PLAN, LOG, REPORT = "plan.json", "trials.jsonl", "report.md"


class TrialsCommand(SeriesCommand):
    """Policies on a robot, in random order, judged blindly: the same scenes for all of them, resets and the question of
    success on the terminal, one key each. Ends with a table; the same command goes on with a series that was paused.
    Other keys are those of python -m rlspec.deploy.
    """  # noqa: D205

    command = "trials"
    synopsis = ("policies=A,B[,C] tasks=NAME[,NAME] robot=NAME [trials=N] [key=value ...]",)
    example = "trials=30"

    policies: Annotated[
        list[str],
        Key("ws://HOST:PORT, a checkpoint's folder, expert, hold; or FILE.yaml with NAME: {key: value}", "A,B"),
    ] = Field(min_length=1)
    tasks: Annotated[
        list[str], Key("tabletop (the paper's three), FILE.yaml, or tasks of the simulation", "NAME[,NAME]")
    ] = Field(min_length=1)
    trials: Annotated[int, Key("of each policy on each task")] = Field(30, ge=1)
    seed: Annotated[int, Key("of the order and the scenes")] = Field(FIRST_SCENE, ge=0, lt=SEEDS)
    stop: Annotated[
        Literal["fixed", "sequential"],
        Key("sequential: end early, when an anytime-valid test has decided every pair; the plan states the rule"),
    ] = "fixed"
    judge: Annotated[
        Literal["auto", "operator"] | None, Key("auto: the simulation says (default where there is one)")
    ] = None
    out: Annotated[
        Path | None,
        Key("plan, runs, judgements, report (default checkpoints/trials/<robot>-<hash of the plan>)", "DIR"),
    ] = None

    @model_validator(mode="after")
    def _keys_that_a_series_sets(self) -> TrialsCommand:
        ours = {"server", "checkpoint", "policy", "prompt", "yes", "frames"}
        for override in self.overrides:
            if (key := override.partition("=")[0]) in ours:
                raise ValueError(f"{override}: the series sets {key}; name policies= and tasks= instead")
        return self


class Series:
    """One series; `run` it.

    Args:
        line: The command.
        display: Shows lines; never which policy runs.
        judge: None: by the command.
        run: Carries out a deployment.
    """

    def __init__(
        self,
        line: TrialsCommand,
        display: Display,
        judge: Judge | None = None,
        run: Callable[[Settings, Display], DeploymentOutcome] | None = None,
    ) -> None:
        self.line, self._display = line, display
        self._run_one = run or (lambda settings, quiet: deploy(settings, quiet, summary=False))
        self.policies = read_policies(line.policies)
        self.tasks = {task.name: task for task in read_tasks(line.tasks)}
        self.plan = make_plan(list(self.policies), list(self.tasks), line.trials, line.seed)
        self.out = (line.out or self._usual_folder()).expanduser()
        self.journal = SeriesJournal(self.out / LOG)
        self._confirmed = False
        checked = [self.settings(trial) for trial in self.plan[: len(self.policies) * len(self.tasks)]]
        self.judge = judge or self._usual_judge(checked[0].robot.found)

    def _usual_judge(self, driver: Driver) -> Judge:
        knows = "task" in driver.options.model_fields
        if self.line.judge == "auto" and not knows:
            raise ConfigError("judge=auto: only a simulation knows whether a task is done; take judge=operator")
        if knows and self.line.judge != "operator":
            return SimulationJudge()
        return OperatorJudge(self._display.line)

    def _usual_folder(self) -> Path:
        """The same for the same command, and another for every other."""
        return Path("checkpoints/trials") / self.line.usual_folder(self._asked())

    def settings(self, trial: Trial) -> Settings:
        """Of one trial's run.

        Raises:
            ConfigError: They are no settings of a deployment.
        """
        task = self.tasks[trial.task]
        given = [f"robot={self.line.robot}", *self.line.overrides, *settings_of(task), *self.policies[trial.policy]]
        given.append(f"out={self.out / 'runs' / f'{trial.number:04d}'}")
        settings = settings_of_run(given, self.line.seed + 7919 * trial.scene)
        keep = bool(settings.robot.cameras)  # simulated cameras are drawn for nobody
        return settings.model_copy(update={"frames": keep, "yes": settings.yes or self._confirmed})

    def stated(self) -> dict[str, Any]:
        """What is written down before the first trial."""
        return self._asked() | {"judge": "simulation" if self._simulation_judges else "operator"}

    @property
    def _simulation_judges(self) -> bool:
        return isinstance(self.judge, SimulationJudge)

    def _asked(self) -> dict[str, Any]:
        line = self.line
        return {
            "rule": stopping_rule(len(self.policies), line.trials, early=line.stop == "sequential"),
            "robot": line.robot,
            "policies": self.policies,
            "tasks": [task.model_dump() for task in self.tasks.values()],
            "trials": line.trials,
            "seed": line.seed,
            "settings": line.overrides,
            "order": [asdict(trial) for trial in self.plan],
        }

    def run(self) -> int:
        """Go on until the rule ends the series or it is paused; returns the exit code.

        Raises:
            ConfigError: The folder holds another series.
            UserError: A run cannot begin.
        """
        self._state()
        done = {line["number"] for line in self.journal.lines() if line["credit"] is not None}
        self._display.line(f"{len(self.plan)} trials; {self.stated()['rule']}")
        if done:
            self._display.line(f"{len(done)} of them are judged; it goes on")
        for trial in self.plan:
            if trial.number in done:
                continue
            if self._is_over(trial):
                self._display.line("the stopping rule ends the series here")
                break
            try:
                self._try(trial)
            except Paused:
                self._report()
                self._display.line("paused; the same command goes on")
                return INTERRUPTED
        self._report()
        return 0

    def _state(self) -> None:
        path = self.out / PLAN
        stated = json.loads(json.dumps(self.stated()))
        if not path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            write_json_atomically(path, stated)
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        before.setdefault("judge", stated["judge"])  # series that were begun before it was stated go on
        if different := difference(before, stated):
            raise ConfigError(f"out={self.out}: a series with other {different} is there; take another folder")

    def _is_over(self, trial: Trial) -> bool:
        """Only between scenes: within one the policies are not tried equally often."""
        begins = all(other.scene < trial.scene for other in self.plan[: trial.number - 1])
        results = counted(self.journal.lines())
        return self.line.stop == "sequential" and begins and is_decided(results, list(self.policies))

    def _try(self, trial: Trial) -> None:
        task = self.tasks[trial.task]
        attempt = 0
        while True:
            attempt += 1
            self.judge.prepare(trial.number, len(self.plan), task, trial.scene)
            outcome = self._carry_out(trial, attempt)
            judgement = self.judge.judge(task, outcome)
            self._write(trial, attempt, judgement.credit, outcome)
            if judgement.credit is not None:
                return

    def _carry_out(self, trial: Trial, attempt: int) -> DeploymentOutcome:
        settings = self.settings(trial)
        again = f"-{attempt}" if attempt > 1 else ""
        folder = Path(f"{settings.out}{again}")
        while (folder / "ticks.jsonl").exists():  # of a run that was never judged
            folder = folder.with_name(f"{folder.name}-unjudged")
        quiet = Display(quiet=self._confirmed or settings.effective_mode != "real")
        outcome = self._run_one(settings.model_copy(update={"out": str(folder)}), quiet)
        self._confirmed = True
        return outcome

    def _write(self, trial: Trial, attempt: int, credit: float | None, outcome: DeploymentOutcome) -> None:
        about = {"end": outcome.end, "reason": outcome.reason, "ticks": outcome.ticks, "stops": outcome.stops}
        about |= {"recoveries": outcome.recoveries, "intervened": outcome.end == "user"}
        self.journal.add({**asdict(trial), "attempt": attempt, "credit": credit, **about})

    def _report(self) -> None:
        lines = table_lines(counted(self.journal.lines()), list(self.policies), list(self.tasks))
        judged = "by the simulation" if self._simulation_judges else "by an operator who was not told"
        rule = self.stated()["rule"]
        head = ["# Trials", "", f"Robot: {self.line.robot}; judged {judged}.", f"Stated beforehand: {rule}."]
        foot = ["", "Wilson intervals hold for a fixed number of trials; after an early end, the evidence counts."]
        (self.out / REPORT).write_text("\n".join([*head, "", *lines, *foot, ""]), encoding="utf-8")
        for text in lines:
            self._display.line(text)
        self._display.line(f"report     {self.out / REPORT}")
