"""Evaluations in the simulator while training goes on: what is started, what came out, and which weights were best."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlspec.checkpoint import MANIFEST, undo_half_swaps
from rlspec.config.vla_schema import SimEvaluation
from rlspec.display import Display
from rlspec.run_directory import RunDirectory
from rlspec.runtime.outcome import keep_best
from rlspec.runtime.provenance import described_folder
from rlspec.runtime.starting import Run
from rlspec.vla.training.state import STATE, TrainingState

SNAPSHOTS = "snapshots"
SCORE = "success_rate"
METRICS = "metrics.json"


if TYPE_CHECKING:  # training without a simulator does without its modules
    from rlspec.vla.evaluation.evaluator import Measured, SimEvaluator
    from rlspec.vla.evaluation.results import SimResult

EvaluatorFactory = Callable[["Measured", RunDirectory, Display], "AbstractContextManager[SimEvaluator]"]


def simulator(recipe: Measured, run: RunDirectory, display: Display) -> AbstractContextManager[SimEvaluator]:
    """The recipe's simulator."""
    from rlspec.vla.evaluation.evaluator import SimEvaluator

    return SimEvaluator(recipe, run, display)


@dataclass
class Evaluations:
    """The evaluations of one run, in its main process."""

    settings: SimEvaluation
    run: Run
    evaluator: SimEvaluator | None  # None where the recipe has no simulator
    record: Callable[[dict[str, Any]], None]  # takes the metrics of a result
    steps: int  # of the whole run
    keep_best: bool  # whether the weights of the best result are kept
    reached: bool = False  # the success rate at which training ends
    _snapshots: dict[str, Path] = field(default_factory=dict)  # by label, of evaluations under way

    def before(self, state: TrainingState) -> dict[str, Any] | None:
        """Measure the untrained policy; of a resumed run what was measured then."""
        if self.run.point is not None:
            stored = self.run.directory.evaluations / "before" / METRICS  # the evaluator's
            return json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else None
        if self.evaluator is None or not self.settings.before:
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
        if not self.settings.after:
            return None
        result = self.evaluator.measure(checkpoint, "after", step)
        if self.settings.every:
            self._keep_best(result, checkpoint)
        return self._take(result)

    def is_due(self, step: int) -> bool:
        """Whether weights are measured after that step; the last step is left to `after`."""
        every = self.settings.every
        return every is not None and step % every == 0 and step < self.steps

    def start(self, state: TrainingState) -> None:
        """Start the evaluation of the newest step."""
        if self.evaluator is not None:
            label = f"step-{state.step}"
            self._snapshots[label] = self._snapshot(state, label)
            self.evaluator.start(self._snapshots[label], label, state.step)
            self._wait_for_the_end()

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
        if self.settings.stop_at_success is None:
            return
        self._wait_for_the_end()
        for measured in self.run.directory.evaluations.glob(f"step-*/{METRICS}"):  # the evaluator's
            if int(measured.parent.name.removeprefix("step-")) <= step:
                self._look(json.loads(measured.read_text(encoding="utf-8"))[SCORE])

    def collect(self) -> None:
        """Record what has been measured meanwhile."""
        if self.evaluator is not None and self._snapshots:
            for result in self.evaluator.finished():
                self._finish(result)

    @property
    def _folder(self) -> Path:
        return self.run.directory.path / SNAPSHOTS

    def _snapshot(self, state: TrainingState, label: str) -> Path:
        folder = self._folder / label
        with described_folder(folder, self.run, state.step) as staging:
            state.save_policy(staging)
        return folder

    def _wait_for_the_end(self) -> None:
        """Whether training ends is known before the next step: with the same steps the same run, however fast it is."""
        if self.settings.stop_at_success is not None and self.evaluator is not None:
            for result in self.evaluator.wait():
                self._finish(result)

    def _look(self, rate: float) -> None:
        wanted = self.settings.stop_at_success
        self.reached |= wanted is not None and rate >= wanted

    def _finish(self, result: SimResult) -> None:
        folder = self._snapshots.pop(result.label)
        self._take(result)
        self._look(result.success_rate)
        if self.reached:
            self.run.display.line(f"training ends here: evaluation.stop_at_success={self.settings.stop_at_success:g}")
        self._keep_best(result, folder)
        shutil.rmtree(folder)

    def _take(self, result: SimResult) -> dict[str, Any]:
        content = result.to_json()
        self.run.display.heading(f"measured {result.label}: weights of step {result.step}")
        for line in result.lines():
            self.run.display.line(line)
        self.record({"step": result.step, **success_rates(result)})
        return content

    def _keep_best(self, result: SimResult, folder: Path) -> None:
        def write(best: Path) -> None:
            shutil.copytree(folder, best, ignore=shutil.ignore_patterns(MANIFEST, STATE), dirs_exist_ok=True)

        if self.keep_best:
            keep_best(self.run, result.step, (SCORE, result.success_rate), write)


def success_rates(result: SimResult) -> dict[str, float]:
    """Metrics of a result: of all episodes, and of each task where there are several."""
    rates = {"eval/success": result.success_rate}
    tasks = result.to_json()["tasks"]
    if len(tasks) > 1:
        rates |= {f"eval/{name}/success": float(task[SCORE]) for name, task in tasks.items()}
    return rates
