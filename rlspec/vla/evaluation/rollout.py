"""One episode in one environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlspec.contract.features import PIXELS
from rlspec.vla.evaluation.actors import Actor
from rlspec.vla.evaluation.episodes import INVALID_ACTION, TIMEOUT, EpisodePlan, EvaluatedEpisode
from rlspec.vla.evaluation.simulator import Observation


class Film(Protocol):
    """Takes the pictures of every step, the first observation's included."""

    def add(self, pixels: dict[str, NDArray[np.uint8]]) -> None:
        """One frame: {camera: uint8 (H, W, 3)}."""


def rollout(
    env: gymnasium.Env[Any, Any],
    actor: Actor,
    plan: EpisodePlan,
    *,
    max_steps: int | None = None,
    film: Film | None = None,
    on_step: Callable[[], None] | None = None,
) -> EvaluatedEpisode:
    """Run one episode to its success, its failure or its limit.

    Pixels are rendered only for observations that the actor looks at, and for all that are filmed.

    Args:
        env: An environment with the interface of rlspec_envs.
        actor: Decides on actions.
        plan: What the episode starts from.
        max_steps: Limit beside the environment's own.
        film: Gets every observation's pixels.
        on_step: Called after every step.
    """
    started = time.monotonic()
    rendered = _Rendering(env, film)
    observation = _begin(env, actor, plan, rendered)
    steps, success, failure = 0, False, ""
    while not success and not failure:
        action = np.asarray(actor.act(observation))
        if not np.isfinite(action).all():
            failure = INVALID_ACTION
            break
        rendered.choose(actor.needs_images())
        observation, _, terminated, truncated, info = env.step(action)
        rendered.seen(observation)
        steps += 1
        success = bool(info["is_success"])
        if not success and (terminated or truncated or steps == max_steps):
            failure = str(info.get("failure") or TIMEOUT)
        if on_step is not None:
            on_step()
    simulated = steps / env.unwrapped.control_hz  # type: ignore[attr-defined]
    seconds = (round(simulated, 3), round(time.monotonic() - started, 3))
    start = (plan.task, plan.index, plan.seed, plan.initial_state)
    return EvaluatedEpisode(*start, steps, success, failure, *seconds, rendered.count, actor.note(), plan.perturbation)


def _begin(env: gymnasium.Env[Any, Any], actor: Actor, plan: EpisodePlan, rendered: _Rendering) -> Observation:
    """Reset both, then look: whether the actor wants pixels is known after its reset only."""
    options: dict[str, Any] = {} if plan.initial_state is None else {"initial_state": plan.initial_state}
    if plan.perturbation:
        options["perturb"] = plan.perturbation
    rendered.choose(False)
    env.reset(seed=plan.seed, options=options or None)
    actor.reset(env, plan.seed)
    rendered.choose(actor.needs_images())
    observation: Observation = env.unwrapped.observe()  # type: ignore[attr-defined]
    rendered.seen(observation)
    return observation


class _Rendering:
    """Switches the environment's rendering, counts what was rendered and hands it to the film."""

    def __init__(self, env: gymnasium.Env[Any, Any], film: Film | None) -> None:
        self._env: Any = env.unwrapped
        self._film = film
        self._on = False
        self.count = 0

    def choose(self, wanted: bool) -> None:
        self._on = wanted or self._film is not None
        self._env.render_observations = self._on

    def seen(self, observation: Observation) -> None:
        self.count += self._on
        if self._film is not None:
            self._film.add(observation[PIXELS])
