"""One run of a robot's policy, from recipe to summary: what it gives to the story of `rlspec.runtime.story`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from rlspec.checkpoint import checkpoint_name
from rlspec.config.vla_schema import VlaRecipe
from rlspec.display import Display
from rlspec.run_directory import RunDirectory
from rlspec.runtime.devices import WAIT, choose_device
from rlspec.runtime.outcome import Ending, RunOutcome, Scores, Status
from rlspec.runtime.starting import Run
from rlspec.runtime.story import tell
from rlspec.vla.training.data import OpenSamples, open_samples
from rlspec.vla.training.evaluations import Evaluations, EvaluatorFactory, simulator
from rlspec.vla.training.loop import TrainingLoop
from rlspec.vla.training.outcome import describe_ending
from rlspec.vla.training.schedule import stretched_schedule
from rlspec.vla.training.session import TrainingParts, build_parts, describe
from rlspec.vla.training.trackers import Trackers


def run_vla_recipe(
    recipe: VlaRecipe, *, samples: OpenSamples = open_samples, evaluator: EvaluatorFactory = simulator
) -> int:
    """Train as the recipe says; returns the exit code (0, or 130 after an interruption).

    Raises:
        rlspec.errors.UserError: What the user can mend, in one line.
    """
    if recipe.algorithm == "grpo":
        from rlspec.vla.reinforcement.start import with_start

        started = with_start(recipe, lambda first: run_vla_recipe(first, samples=samples, evaluator=evaluator))
        if isinstance(started, int):
            return started
        recipe = started
    return tell(RobotPolicyRun(recipe, samples, evaluator))


class RobotPolicyRun:
    """Imitation or reinforcement of a robot's policy, measured in a simulator where the recipe has one."""

    out_of_memory = "lower training.batch_size and raise training.gradient_accumulation, or train less (policy.lora)"

    def __init__(self, recipe: VlaRecipe, samples: OpenSamples, evaluator: EvaluatorFactory) -> None:
        self.recipe, self._open, self._evaluator = recipe, samples, evaluator
        self._device = choose_device(recipe.device)
        AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
        precision = "bf16" if recipe.training.bf16 else "no"
        self.process = Accelerator(
            cpu=self._device == "cpu",
            mixed_precision=precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        )

    def introduce(self, display: Display) -> None:
        """Say what decides the run's numbers, and open the demonstrations where they are imitated."""
        recipe = self.recipe
        if recipe.algorithm == "grpo":
            from rlspec.vla.reinforcement.session import describe_reinforcement

            display.heading(f"{recipe.recipe}: GRPO of {recipe.policy.name} with {recipe.optim.name}")
            display.line(describe_reinforcement(recipe, self._device))
            return
        display.heading(f"{recipe.recipe}: behaviour cloning of {recipe.policy.name} with {recipe.optim.name}")
        about = describe(recipe.policy, recipe.training, recipe.optim, self._device, self.process.num_processes)
        display.line(about)
        self._samples = self._open(recipe.policy, recipe.dataset, recipe.env, display)

    def stretched(self, stored: Mapping[str, Any]) -> str | None:
        """The scheduler's type, if it spans the run and the run's length has changed."""
        return stretched_schedule(self.recipe.training, stored["training"])

    @contextmanager
    def prepare(self, run: Run) -> Iterator[RobotPolicySession]:
        """Build the loop, and keep the simulator's processes beside it; only the main process measures."""
        recipe, main = self.recipe, run.process.is_main_process
        measured = main and recipe.env is not None
        with (
            self._parts(run) as parts,
            self._evaluator(recipe, run.directory, run.display) if measured else nullcontext() as evaluator,
        ):
            trackers = Trackers(recipe.report, run) if main else None
            loop = TrainingLoop(recipe.training, recipe.checkpoints, run, self.process, parts, trackers)
            loop.evaluations = Evaluations(
                recipe.evaluation, run, evaluator, loop.record, recipe.training.steps, recipe.checkpoints.keep_best
            )
            yield RobotPolicySession(run, loop)
            if trackers is not None:
                trackers.close()

    def _parts(self, run: Run) -> AbstractContextManager[TrainingParts]:
        if self.recipe.algorithm == "grpo":
            from rlspec.vla.reinforcement.session import reinforcement_parts

            return reinforcement_parts(self.recipe, run, self.process)
        return nullcontext(build_parts(self.recipe, run, self.process, self._samples))

    def ending(self, outcome: RunOutcome, directory: RunDirectory) -> Ending:
        """What it says of its outcome."""
        return describe_ending(outcome, self.recipe, directory)


class RobotPolicySession:
    """The training loop between two evaluations."""

    def __init__(self, run: Run, loop: TrainingLoop) -> None:
        self.run, self.loop = run, loop

    def before(self) -> Scores | None:
        """Measure the policy that the run starts from, and start again what an earlier session did not finish."""
        before, state, main = None, self.loop.parts.state, self.run.process.is_main_process
        with state.gathered(kept=main):
            if main:
                before = self.loop.evaluations.before(state)
                self.loop.evaluations.start_again(state.step)
        self.run.process.wait_for_everyone()
        return before

    def train(self) -> tuple[int, Status]:
        """Train, with evaluations beside it."""
        with self.run.display.steps(self.loop.training.steps, start=self.run.start):
            finished = self.loop.train()
        return self.loop.parts.state.step, "finished" if finished else "interrupted"

    def after(self, step: int) -> Scores | None:
        """Measure the last checkpoint."""
        if not self.run.process.is_main_process:
            return None
        return self.loop.evaluations.after(self.run.directory.checkpoints / checkpoint_name(step), step)
