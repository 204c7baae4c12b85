"""One run of a language model, from recipe to summary: what it gives to the story of `rlspec.runtime.story`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any

from accelerate import PartialState

from rlspec.checkpoint import checkpoint_name
from rlspec.config.rlvr_schema import Recipe
from rlspec.display import Display
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.models.loading import snapshot
from rlspec.rlvr.outcome import describe_ending
from rlspec.rlvr.sampling.generation import Sampler, generate_tokens
from rlspec.rlvr.session import (
    TrainerParts,
    batch_plan,
    build_evaluations,
    build_parts,
    describe_profile,
    read_all_problems,
    rollouts_are_used_once,
)
from rlspec.rlvr.trainer import build_trainer
from rlspec.rlvr.training.arguments import stretched_schedule
from rlspec.rlvr.training.callbacks import CollapseGuard, EvaluationCallback, InterruptCallback, MetricsCallback
from rlspec.rlvr.training.preflight import check_same_problems
from rlspec.rlvr.training.spread import GROUPS_ALIKE, SpreadGuard
from rlspec.rlvr.training.trainers import RlspecTrainerMixin, SpectralGRPOTrainer
from rlspec.run_directory import RunDirectory
from rlspec.runtime.devices import WAIT, choose_device
from rlspec.runtime.outcome import Ending, RunOutcome, Scores, Status
from rlspec.runtime.provenance import show_symmetry
from rlspec.runtime.starting import Run
from rlspec.runtime.story import tell


def run_recipe(recipe: Recipe) -> int:
    """Train as the recipe says; returns the exit code (0, or 130 after an interruption).

    Raises:
        rlspec.errors.UserError: What the user can mend, in one line.
    """
    return tell(LanguageModelRun(recipe))


class LanguageModelRun:
    """Reinforcement learning, or the supervised warm start, on problems with verifiable answers."""

    out_of_memory = (
        "lower batch.micro_batch or trainer.max_completion_length, or set trainer.gradient_checkpointing=true"
    )

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.process = PartialState(cpu=choose_device(recipe.device) == "cpu", timeout=WAIT)
        self.plan = batch_plan(recipe.batch, self.process.num_processes, supervised=recipe.algorithm == "sft")

    def introduce(self, display: Display) -> None:
        """Say what decides the run's numbers, and read the problems."""
        recipe = self.recipe
        display.heading(f"{recipe.recipe}: {recipe.algorithm} of {recipe.model.name} with {recipe.optim.name}")
        display.line(describe_profile(recipe, choose_device(recipe.device)))
        display.line(self.plan.describe())
        if recipe.sharding == "fsdp2" and self.process.num_processes == 1:
            display.warn("sharding=fsdp2: one process keeps all weights; add launch=torchrun launch.processes=N")
        if recipe.algorithm == "gmpo" and rollouts_are_used_once(recipe.batch, recipe.trainer):
            display.warn(
                "every update has rollouts of its own, so all ratios are 1 and GMPO is GRPO with a mean over "
                "sequences; set batch.updates_per_generation to 4 or more"
            )
        if recipe.model.path is not None:
            snapshot(recipe.model.path, revision=recipe.model.revision, weights=False)  # a wrong name is said first
        self.problems = read_all_problems(recipe)

    def stretched(self, stored: Mapping[str, Any]) -> str | None:
        """The schedule of the learning rate, if it spans the run and the run's length has changed."""
        return stretched_schedule(self.recipe.trainer, stored["trainer"])

    @contextmanager
    def prepare(self, run: Run) -> Iterator[LanguageModelSession]:
        """Check the problems, and load the policy beside the processes of verifiers."""
        check_same_problems(self.problems.train, run)
        recipe = self.recipe
        judges = self.problems.verifiers(recipe.rewards, recipe.grader, thinking=recipe.model.enable_thinking)
        with closing(judges) as verifiers:
            parts = build_parts(recipe, run, self.plan, self.problems, verifiers)
            yield LanguageModelSession(parts, self.problems.measured)

    def ending(self, outcome: RunOutcome, directory: RunDirectory) -> Ending:
        """What it says of its outcome."""
        return describe_ending(outcome, self.recipe, directory)


class LanguageModelSession:
    """A trainer of TRL's between two evaluations."""

    def __init__(self, parts: TrainerParts, measured: Mapping[str, list[Problem]]) -> None:
        self.parts = parts
        self.evaluations = build_evaluations(parts, measured, self._sampler())

    @cached_property
    def trainer(self) -> RlspecTrainerMixin:
        """Built when it is asked for: with vLLM before anything is measured, which its engine does."""
        return build_trainer(self.parts)

    def _sampler(self) -> Sampler:
        if self.parts.recipe.rollout.engine != "vllm":
            return generate_tokens
        from rlspec.rlvr.sampling.vllm import sampler_of

        return sampler_of(lambda: self.trainer)

    def before(self) -> Scores | None:
        """Measure the policy that the run starts from."""
        return self.evaluations.before()

    def train(self) -> tuple[int, Status]:
        """Train, and say whether it collapsed."""
        parts, run = self.parts, self.parts.run
        trainer = self.trainer
        trainer.create_optimizer()  # not in its own time, which is train(): the map is shown before anything is trained
        show_symmetry(trainer.spectral_optimizer, run)
        trainer.add_callback(MetricsCallback(trainer, run.directory, run.display))
        trainer.add_callback(InterruptCallback(run.interrupt))
        settings, guard = parts.recipe.guard, None
        if settings.enabled and parts.recipe.algorithm != "sft":
            guard = CollapseGuard(settings, run.display, run.directory.logged("reward"))
            trainer.add_callback(guard)
            shares = run.directory.logged(GROUPS_ALIKE) or run.directory.logged("frac_reward_zero_std")
            seen = any(share < 1 for share in shares)
            trainer.add_callback(SpreadGuard(parts.rewards, run.display, settings.spread, seen=seen))
        if every := parts.recipe.evaluation.every:
            trainer.add_callback(EvaluationCallback(self.evaluations.during, every))
        with run.display.steps(parts.steps, start=run.start):
            trainer.train(resume_from_checkpoint=str(run.point.checkpoint) if run.point else None)
            while parts.growth is not None and parts.growth.take() and self._goes_on(trainer, guard):
                # A larger batch goes on from the checkpoint just written, on the path of every resumed run.
                assert isinstance(trainer, SpectralGRPOTrainer)
                trainer.change_batch(parts.growth.plan.trl_arguments(), parts.growth.origin)
                newest = run.directory.checkpoints / checkpoint_name(trainer.state.global_step)
                trainer.train(resume_from_checkpoint=str(newest))
        collapsed = guard is not None and guard.collapsed
        status: Status = "interrupted" if run.interrupt.requested else "collapsed" if collapsed else "finished"
        return trainer.state.global_step, status

    def _goes_on(self, trainer: RlspecTrainerMixin, guard: CollapseGuard | None) -> bool:
        stopped = self.parts.run.interrupt.requested or (guard is not None and guard.collapsed)
        return not stopped and trainer.state.global_step < self.parts.steps

    def after(self, step: int) -> Scores | None:
        """Measure the trained policy."""
        return self.evaluations.after(step)
