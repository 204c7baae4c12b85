"""Evaluations in the simulator, one after the other, in worker processes beside the caller's own work."""

from __future__ import annotations

import queue
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol as Structure
from typing import Self

from rlspec.config.vla_schema import Env, SimEvaluation
from rlspec.display import Display
from rlspec.errors import ConfigError
from rlspec.run_directory import RunDirectory
from rlspec.vla.evaluation.campaign import Campaign, conduct
from rlspec.vla.evaluation.checks import TrainingConditions
from rlspec.vla.evaluation.episodes import EpisodePlan, plan_episodes
from rlspec.vla.evaluation.oracle import replay_demonstrations
from rlspec.vla.evaluation.pool import SILENCE_SECONDS, Stopped, WorkerPool
from rlspec.vla.evaluation.protocol import REPLAY, Actor, build_protocol
from rlspec.vla.evaluation.records import dataset_folder, has_starts, plan_replays, training_of
from rlspec.vla.evaluation.results import Journal, SimResult

_ABANDONED = "abandoned-"


class Measured(Structure):
    """The sections of a recipe that an evaluation reads."""

    @property
    def env(self) -> Env | None:
        """The simulator."""

    @property
    def evaluation(self) -> SimEvaluation:
        """How it is measured."""

    @property
    def device(self) -> str:
        """That the policy runs on."""


