"""Runs jobs in this process: keeps the environment of the last task and the last actor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from rlspec.errors import ConfigError
from rlspec.vla.evaluation.actors import Actor, ExpertActor, ReplayActor
from rlspec.vla.evaluation.checks import contradictions, expected_by, remarks
from rlspec.vla.evaluation.jobs import ActorSpec, Done, EvaluationJob, GroupDone, GroupJob, Job, WorkerSettings
from rlspec.vla.evaluation.rollout import rollout
from rlspec.vla.evaluation.video import FilmRecorder

if TYPE_CHECKING:  # torch, which workers that run an expert do without
    from rlspec.vla.evaluation.groups import Group


class Runner:
    """Everything that one worker holds.

    Args:
        settings: The simulator and the threads.
        on_step: Called after every step of an episode.
    """

    def __init__(self, settings: WorkerSettings, on_step: Callable[[], None] | None = None) -> None:
        self._settings = settings
        self._on_step = on_step
        self._made: tuple[str, int | None] | None = None  # task and limit of the environment
        self._env: gymnasium.Env[Any, Any] | None = None
        self._described: dict[str, Any] = {}
        self._spec: ActorSpec | None = None
        self._actor: Actor | None = None
        self._remarks: tuple[str, ...] = ()
        self._checked = False
        self._group: Group | None = None

    def run(self, job: Job) -> Done | GroupDone:
        """Run one episode, or a group of them.

        Raises:
            UserError: The environment, the policy or their combination is not usable.
        """
        return self._run_group(job) if isinstance(job, GroupJob) else self._run_episode(job)

    def _run_group(self, job: GroupJob) -> GroupDone:
        from rlspec.vla.evaluation.groups import Group
        from rlspec.vla.evaluation.policy_actor import PolicyActor

        task = job.plan.task
        env = self._environment(task, job.max_steps)
        actor = self._actor_of(job.actor, env, task)
        assert isinstance(actor, PolicyActor)
        if self._group is None or self._group.made_for != (task, job.max_steps):
            self._close_group()
            self._group = Group(self._settings.simulator, task, job.max_steps, self._on_step)
        rollouts = self._group.run(job, actor, self._described.get("initial_states"))
        return GroupDone(rollouts, self._described, self._remarks)

    def _run_episode(self, job: EvaluationJob) -> Done:
        env = self._environment(job.plan.task, job.max_steps)
        actor, max_steps = self._choose_actor(job, env)
        plan = job.plan
        state, count = plan.initial_state, self._described.get("initial_states")
        if count and state is not None and state >= 0:
            plan = replace(plan, initial_state=state % int(count))
        film = None if job.film is None else FilmRecorder(job.film, env.unwrapped.control_hz)  # type: ignore[attr-defined]
        episode = rollout(env, actor, plan, max_steps=max_steps, film=film, on_step=self._on_step)
        if film is not None:
            film.save("success" if episode.success else episode.failure)
        return Done(episode, self._described, actor.describe(), self._remarks)

    def _environment(self, task: str, max_steps: int | None) -> gymnasium.Env[Any, Any]:
        if self._env is None or (task, max_steps) != self._made:
            self.close()
            self._env, self._made = self._settings.simulator.make(task, max_steps), (task, max_steps)
            self._described = self._env.unwrapped.describe()  # type: ignore[attr-defined]
            self._checked = False
        return self._env

    def _choose_actor(self, job: EvaluationJob, env: gymnasium.Env[Any, Any]) -> tuple[Actor, int | None]:
        if job.actor.kind == "replay":
            from rlspec.vla.evaluation.records import load_record  # pyarrow, which most workers never need

            assert job.plan.recorded is not None
            record = load_record(Path(job.actor.path), job.plan.recorded)
            return ReplayActor(record.actions, record.states), len(record.actions)
        return self._actor_of(job.actor, env, job.plan.task), None

    def _actor_of(self, spec: ActorSpec, env: gymnasium.Env[Any, Any], task: str) -> Actor:
        if self._actor is None or spec != self._spec:
            self._actor = None  # two policies at once might not fit
            self._actor, self._spec, self._checked = self._make_actor(spec), spec, False
        if not self._checked:
            self._check(env, task)
        return self._actor

    def _make_actor(self, spec: ActorSpec) -> Actor:
        if spec.kind == "expert":
            return ExpertActor(self._settings.simulator)
        from rlspec.vla.evaluation.policy_actor import PolicySource, load_policy

        threads = self._settings.threads
        return load_policy(PolicySource(spec.path, spec.n_action_steps, spec.replan_steps, spec.device, threads))

    def _check(self, env: gymnasium.Env[Any, Any], task: str) -> None:
        from rlspec.vla.evaluation.policy_actor import PolicyActor

        if isinstance(self._actor, PolicyActor):
            assert self._spec is not None
            expected = expected_by(self._actor.config, self._actor.preprocessor, self._spec.training)
            if lines := contradictions(expected, env):
                raise ConfigError("\n".join(f"{self._spec.path} in {task}: {line}" for line in lines))
            self._remarks = tuple(remarks(expected, env))
        self._checked = True

    def close(self) -> None:
        """Close the environments."""
        self._close_group()
        if self._env is not None:
            self._env.close()
        self._env = self._made = None

    def _close_group(self) -> None:
        if self._group is not None:
            self._group.close()
        self._group = None
