"""One run from recipe to summary: measure, train, measure again, and say where everything is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from rlspec.checkpoint import (
    explain_write_failure,
    list_checkpoints,
    read_manifest,
    staged_folder,
    what_is_left,
    write_json_atomically,
    write_text_atomically,
)
from rlspec.config.load import dump_recipe
from rlspec.config.match import differing_keys
from rlspec.config.schema import Recipe
from rlspec.display import Display
from rlspec.errors import CheckpointError, UserError
from rlspec.inspect.curves import plot_curves
from rlspec.optim.table import RENDERERS, render_text
from rlspec.rlvr.arguments import choose_device, training_steps
from rlspec.rlvr.batching import BatchPlan
from rlspec.rlvr.callbacks import CollapseGuard, EvaluationCallback, Interrupt, MetricsCallback, OptimizerCallback
from rlspec.rlvr.data import Problem
from rlspec.rlvr.evaluation import Metrics
from rlspec.rlvr.evaluator import Evaluator, build_protocol, format_metrics
from rlspec.rlvr.grading.pool import GraderPool
from rlspec.rlvr.memory import GIB, MemoryEstimate, check_memory, device_memory
from rlspec.rlvr.models import load_tokenizer
from rlspec.rlvr.preflight import check_problems, prompt_length_of
from rlspec.rlvr.quiet import quiet_libraries
from rlspec.rlvr.session import (
    Parts,
    Problems,
    batch_plan,
    build_trainer,
    completion_length,
    estimate_run_memory,
    identical_to_grpo,
    load_policy,
    longest_prompt,
    prompt_style,
    read_all_problems,
)
from rlspec.rlvr.trainers import RlspecTrainerMixin
from rlspec.run_directory import RECIPE, SUMMARY, ResumePoint, RunDirectory, create_run, find_resume_point
from rlspec.versions import library_versions

Measured = dict[str, Metrics]  # by data set

INTERRUPTED = 130  # exit code of a run that Ctrl-C ended, as in a shell


@dataclass
class Outcome:
    """How a run ended."""

    status: str = "finished"  # finished, interrupted, collapsed
    seconds: float = 0.0
    before: dict[str, Any] | None = None  # by data set, as JSON
    after: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def run_recipe(recipe: Recipe) -> int:
    """Train as the recipe says; returns the exit code (0, or 130 after an interruption).

    Raises:
        rlspec.errors.UserError: What the user can mend, in one line.
    """
    quiet_libraries()
    process = PartialState(cpu=recipe.device == "cpu")
    display = Display(recipe.report.display, quiet=not process.is_main_process)
    display.relay_messages_of("rlspec")
    plan = batch_plan(recipe, process.num_processes)
    display.heading(f"{recipe.recipe}: {recipe.algorithm} of {recipe.model.name} with {recipe.optim.name}")
    display.line(plan.describe())
    point = _resume_point(recipe, display, process)
    run = point.run if point else _new_run(recipe, process)
    display.line(f"run directory: {run.path}" + (f", resumed after step {point.step}" if point else ""))
    if identical_to_grpo(recipe):
        display.warn(
            "every update has rollouts of its own, so all ratios are 1 and GMPO is GRPO with a mean over sequences; "
            "set batch.updates_per_generation to 4 or more"
        )
    problems = read_all_problems(recipe)
    interrupt = Interrupt(display)
    with closing(problems.grader(recipe.grader)) as pool, interrupt.installed():
        try:
            return _Run(recipe, display, plan, run, point, problems, pool, interrupt, process).execute()
        except (OSError, RuntimeError) as error:
            if (reason := explain_write_failure(error)) is None:
                raise
            raise UserError(f"{run.path}: {reason}; {what_is_left(run.checkpoints)}") from error


@dataclass
class _Run:
    """A run in progress; `execute` reads as its story."""

    recipe: Recipe
    display: Display
    plan: BatchPlan
    run: RunDirectory
    point: ResumePoint | None
    problems: Problems
    pool: GraderPool
    interrupt: Interrupt
    process: PartialState

    def execute(self) -> int:
        started = time.monotonic()
        outcome = Outcome()
        parts, evaluator = self._prepare()
        outcome.before = self._measure_before(parts, evaluator)
        trainer, guard = self._trainer(parts, evaluator)
        with self.display.steps(parts.steps, start=self.point.step if self.point else 0):
            trainer.train(resume_from_checkpoint=str(self.point.checkpoint) if self.point else None)
        if self.interrupt.requested:
            outcome.status = "interrupted"
        elif guard is not None and guard.collapsed:
            outcome.status = "collapsed"
        if outcome.status != "interrupted" and self.recipe.evaluation.after:
            outcome.after = self._measure(evaluator, parts, "after", trainer.state.global_step)
        outcome.seconds = round(time.monotonic() - started, 1)
        if self.process.is_main_process:
            self._finish(outcome, trainer)
        return INTERRUPTED if outcome.status == "interrupted" else 0

    def _prepare(self) -> tuple[Parts, Evaluator]:
        recipe, style = self.recipe, prompt_style(self.recipe.model)
        tokenizer = load_tokenizer(recipe.model.path, revision=recipe.model.revision)
        train = self._checked(self.problems.train, tokenizer, longest_prompt(recipe, tokenizer))
        sets = self.problems.measured
        sizes = ", ".join(f"{len(problems)} of {name}" for name, problems in sets.items())
        self.display.line(f"problems: {len(train)} of {recipe.data.name} to train on; {sizes} held out to measure on")
        device = choose_device(recipe.device)
        self._show_memory(estimate_run_memory(recipe, self.plan, tokenizer), device)
        parts = Parts(
            recipe=recipe,
            run=self.run,
            plan=self.plan,
            device=device,
            steps=training_steps(recipe, len(train)),
            policy=load_policy(recipe.model, tokenizer, seed=recipe.seed),
            tokenizer=tokenizer,
            problems=train,
            pool=self.pool,
        )
        parts.policy.to(parts.device)
        protocol = build_protocol(recipe.evaluation, max_new_tokens=completion_length(recipe))
        return parts, Evaluator(sets, style, protocol, self.pool, self.run.evaluations)

    def _show_memory(self, estimate: MemoryEstimate, device: str) -> None:
        warning = check_memory(estimate, device_memory(torch.device(device)))
        # A small model's account is all zeros: its sum says enough.
        small = estimate.total < GIB
        self.display.line(f"memory: about {estimate.total / 2**20:.0f} MiB at the peak" if small else estimate.table())
        if warning:
            self.display.warn(warning)

    def _checked(self, problems: list[Problem], tokenizer: Any, longest: int) -> list[Problem]:
        """The problems that pass the preflight; a resumed run drops those that it dropped at first."""
        report, limit = self.run.path / "preflight.jsonl", self.recipe.data.limit
        if self.point is not None and report.is_file():
            dropped = {json.loads(line)["id"] for line in report.read_text(encoding="utf-8").splitlines()}
            return [problem for problem in problems if problem.id not in dropped][:limit]
        style = prompt_style(self.recipe.model)
        length = prompt_length_of(
            tokenizer,
            system_prompt=style.system_prompt,
            instruction=style.instruction,
            chat_template_kwargs=style.template_kwargs,
        )
        checked = check_problems(problems, pool=self.pool, prompt_length=length, max_prompt_length=longest, limit=limit)
        if self.process.is_main_process:
            checked.write(report)
            self.display.line(f"{checked.describe()}" + (f"; list: {report}" if checked.dropped else ""))
        return checked.problems

    def _trainer(self, parts: Parts, evaluator: Evaluator) -> tuple[RlspecTrainerMixin, CollapseGuard | None]:
        trainer = build_trainer(parts)
        recipe = self.recipe
        trainer.create_optimizer()
        self._show_symmetry(trainer)
        trainer.add_callback(MetricsCallback(self.run, self.display))
        trainer.add_callback(OptimizerCallback(lambda: trainer.spectral_optimizer, self.display))
        trainer.add_callback(self.interrupt)
        guard = None
        if recipe.guard.enabled and recipe.algorithm != "sft":
            settings = recipe.guard.model_dump(exclude={"enabled"})
            guard = CollapseGuard(**settings, display=self.display, rewards=self._earlier_rewards())
            trainer.add_callback(guard)
        if recipe.evaluation.every:
            callback = self._evaluate_and_keep_best(parts, evaluator)
            trainer.add_callback(EvaluationCallback(callback, recipe.evaluation.every))
        return trainer, guard

    def _earlier_rewards(self) -> list[float]:
        return [row["reward"] for row in self.run.read_metrics() if isinstance(row.get("reward"), float)]

    def _show_symmetry(self, trainer: RlspecTrainerMixin) -> None:
        mapping = trainer.spectral_optimizer.symmetry
        assert mapping is not None
        self.display.line(render_text(mapping))
        if self.process.is_main_process:
            for suffix in (".md", ".json"):
                write_text_atomically(self.run.path / f"symmetry{suffix}", RENDERERS[suffix](mapping))

    def _measure_before(self, parts: Parts, evaluator: Evaluator) -> dict[str, Any] | None:
        if self.point is not None:
            # The weights before training are gone; what was measured then is not.
            return evaluator.stored("before") or None
        return self._measure(evaluator, parts, "before", 0) if self.recipe.evaluation.before else None

    def _measure(self, evaluator: Evaluator, parts: Parts, label: str, step: int) -> dict[str, Any]:
        results = evaluator(parts.policy, parts.tokenizer, label)
        self._record(results, label, step)
        return {name: metrics.to_json() for name, metrics in results.items()}

    def _record(self, results: Measured, label: str, step: int) -> None:
        if not self.process.is_main_process:
            return
        row: dict[str, Any] = {"step": step}
        for name, metrics in results.items():
            row[f"eval/{name}/pass_at_1"] = metrics.pass_at_1
            row[f"eval/{name}/sampled_pass_at_1"] = metrics.sampled_pass_at_1
            for text in format_metrics(f"{label}: {name}", metrics):
                self.display.line(text)
        self.run.append_metrics(row)

    def _evaluate_and_keep_best(self, parts: Parts, evaluator: Evaluator) -> Callable[[int], None]:
        def evaluate(step: int) -> None:
            results = evaluator(parts.policy, parts.tokenizer, f"step-{step}")
            self._record(results, f"step {step}", step)
            score = next(iter(results.values())).sampled_pass_at_1
            if self.recipe.checkpoints.keep_best and self.process.is_main_process and score > self._best_score():
                with staged_folder(self.run.best, metadata={"step": step, "sampled_pass_at_1": score}) as folder:
                    parts.policy.save_pretrained(folder)
                    parts.tokenizer.save_pretrained(folder)
                    parts.checkpoint_extras(folder)

        return evaluate

    def _best_score(self) -> float:
        return read_manifest(self.run.best)["sampled_pass_at_1"] if self.run.best.is_dir() else -1.0

    def _finish(self, outcome: Outcome, trainer: RlspecTrainerMixin) -> None:
        recipe = self.recipe
        first = next(iter(outcome.before or outcome.after or {}), recipe.data.name)
        newest = list_checkpoints(self.run.checkpoints)
        summary = {
            "recipe": recipe.recipe,
            "status": outcome.status,
            "model": recipe.model.name,
            "optim": recipe.optim.name,
            "seed": recipe.seed,
            "steps": trainer.state.global_step,
            "seconds": outcome.seconds,
            "versions": library_versions(),
            "data": first,
            "before": (outcome.before or {}).get(first),
            "after": (outcome.after or {}).get(first),
            "evaluations": {"before": outcome.before, "after": outcome.after},
            "checkpoint": str(newest[-1]) if newest else None,
            "best": str(self.run.best) if self.run.best.is_dir() else None,
        }
        write_json_atomically(self.run.path / SUMMARY, summary)
        title = (
            f"{self.run.path.name}: {recipe.algorithm}, {recipe.model.name}, {recipe.optim.name}, seed {recipe.seed}"
        )
        plot_curves(self.run.read_metrics(), self.run.path / "curves.png", title=title)
        self._say_where(summary)

    def _say_where(self, summary: dict[str, Any]) -> None:
        path, show = self.run.path, self.display.line
        before, after = summary["before"], summary["after"]
        self.display.heading(f"{summary['status']} after {summary['steps']} steps and {summary['seconds']:.0f} s")
        if before and after:
            gain = 100 * (after["sampled_pass_at_1"] - before["sampled_pass_at_1"])
            show(
                f"sampled pass@1 on {summary['data']}: {before['sampled_pass_at_1']:.1%} before, "
                f"{after['sampled_pass_at_1']:.1%} after ({gain:+.1f} points)"
            )
        if summary["status"] == "collapsed":
            show(f"best weights: {summary['best'] or 'none were kept (evaluation.every is not set)'}")
        show(f"summary   {path / SUMMARY}")
        show(f"curves    {path / 'curves.png'}")
        show(f"answers   {self.run.evaluations}")
        show(f"evaluate  python -m rlspec.evaluate checkpoint={path}")
        show(f"resume    python -m rlspec.train resume={path}" + _more_steps(summary))


def _more_steps(summary: dict[str, Any]) -> str:
    return f" trainer.max_steps={2 * summary['steps']}" if summary["status"] == "finished" else ""


def _new_run(recipe: Recipe, process: PartialState) -> RunDirectory:
    """Made by the main process; the others learn its name."""
    path = [""]
    if process.is_main_process:
        run = create_run(Path(recipe.output_dir), recipe.run_name, explicit=recipe.run is not None)
        (run.path / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
        path = [str(run.path)]
    if process.num_processes > 1:
        broadcast_object_list(path)
    return RunDirectory(Path(path[0]))


def _resume_point(recipe: Recipe, display: Display, process: PartialState) -> ResumePoint | None:
    """Where to go on; the stored recipe must agree with this one on everything that shapes the weights."""
    if recipe.resume is None:
        return None
    point = find_resume_point(recipe.resume, Path(recipe.output_dir), recipe.run_name)
    stored = yaml.safe_load((point.checkpoint / RECIPE).read_text(encoding="utf-8"))
    different = differing_keys(stored, recipe.model_dump(mode="json"))
    if different:
        key, old, new = different[0]
        others = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise CheckpointError(
            f"{point.checkpoint}: written with {key}={old}, the recipe says {new}{others}; drop the override, "
            "or start a new run without resume"
        )
    for note in point.notes:
        display.warn(note)
    if process.is_main_process:
        point.run.forget_metrics_after(point.step)
    return point