@dataclass
class _Request:
    campaign: Campaign
    chatty: bool
    done: threading.Event = field(default_factory=threading.Event)
    result: SimResult | None = None
    error: BaseException | None = None

    def outcome(self) -> SimResult:
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class SimEvaluator:
    """Measures checkpoints in the simulator; a context manager, as it keeps worker processes.

    Results do not depend on the number of workers. Evaluations that were interrupted go on where they stopped.

    Args:
        recipe: Its sections `env`, `evaluation` and `device` count.
        run: Results go to its folder evaluations/.
        display: Gets progress, warnings and crashes.
        dataset_root: Data set with demonstrations, which are replayed before the first policy is measured, and whose
            control rate and action space must be the environment's; None: the recipe's, where it is in a folder.
        folder: Where results go instead of the run's folder.
        keep: Episodes that are there with other settings are an error; otherwise they are set aside.
        module: Import name of the simulator's module, see `Simulator`.
        silence: Seconds without a sign of life after which a worker counts as hung.

    Raises:
        ConfigError: The recipe has no environment, or settings contradict each other.
    """

    def __init__(
        self,
        recipe: Measured,
        run: RunDirectory,
        display: Display,
        *,
        dataset_root: Path | None = None,
        folder: Path | None = None,
        keep: bool = False,
        module: str = "rlspec_envs",
        silence: float = SILENCE_SECONDS,
    ) -> None:
        if recipe.env is None:
            raise ConfigError("env: the recipe has none, so nothing can be measured; add env=NAME")
        self.protocol = build_protocol(recipe.env, recipe.evaluation, module)
        self._settings, self._device, self._display = recipe.evaluation, recipe.device, display
        self._dataset = dataset_root or dataset_folder(recipe)
        self._folder = folder or run.evaluations
        self._keep = keep
        self._pool = WorkerPool(self.protocol.simulator, self._settings.workers, display.warn, silence=silence)
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._started: list[_Request] = []
        self._replayed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.stop()
        self._requests.put(None)
        if self._thread is not None:
            self._thread.join()
        self._pool.close()

    def measure(self, checkpoint: Actor, label: str, step: int, *, episodes: int | None = None) -> SimResult:
        """Measure now and return the result.

        Args:
            checkpoint: A policy's folder, a hub id, "expert", or "replay" for the demonstrations of the data set.
            label: Name of the result's folder.
            step: Optimizer step of the weights.
            episodes: Per task; None: `evaluation.episodes`.

        Raises:
            UserError: The policy cannot be measured in this environment, in one line per reason.
        """
        count = self._settings.episodes if episodes is None else episodes
        request = self._ask(checkpoint, label, step, count, chatty=True)
        while not request.done.wait(0.2):  # short, so that Ctrl-C gets through
            continue
        return request.outcome()

    def start(self, checkpoint: Actor, label: str, step: int, *, episodes: int | None = None) -> None:
        """Measure beside what the caller does next; `finished` and `wait` bring the result.

        The checkpoint must stay until then. `episodes` is `evaluation.during_episodes` where it is not given.
        """
        count = episodes or self._settings.during_episodes or self._settings.episodes
        self._started.append(self._ask(checkpoint, label, step, count, chatty=False))

    def finished(self) -> list[SimResult]:
        """Results of started evaluations that have come in since the last call; raises what went wrong with one."""
        ready = [request for request in self._started if request.done.is_set()]
        self._started = [request for request in self._started if request not in ready]
        return [request.outcome() for request in ready]

    def wait(self) -> list[SimResult]:
        """Wait for all started evaluations; like `finished`."""
        for request in self._started:
            while not request.done.wait(0.2):
                continue
        return self.finished()

    def _ask(self, checkpoint: Actor, label: str, step: int, episodes: int, *, chatty: bool) -> _Request:
        """Settle everything that depends on the checkpoint's files, then queue."""
        training = TrainingConditions() if self._dataset is None else training_of(self._dataset)
        spec = self.protocol.actor(checkpoint, device=self._device, training=training, dataset=self._dataset)
        folder = self._folder / label
        self._respect(Journal(folder, self.protocol.identity(spec)))
        campaign = Campaign(
            label=label,
            step=step,
            checkpoint=str(checkpoint),
            spec=spec,
            plans=tuple(self._plans(checkpoint, episodes, perturbed=chatty)),
            folder=folder,
            videos=self._settings.videos if chatty else 0,
            video_format=self._settings.video_format,
        )
        request = _Request(campaign, chatty)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="evaluations", daemon=True)
            self._thread.start()
        self._requests.put(request)
        return request

    def _plans(self, checkpoint: Actor, episodes: int, *, perturbed: bool) -> list[EpisodePlan]:
        tasks, settings = list(self.protocol.tasks), self._settings
        changes = self.protocol.perturbations if perturbed else ()
        if checkpoint == REPLAY:
            assert self._dataset is not None
            if changes:
                raise ConfigError("evaluation.perturb: a replay repeats the scenes that were recorded; leave it out")
            return plan_replays(self._dataset, self.protocol.simulator.suite, tasks, episodes)
        stored = self.protocol.stored_states
        return plan_episodes(tasks, episodes, settings.seed, stored_states=stored, perturbations=changes)

    def _respect(self, journal: Journal) -> None:
        """Never mix episodes of two settings."""
        change = journal.changed()
        if change is None:
            return
        if self._keep:
            raise ConfigError(
                f"{journal.folder}: holds episodes of another evaluation ({change}); choose another out=, or remove it"
            )
        aside = journal.folder.with_name(_ABANDONED + journal.folder.name)
        shutil.rmtree(aside, ignore_errors=True)
        journal.folder.rename(aside)
        self._display.line(f"{journal.folder.name}: earlier episodes are set aside in {aside.name} ({change})")

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            try:
                request.result = self._conduct(request)
            except Stopped:
                request.error = ConfigError("the evaluation was stopped")
            except BaseException as error:  # belongs to the caller's thread
                request.error = error
            finally:
                request.done.set()

    def _conduct(self, request: _Request) -> SimResult:
        say = self._display.line if request.chatty else _nothing
        if request.campaign.spec.kind == "policy" and not self._replayed:
            self._replay()
            self._replayed = True
        return conduct(request.campaign, self.protocol, self._pool, say, self._display.warn)

    def _replay(self) -> None:
        if self._settings.replay and self._dataset is not None and has_starts(self._dataset):
            say, warn = self._display.line, self._display.warn
            replay_demonstrations(self.protocol, self._dataset, self._settings.replay, self._pool, say, warn)


def _nothing(text: str) -> None:
    """A line that nobody reads."""
