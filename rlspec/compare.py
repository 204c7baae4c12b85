"""Compare arms: `python -m rlspec.compare recipe=A optim=X,Y seed=0,1,2 tune.lr=[1e-5,1e-4]`, or `plan=FILE`."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlspec.comparison.plan import Match, Plan, Tune, plan_of_values, read_plan
from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.entry import command
from rlspec.errors import INTERRUPTED, ONE_SIGNAL, ConfigError

if TYPE_CHECKING:
    from types import FrameType

    from rlspec.comparison.launchers import Launcher
    from rlspec.comparison.running import RunTrainer
    from rlspec.comparison.sweep import ArmResults

_OF_A_PLAN = ("tune", "score", "baseline", "target", "equal", "match", "kl")  # keys that plan=FILE has inside


class CompareCommand(CommandLine):
    """Every combination of the comma-separated values is an arm, trained once per seed, each run in a process of its
    own. With tune.lr or tune.range each arm's rate is chosen first, on other seeds, with the same budget for every arm.
    The plan is written and hashed before the first run; report.md and report.json say what came of it. What has a
    summary in DIR is not run again; what was stopped is resumed: after Ctrl-C or a kill the same command goes on.
    """  # noqa: D205

    command = "compare"
    synopsis = (
        "recipe=NAME[,NAME] [optim=NAME[,NAME]] [seed=0,1,2] [key=value[,value]] [tune.lr=[RATES]]",
        "plan=FILE.yaml [workers=N] [out=DIR]",
    )
    example = "optim=pion,adamw"
    below = {"slurm": "slurm"}
    recipe = True

    workers: Annotated[int, Key("runs at a time; the cores are divided among them")] = Field(1, ge=1)
    out: Annotated[Path, Key("of the runs and the report", "DIR")] = Path("checkpoints/compare")
    plan: Annotated[Path | None, Key("of arms that no combination gives; see rlspec/comparison/README.md", "FILE")] = (
        None
    )
    train: Annotated[bool, Key("false: report what is there, and train nothing", "true|false")] = True
    tune: Tune = Tune()
    score: Annotated[
        str | None, Key("what is compared, for example pass_at_k.8; null: by the recipe", "NAME", "What is judged")
    ] = None
    baseline: Annotated[str | None, Key("the arm that the others are paired with, seed by seed", "ARM")] = None
    target: Annotated[float | None, Key("of the score: steps to it", "SHARE")] = Field(None, gt=0, le=1)
    kl: Annotated[bool, Key("measure how far each policy went from its start", "true|false")] = False
    equal: Annotated[Literal["steps", "samples", "seconds"], Key("what every arm has as much of", "", "Fairness")] = (
        "steps"
    )
    match: Annotated[
        list[Match], Key("whose length of step: the paper's, AdamW's RMS, Muon's spectral norm", "LIST")
    ] = []
    launcher: Annotated[Literal["local", "slurm"], Key("where runs live", "", "Elsewhere")] = "local"
    slurm: Annotated[dict[str, Any], Key("submitit's parameters, for example slurm.slurm_partition=gpu", "VALUE")] = {}
    overrides: list[str] = []

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        inside = [*self.overrides, *(f"{key}=" for key in _OF_A_PLAN if key in self.model_fields_set)]
        if self.plan is not None and inside:
            raise ConfigError(
                f"{inside[0].rstrip('=')}: stands in the plan's file; change it there, or leave plan= out"
            )
        if self.slurm and self.launcher != "slurm":
            raise ConfigError("slurm: needs launcher=slurm")
        return self

    def planned(self) -> Plan:
        """The plan that it asks for."""
        if self.plan is not None:
            return read_plan(self.plan)
        further = {
            "score": self.score,
            "baseline": self.baseline,
            "target": self.target,
            "equal": self.equal,
            "kl": self.kl,
        }
        return plan_of_values(self.overrides, self.match, tune=self.tune.model_dump(mode="json"), **further)

    def where(self) -> Launcher:
        """What runs the processes."""
        from rlspec.comparison.launchers import Local, Submitit

        return Local(self.workers) if self.launcher == "local" else Submitit(self.out / "slurm", self.slurm)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 if a run failed, 2 for a mistake of the user, 130 after Ctrl-C."""
    return command(CompareCommand, lambda line: _compare(line, list(sys.argv[1:] if argv is None else argv)), argv)


def _compare(line: CompareCommand, arguments: Sequence[str]) -> int:
    plan = line.planned()
    from rlspec.comparison.running import RunTrainer
    from rlspec.comparison.sweep import Sweep

    trainer = RunTrainer(line.out, line.where())
    if not line.train:
        trainer.stopped.set()
    sweep = Sweep(plan, trainer, line.workers, _drift if plan.kl else None)
    sweep.check()
    sys.stdout.write(f"{_size(plan)}, {line.workers} at a time, in {line.out}\n")
    words = [argument for argument in arguments if argument != "train=false"]  # the command that goes on
    again = shlex.join(["python", "-m", "rlspec.compare", *words])
    try:
        with _stopped_by_signals(trainer):
            results = sweep.run()
    except KeyboardInterrupt:
        _write_report(plan, Sweep(plan, trainer, line.workers).run(), line.out, again)  # of what there is
        raise
    text = _write_report(plan, results, line.out, again)
    sys.stdout.write(f"\n{text}\nreport: {line.out / 'report.md'}\n")
    return 1 if any(run.summary is None or run.error for arm in results for run in (*arm.tuning, *arm.runs)) else 0


def _write_report(plan: Plan, results: Sequence[ArmResults], out: Path, again: str) -> str:
    from rlspec.checkpoint import write_json_atomically, write_text_atomically
    from rlspec.comparison.report import build_report, render_markdown

    report = build_report(plan, results, out, again)
    text = render_markdown(report)
    write_json_atomically(out / "report.json", report)
    write_text_atomically(out / "report.md", text)
    return text


@contextmanager
def _stopped_by_signals(trainer: RunTrainer) -> Iterator[None]:
    """Ctrl-C, or a scheduler's word: no further run begins, and those under way write a checkpoint and end.

    A second signal, a second later or more, is passed on to them, and not waited for.
    """
    first: float | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = monotonic()
        if first is not None and now - first < ONE_SIGNAL:
            return
        trainer.stopped.set()
        running = trainer.launcher.stop()
        if first is not None:
            os._exit(INTERRUPTED)
        first = now
        if running:  # not through a stream: the signal may have come while it was written to
            os.write(2, f"\nwaiting for {running} runs to write a checkpoint (again to leave at once)\n".encode())
        signal.default_int_handler(number, frame)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _size(plan: Plan) -> str:
    arms, runs = len(plan.arms), len(plan.arms) * len(plan.seeds)
    tuning = sum(len(plan.tune.rates(arm)) for arm in plan.arms) * len(plan.tune.seeds) if plan.tune.wanted else 0
    text = f"{runs} runs in {arms} arms"
    return f"{text}, after {tuning} that choose rates" if tuning else text


def _drift(folder: Path) -> Mapping[str, float]:
    from rlspec.rlvr.drift import drift_of_run

    return drift_of_run(folder)


if __name__ == "__main__":
    sys.exit(main())
