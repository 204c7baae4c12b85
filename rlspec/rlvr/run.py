"""One run from recipe to summary: measure, train, measure again, and say where everything is."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from rlspec.checkpoint import (
    explain_write_failure,
    read_manifest,
    staged_folder,
    what_is_left,
    write_text_atomically,
)
from rlspec.config.schema import Recipe
from rlspec.display import Display
from rlspec.errors import INTERRUPTED, UserError
from rlspec.optim.map.render import RENDERERS, render_text
from rlspec.rlvr.arguments import training_steps, uses_bf16
from rlspec.rlvr.batching import BatchPlan
from rlspec.rlvr.callbacks import (
    CollapseGuard,
    EvaluationCallback,
    InterruptCallback,
    MetricsCallback,
    OptimizerCallback,
)
from rlspec.rlvr.data import Problem
from rlspec.rlvr.evaluation import Metrics
from rlspec.rlvr.evaluator import Evaluator, build_protocol, format_metrics
from rlspec.rlvr.grading.pool import GraderPool
from rlspec.rlvr.memory import MemoryEstimate, check_memory
from rlspec.rlvr.models import load_tokenizer
from rlspec.rlvr.outcome import Outcome, earlier_seconds, show_outcome, write_outcome
from rlspec.rlvr.preflight import check_problems, prompt_length_of
from rlspec.rlvr.session import (
    Parts,
    Problems,
    batch_plan,
    build_trainer,
    completion_length,
    describe_profile,
    estimate_run_memory,
    identical_to_grpo,
    load_policy,
    longest_prompt,
    prompt_style,
    read_all_problems,
)
from rlspec.rlvr.starting import stretched_schedule
from rlspec.rlvr.trainers import RlspecTrainerMixin
from rlspec.run_directory import PREFLIGHT, ResumePoint, RunDirectory
from rlspec.runtime.devices import GIB, choose_device, device_memory
from rlspec.runtime.quiet import quiet_libraries
from rlspec.runtime.starting import new_run, resume_point

Measured = dict[str, Metrics]  # by data set


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
    display.line(describe_profile(recipe, choose_device(recipe.device)))
    display.line(plan.describe())
    problems = read_all_problems(recipe)  # before a directory is made: a missing file is the commonest mistake
    point = resume_point(recipe, display, process, stretched=lambda stored: stretched_schedule(recipe, stored))
    run = point.run if point else new_run(recipe, process)
    display.line(f"run directory: {run.path}" + (f", resumed after step {point.step}" if point else ""))
    if identical_to_grpo(recipe):
        display.warn(
            "every update has rollouts of its own, so all ratios are 1 and GMPO is GRPO with a mean over sequences; "
            "set batch.updates_per_generation to 4 or more"
        )
    interrupt = InterruptCallback()
    with closing(problems.grader(recipe.grader)) as pool, interrupt.installed():
        try:
            return _Run(recipe, display, plan, run, point, problems, pool, interrupt, process).execute()
        except torch.OutOfMemoryError as error:
            remedy = (
                "lower batch.micro_batch or trainer.max_completion_length, or set trainer.gradient_checkpointing=true"
            )
            raise UserError(f"out of memory on the device: {remedy}; {what_is_left(run.checkpoints)}") from error
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
    interrupt: InterruptCallback
    process: PartialState

    def execute(self) -> int:
        started = time.monotonic()
        parts, evaluator = self._prepare()
        before = self._measure_before(parts, evaluator)
        trainer, guard = self._trainer(parts, evaluator)
        with self.display.steps(parts.steps, start=self.point.step if self.point else 0):
            trainer.train(resume_from_checkpoint=str(self.point.checkpoint) if self.point else None)
        outcome = Outcome(steps=trainer.state.global_step, before=before)
        if self.interrupt.requested:
            outcome.status = "interrupted"
        elif guard is not None and guard.collapsed:
            outcome.status = "collapsed"
        if outcome.status != "interrupted" and self.recipe.evaluation.after:
            outcome.after = self._measure(evaluator, parts, "after", outcome.steps)
        outcome.seconds = round(time.monotonic() - started + (earlier_seconds(self.run) if self.point else 0.0), 1)
        if self.process.is_main_process:
            summary = write_outcome(outcome, self.recipe, self.run)
            show_outcome(summary, self.recipe, self.run, self.display)
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
        protocol = build_protocol(
            recipe.evaluation, max_new_tokens=completion_length(recipe), bf16=uses_bf16(recipe, device)
        )
        return parts, Evaluator(sets, style, protocol, self.pool, self.run.evaluations)

    def _show_memory(self, estimate: MemoryEstimate, device: str) -> None:
        warning = check_memory(estimate, device_memory(torch.device(device)))
        # A small model's account is all zeros: its sum says enough.
        small = estimate.total < GIB
        self.display.line(f"memory: about {estimate.total / 2**20:.0f} MiB at the peak" if small else estimate.table())
        if warning:
            self.display.warn(warning)

    def _checked(self, problems: list[Problem], tokenizer: Any, longest: int) -> list[Problem]:
        """The problems that pass the preflight.

        The main process checks once and for all: the others, and a resumed run, drop what its report lists, so that a
        verdict that timed out here and not there cannot give two orders of problems.
        """
        report = self.run.path / PREFLIGHT
        if self.process.is_main_process and (self.point is None or not report.is_file()):
            self._check(problems, tokenizer, longest, report)
        self.process.wait_for_everyone()
        dropped = {json.loads(line)["id"] for line in report.read_text(encoding="utf-8").splitlines()}
        return [problem for problem in problems if problem.id not in dropped][: self.recipe.data.limit]

    def _check(self, problems: list[Problem], tokenizer: Any, longest: int, report: Path) -> None:
        style = prompt_style(self.recipe.model)
        length = prompt_length_of(
            tokenizer,
            system_prompt=style.system_prompt,
            instruction=style.instruction,
            chat_template_kwargs=style.template_kwargs,
        )
        checked = check_problems(
            problems, pool=self.pool, prompt_length=length, max_prompt_length=longest, limit=self.recipe.data.limit
        )
        checked.write(report)
        self.display.line(f"{checked.describe()}" + (f"; list: {report}" if checked.dropped else ""))

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
            trainer.add_callback(
                EvaluationCallback(
                    lambda step: self._measure(evaluator, parts, f"step-{step}", step), recipe.evaluation.every
                )
            )
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
        self._record(results, label.replace("-", " "), step)
        if step > 0 and self.recipe.evaluation.every:
            self._keep_best(parts, next(iter(results.values())).sampled_pass_at_1, step)
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

    def _keep_best(self, parts: Parts, score: float, step: int) -> None:
        if not (self.recipe.checkpoints.keep_best and self.process.is_main_process and score > self._best_score()):
            return
        with staged_folder(self.run.best, metadata={"step": step, "sampled_pass_at_1": score}) as folder:
            parts.policy.save_pretrained(folder)
            parts.tokenizer.save_pretrained(folder)
            parts.checkpoint_extras(folder)

    def _best_score(self) -> float:
        return read_manifest(self.run.best)["sampled_pass_at_1"] if self.run.best.is_dir() else -1.0
