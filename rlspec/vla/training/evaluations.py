"""Evaluations in the simulator while training goes on: what is started, what came out, and which weights were best."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rlspec.checkpoint import read_manifest, staged_folder, undo_half_swaps
from rlspec.config.vla_schema import VlaRecipe
from rlspec.display import Display
from rlspec.run_directory import RunDirectory
from rlspec.vla.training.state import TrainingState, checkpoint_metadata, describe_checkpoint

SNAPSHOTS = "snapshots"
SCORE = "success_rate"
METRICS = "metrics.json"


class SimResult(Protocol):
    """What came out of an evaluation."""

    @property
    def label(self) -> str:
        """before, step-N or after."""

    @property
    def step(self) -> int:
        """Of the weights that were measured."""

    @property
    def success_rate(self) -> float:
        """Over all episodes, in [0, 1]."""

    def to_json(self) -> dict[str, Any]:
        """All of it: `success_rate`, `total` with `ci95`, and `tasks`, each with a `success_rate`."""

    def lines(self) -> list[str]:
        """What is shown."""


class Evaluator(Protocol):
    """Measures policies in the simulator, in processes of its own."""

    def measure(self, checkpoint: Path | Literal["expert"], label: str, step: int) -> SimResult:
        """Measure the policy in a folder, wait for it, and leave evaluations/<label>/metrics.json."""

    def start(self, checkpoint: Path | Literal["expert"], label: str, step: int) -> None:
        """Start measuring it; the folder stays until the result has been taken."""

    def finished(self) -> Sequence[SimResult]:
        """Results that came in since the last call; does not wait."""

    def wait(self) -> Sequence[SimResult]:
        """Results of all that was started."""


EvaluatorFactory = Callable[[VlaRecipe, RunDirectory, Display], AbstractContextManager[Evaluator]]


def simulator(recipe: VlaRecipe, run: RunDirectory, display: Display) -> AbstractContextManager[Evaluator]:
    """The recipe's simulator."""
    from rlspec.vla.evaluation.evaluator import SimEvaluator

    evaluator: AbstractContextManager[Evaluator] = SimEvaluator(recipe, run, display)
    return evaluator


@dataclass
class Evaluations:
    """The evaluations of one run, in its main process.

    Attributes:
        recipe: of the run.
        run: its directory.
        display: for results.
        evaluator: None where the recipe has no simulator.
        record: takes the metrics of a result.
    """

    recipe: VlaRecipe
    run: RunDirectory
    display: Display
    evaluator: Evaluator | None
    record: Callable[[dict[str, Any]], None]
    _snapshots: dict[str, Path] = field(default_factory=dict)  # by label, of evaluations under way

    def before(self, state: TrainingState, *, resumed: bool) -> dict[str, Any] | None:
        """Measure the untrained policy; of a resumed run what was measured then."""
        if resumed:
            return self._stored("before")
        if self.evaluator is None or not self.recipe.evaluation.before:
            return None
        folder = self._snapshot(state, "before")
        result = self.evaluator.measure(folder, "before", 0)
        shutil.rmtree(folder)
        return self._take(result)

    def after(self, checkpoint: Path, step: int) -> dict[str, Any] | None:
        """Measure the last checkpoint, once all others are done."""
        if self.evaluator is None:
            return None
        for result in self.evaluator.wait():
            self._finish(result)
        if not self.recipe.evaluation.after:
            return None
        result = self.evaluator.measure(checkpoint, "after", step)
        if self.recipe.evaluation.every:
            self._keep_best(result, checkpoint)
        return self._take(result)

    def start(self, state: TrainingState) -> None:
        """Start the evaluation of the newest step, if it is due; the last step is left to `after`."""
        every = self.recipe.evaluation.every
        due = every is not None and state.step % every == 0 and state.step < self.recipe.training.steps
        if self.evaluator is not None and due:
            label = f"step-{state.step}"
            self._snapshots[label] = self._snapshot(state, label)
            self.evaluator.start(self._snapshots[label], label, state.step)

    def start_again(self, step: int) -> None:
        """Start what an earlier session did not finish, up to the step from which the run goes on."""
        undo_half_swaps(self._folder)
        for folder in sorted(self._folder.glob("step-*")) if self._folder.is_dir() else ():
            number = int(folder.name.removeprefix("step-"))
            if number > step or self.evaluator is None:
                shutil.rmtree(folder)
            else:
                self._snapshots[folder.name] = folder
                self.evaluator.start(folder, folder.name, number)

    def collect(self) -> None:
        """Record what has been measured meanwhile."""
        if self.evaluator is not None and self._snapshots:
            for result in self.evaluator.finished():
                self._finish(result)

    @property
    def _folder(self) -> Path:
        return self.run.path / SNAPSHOTS

    def _snapshot(self, state: TrainingState, label: str) -> Path:
        folder = self._folder / label
        with staged_folder(folder, metadata=checkpoint_metadata(self.recipe, state.step)) as staging:
            state.save_policy(staging)
            describe_checkpoint(staging, self.recipe, self.run)
        return folder

    def _finish(self, result: SimResult) -> None:
        folder = self._snapshots.pop(result.label)
        self._take(result)
        self._keep_best(result, folder)
        shutil.rmtree(folder)

    def _take(self, result: SimResult) -> dict[str, Any]:
        content = result.to_json()
        self.display.heading(f"measured {result.label}: weights of step {result.step}")
        for line in result.lines():
            self.display.line(line)
        self.record({"step": result.step, **success_rates(result)})
        return content

    def _keep_best(self, result: SimResult, folder: Path) -> None:
        if not self.recipe.checkpoints.keep_best or result.success_rate <= self._best_score():
            return
        metadata = {**checkpoint_metadata(self.recipe, result.step), SCORE: result.success_rate}
        with staged_folder(self.run.best, metadata=metadata) as staging:
            for path in folder.iterdir():
                if path.name not in ("manifest.json", "training_state.pt"):
                    shutil.copy2(path, staging / path.name)

    def _best_score(self) -> float:
        return float(read_manifest(self.run.best)[SCORE]) if self.run.best.is_dir() else -1.0

    def _stored(self, label: str) -> dict[str, Any] | None:
        """What the evaluator wrote into its folder."""
        path = self.run.evaluations / label / METRICS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def success_rates(result: SimResult) -> dict[str, float]:
    """Metrics of a result: of all episodes, and of each task where there are several."""
    rates = {"eval/success": result.success_rate}
    tasks = result.to_json()["tasks"]
    if len(tasks) > 1:
        rates |= {f"eval/{name}/success": float(task[SCORE]) for name, task in tasks.items()}
    return rates
