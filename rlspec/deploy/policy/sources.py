"""Where actions come from: a server, a server that we start for a checkpoint, or something to test with."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rlspec.contract.actions import ACTION_SPACES, CARTESIAN_POSITION, JOINT_POSITION, JOINT_VELOCITY, MAX_JOINT_STEP
from rlspec.contract.messages import (
    GRIPPER,
    JOINTS,
    OPEN_LOOP_STEPS,
    OPENPI_CAMERAS,
    arena_cameras,
    arena_config_of,
    blind_metadata,
    terms_of,
)
from rlspec.deploy.arm.interfaces import Array, Reply
from rlspec.deploy.clocks import Clock
from rlspec.errors import ConfigError


class RobotPolicy(Protocol):
    """Answers observations with chunks of actions."""

    metadata: dict[str, Any]

    def infer(self, observation: Mapping[str, Any]) -> Reply:
        """Actions (H, A) for an observation; may take its time.

        Raises:
            ServerError: There is no answer.
        """
        ...

    def trouble(self, *, waiting: bool) -> str:
        """Why no answer can be hoped for, in words; empty: it can. Returns at once.

        Args:
            waiting: Whether it was asked and has not answered.
        """
        ...

    def hurry(self) -> None:
        """The robot begins to move: from now on late answers are errors."""
        ...

    def close(self) -> None:
        """Free what it holds; from any thread."""
        ...


@dataclass(frozen=True)
class Contract:
    """What a policy and a robot must agree on.

    Attributes:
        action_space: Key of `ACTION_SPACES`.
        control_hz: Ticks per second.
        law: By which the training data were carried out; "": the policy does not say.
        horizon: Actions in a chunk; 0: the policy does not say.
        n_action_steps: How many of them are meant to be carried out.
        cameras: Key of the policy -> (height, width), or None: any size.
        prompt_required: It wants an instruction.
        takes_prefix: It guides a chunk by the committed actions (real-time chunking).
    """

    action_space: str
    control_hz: float
    law: str = ""
    horizon: int = 0
    n_action_steps: int = OPEN_LOOP_STEPS
    cameras: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    prompt_required: bool = False
    takes_prefix: bool = False


def read_contract(metadata: Mapping[str, Any], where: str, *, action_space: str | None, rate: float | None) -> Contract:
    """The contract of a policy, from its metadata and, for what they leave out, from the user.

    Args:
        metadata: The handshake.
        where: Words for the policy, for messages.
        action_space: What the user said.
        rate: What the user said.

    Raises:
        ConfigError: They contradict each other, or nobody says it.
    """
    ours = terms_of(metadata)
    said = ours.get("action_space") or metadata.get("action_space")
    if said is None and action_space is None:
        raise ConfigError(f"{where} does not say what its actions mean: add action_space={'|'.join(ACTION_SPACES)}")
    if said is not None and action_space not in (None, said):
        raise ConfigError(f"action_space={action_space}: {where} acts in {said}; leave it out")
    space = str(said or action_space)
    trained = ours.get("control_hz")
    if trained is not None and rate is not None and not math.isclose(trained, rate):
        raise ConfigError(f"rate={rate:g}: {where} was trained at {trained:g} Hz; leave it out")
    return Contract(
        action_space=space,
        control_hz=float(trained or rate or ACTION_SPACES[space].control_hz),
        law=ours.get("execution_law") or "",
        horizon=int(ours.get("horizon") or 0),
        n_action_steps=int(ours.get("n_action_steps") or ours.get("horizon") or OPEN_LOOP_STEPS),
        cameras=_cameras(metadata),
        prompt_required=bool(ours.get("prompt_required")),
        takes_prefix=bool(ours.get("takes_prefix")),
    )


def check_width(reply: Reply, contract: Contract) -> None:
    """Refuse answers whose actions have another width than the action space: before the start it is the user's to mend.

    Raises:
        ConfigError: They have.
    """
    space, shape = ACTION_SPACES[contract.action_space], reply.actions.shape
    if len(shape) != 2 or shape[1] != space.size:
        fitting = [name for name, each in ACTION_SPACES.items() if shape[-1:] == (each.size,)]
        remedy = f"one of {', '.join(fitting)} has that width" if fitting else "serve a policy of this action space"
        wanted = f"wanted (horizon, {space.size})"
        raise ConfigError(f"action_space={space.name}: the policy answers with shape {shape}, {wanted}; {remedy}")


def _cameras(metadata: Mapping[str, Any]) -> dict[str, tuple[int, int] | None]:
    """What a policy says that it looks at: in our words, in RoboArena's, or as openpi's do, which say nothing."""
    if (cameras := terms_of(metadata).get("cameras")) is not None:
        return {key: _size(size) for key, size in cameras.items()}
    arena = arena_config_of(metadata)
    return dict(OPENPI_CAMERAS) if arena is None else arena_cameras(arena)


def _size(size: Any) -> tuple[int, int] | None:
    return None if not size else (int(size[0]), int(size[1]))


class _Local:
    """What policies without a server have in common: they are always there."""

    metadata: dict[str, Any]

    def trouble(self, *, waiting: bool) -> str:
        return ""

    def hurry(self) -> None:
        pass

    def close(self) -> None:
        pass


class HoldPolicy(_Local):
    """Asks the robot to stay where it is."""

    def __init__(self, action_space: str, control_hz: float, horizon: int = OPEN_LOOP_STEPS, law: str = "") -> None:
        if action_space == CARTESIAN_POSITION:  # an observation holds no pose
            raise ConfigError("policy=hold: it holds joints or speeds; take another action_space")
        self._space, self._horizon = ACTION_SPACES[action_space], horizon
        self.metadata = blind_metadata(
            "hold", action_space, control_hz, horizon=horizon, n_action_steps=horizon, law=law
        )

    def infer(self, observation: Mapping[str, Any]) -> Reply:
        """See `RobotPolicy`."""
        action = self._space.hold(observation[JOINTS], float(observation[GRIPPER][0]))
        return Reply(np.tile(action, (self._horizon, 1)), 0.0, 0.0)


class WavePolicy(_Local):
    """All joints swing slowly about where they are first seen: the `expert` of a robot without a task."""

    def __init__(self, clock: Clock, action_space: str, control_hz: float, horizon: int = 16, law: str = "") -> None:
        if action_space not in (JOINT_POSITION, JOINT_VELOCITY):
            raise ConfigError(f"policy=expert: here it moves joints, not {action_space}; take {JOINT_POSITION}")
        self._clock, self._space, self._rate, self._horizon = clock, action_space, control_hz, horizon
        self._centre: Array | None = None
        self._start = 0.0
        self.metadata = blind_metadata(
            "wave", action_space, control_hz, horizon=horizon, n_action_steps=OPEN_LOOP_STEPS, law=law
        )

    def infer(self, observation: Mapping[str, Any]) -> Reply:
        """See `RobotPolicy`."""
        now = self._clock.now()
        if self._centre is None:
            self._centre, self._start = np.array(observation[JOINTS], np.float64), now
        times = now - self._start + np.arange(self._horizon + 1) / self._rate
        wave = self._centre + 0.1 * (1 - np.cos(2 * np.pi * 0.2 * times))[:, None]
        closed = (np.sin(2 * np.pi * 0.1 * times[:-1]) < -0.5).astype(float)[:, None]
        joints = np.diff(wave, axis=0) / MAX_JOINT_STEP if self._space == JOINT_VELOCITY else wave[1:]
        return Reply(np.concatenate([joints, closed], 1), 0.0, 0.0)


class ExpertPolicy(_Local):
    """The scripted expert of a simulated task."""

    def __init__(self, expert: Any) -> None:
        self._expert = expert
        self.metadata = expert.metadata

    def infer(self, observation: Mapping[str, Any]) -> Reply:
        """See `RobotPolicy`."""
        start = time.perf_counter()
        actions = self._expert.infer(dict(observation))
        return Reply(actions, None, 1000 * (time.perf_counter() - start))
