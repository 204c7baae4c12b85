"""What happens around the optimizer steps of a run: metrics, evaluations, the collapse guard, interruption."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import TensorBoardCallback

from rlspec.config.rlvr_schema import Guard
from rlspec.diagnostics.idle import IdleRoles
from rlspec.display import Display
from rlspec.rlvr.training.trainers import RlspecTrainerMixin
from rlspec.run_directory import RunDirectory
from rlspec.runtime.interrupt import Interrupt


class MetricsCallback(TrainerCallback):
    """Writes every logged step to metrics.jsonl and shows it, and looks for roles that no update reaches."""

    def __init__(self, trainer: RlspecTrainerMixin, run: RunDirectory, display: Display) -> None:
        self.trainer = trainer
        self.run = run
        self.display = display
        self.roles = IdleRoles(display)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look every few steps."""
        self.roles.look(state.global_step, self.trainer.spectral_optimizer)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Only training steps: the summary that the trainer logs at its end has no `loss`."""
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        row = {"step": state.global_step, **logs}
        self.run.append_metrics(row)
        panel = "  ".join(filter(None, [reward_panel(logs), tool_panel(logs), engine_panel(logs), self.trainer.panel]))
        self.display.step(row, state.max_steps, panel)


def events_after(step: int, folder: Path) -> TensorBoardCallback:
    """Events of a resumed run: those that an earlier session wrote of later steps are hidden, and taken again."""
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardCallback(SummaryWriter(str(folder), purge_step=step + 1))


def reward_panel(logs: Mapping[str, Any]) -> str:
    """Mean and spread of each reward of several."""
    names = [key.split("/")[1] for key in logs if re.fullmatch(r"rewards/[^/]+/mean", key)]
    if len(names) < 2:
        return ""
    return "  ".join(f"{name} {logs[f'rewards/{name}/mean']:.2f}±{logs[f'rewards/{name}/std']:.2f}" for name in names)


def tool_panel(logs: Mapping[str, Any]) -> str:
    """Calls per answer, and the share of them that a tool answered with an error."""
    calls, failures = logs.get("tools/call_frequency"), logs.get("tools/failure_frequency", 0.0)
    return "" if calls is None else f"calls {calls:.2f} per answer, {failures:.0%} failed"


def engine_panel(logs: Mapping[str, Any]) -> str:
    """How far the log-probabilities of a separate engine are from those that are trained, in the mean over tokens."""
    gap = logs.get("sampling/sampling_logp_difference/mean")
    return "" if gap is None else f"vllm log-prob gap {gap:.2g}"


class EvaluationCallback(TrainerCallback):
    """Calls `evaluate(step)` every N optimizer steps."""

    def __init__(self, evaluate: Callable[[int], object], every: int) -> None:
        self.evaluate = evaluate
        self.every = every

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The last step is left to the evaluation after training, and a run that is to stop is not held up."""
        last = state.global_step >= state.max_steps or control.should_training_stop
        if state.global_step % self.every == 0 and not last:
            self.evaluate(state.global_step)


class CollapseGuard(TrainerCallback):
    """Stops a run whose reward has collapsed.

    The running mean of the reward over `window` logged steps is compared with its best so far; after `patience` logged
    steps below `fraction` of it the run is saved and stopped. Of rewards below 0 the fraction counts from the lowest of
    a step; while the best is not above 0 nothing is watched, which is said once.
    """

    def __init__(self, settings: Guard, display: Display, rewards: Sequence[float] = ()) -> None:
        self.settings = settings
        self.display = display
        self.rewards: list[float] = []
        self.best = -math.inf
        self.lowest = 0.0  # of single steps
        self.below = 0
        self.idle = False
        self.collapsed = False
        for reward in rewards:  # of the steps before a resume
            self.observe(reward)
        self.below = 0  # who resumes a collapsed run wants it to have another chance

    def observe(self, reward: float) -> bool:
        """Take in one step's mean reward; True when the run has collapsed.

        NaN, where the grader could judge no sample, says nothing.
        """
        if math.isnan(reward):
            return False
        window = self.settings.window
        self.rewards = [*self.rewards, reward][-window:]
        self.lowest = min(self.lowest, reward)
        if len(self.rewards) == window:
            mean = sum(self.rewards) / window
            self.best = max(self.best, mean)
            self.below = self.below + 1 if self.best > 0 and mean < self.limit else 0
        return self.below >= self.settings.patience

    @property
    def limit(self) -> float:
        """The mean reward below which a run is about to collapse."""
        return self.lowest + self.settings.fraction * (self.best - self.lowest)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Judge the reward of a logged step."""
        reward = (logs or {}).get("reward")
        if reward is None or self.collapsed:
            return
        if self.observe(float(reward)):
            self.collapsed = True
            window, patience = self.settings.window, self.settings.patience
            self.display.warn(
                f"collapsed: the mean reward of {window} steps stayed below {self.limit:.3f} (its best: "
                f"{self.best:.3f}) for {patience} steps; saving and stopping at step {state.global_step}"
            )
            control.should_save = True
            control.should_training_stop = True
        elif not self.idle and -math.inf < self.best < 0:
            self.idle = True
            self.display.line("the mean reward is below 0: no collapse is looked for until it has been above")


class InterruptCallback(TrainerCallback):
    """Ctrl-C or SIGTERM in a trainer."""

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """From here on there is something to save."""
        self.interrupt.training = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """All is saved."""
        self.interrupt.training = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask the trainer to save and stop after the step in progress."""
        if self.interrupt.agreed():
            control.should_save = True
            control.should_training_stop = True
