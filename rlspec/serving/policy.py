"""What a server serves: a policy that answers several observations at once, and what it says about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlspec import __version__
from rlspec.contract.actions import ACTION_SPACES
from rlspec.contract.features import JOINT_STATE
from rlspec.contract.messages import EXTERIOR, SECTION, WRIST_KEY, ArenaConfig, Terms, camera_key


@dataclass(frozen=True)
class Observation:
    """One checked request.

    Attributes:
        images: Camera -> uint8 (height, width, 3) RGB, of any size.
        state: (numbers of the state,) float64; empty where the policy wants none.
        prompt: The instruction.
        session: Number of the connection that asks.
        prefix: Actions that the robot is committed to, (n, numbers of an action), n at most the policy's horizon; None:
            not known, or the policy cannot be guided by them.
        delay: How many of them it carries out before the answer arrives.
    """

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float64]
    prompt: str
    session: int
    prefix: NDArray[np.float64] | None = None
    delay: int = 0


@dataclass(frozen=True)
class PolicySpec:
    """What a policy wants and gives.

    Attributes:
        model: Words for the policy.
        action_space: Key of `ACTION_SPACES`.
        control_hz: Rate at which its actions are carried out.
        execution_law: Key of `EXECUTION_LAWS`.
        horizon: Actions in an answer.
        n_action_steps: How many of them are meant to be carried out.
        cameras: Name of the policy -> (height, width).
        wire_keys: Camera -> key of messages, where it is not the usual one.
        state: Numbers of the state; 0: it wants none.
        prompt_required: It wants an instruction.
        prompt: Instruction for requests that have none.
        norm_stats_sha256: Of the statistics that it normalises by.
        takes_prefix: It can be guided by the actions that the robot is committed to (real-time chunking).
    """

    model: str
    action_space: str
    control_hz: float
    execution_law: str
    horizon: int
    n_action_steps: int
    cameras: dict[str, tuple[int, int]] = field(default_factory=dict)
    wire_keys: dict[str, str] = field(default_factory=dict)
    state: int = len(JOINT_STATE)
    prompt_required: bool = False
    prompt: str | None = None
    norm_stats_sha256: str | None = None
    takes_prefix: bool = False

    def wire_key(self, camera: str) -> str:
        """Key of a camera's picture in openpi's messages."""
        return self.wire_keys.get(camera) or camera_key(camera)

    def exterior_cameras(self) -> list[str]:
        """Cameras that look at the robot from outside, in the order of their numbers."""
        numbered = [(match[1], name) for name in self.cameras if (match := EXTERIOR.fullmatch(self.wire_key(name)))]
        return [name for _, name in sorted(numbered)]


class BatchPolicy(Protocol):
    """Answers observations of several sessions in one go. Its methods are called from one thread."""

    spec: PolicySpec
    max_batch: int  # observations that it can take at once

    def infer(self, observations: Sequence[Observation]) -> list[NDArray[np.float32]]:
        """Actions (horizon, numbers of an action) for each observation, in their order."""
        ...

    def forget(self, session: int) -> None:
        """A session begins anew, or is over."""
        ...


def openpi_metadata(spec: PolicySpec) -> dict[str, Any]:
    """The first message of a session: RoboArena's keys, and ours in a section."""
    ours: Terms = {
        "action_space": spec.action_space,
        "control_hz": spec.control_hz,
        "execution_law": spec.execution_law,
        "horizon": spec.horizon,
        "n_action_steps": spec.n_action_steps,
        "cameras": {spec.wire_key(name): list(size) for name, size in spec.cameras.items()},
        "state": spec.state,
        "norm_stats_sha256": spec.norm_stats_sha256,
        "model": spec.model,
        "version": __version__,
        "prompt_required": spec.prompt_required and spec.prompt is None,
        "takes_prefix": spec.takes_prefix,
    }
    return {**roboarena_metadata(spec), SECTION: ours}


def roboarena_metadata(spec: PolicySpec) -> ArenaConfig:
    """What RoboArena's client wants to know."""
    sizes = set(spec.cameras.values())
    return {
        "image_resolution": list(sizes.pop()) if len(sizes) == 1 else None,
        "needs_wrist_camera": any(spec.wire_key(name) == WRIST_KEY for name in spec.cameras),
        "n_external_cameras": len(spec.exterior_cameras()),
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": spec.action_space,
    }


def fault_of_actions(actions: Any, spec: PolicySpec) -> str | None:
    """Why a policy's answer must not be sent; None: it may."""
    width = ACTION_SPACES[spec.action_space].size
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not len(actions) or actions.shape[1] != width:
        return f"the policy gave actions of shape {np.shape(actions)}; {spec.action_space} has (horizon, {width})"
    if not np.isfinite(actions).all():
        return "the policy gave actions with NaN or infinity"
    return None


def summary(spec: PolicySpec) -> Mapping[str, str]:
    """Lines about a policy for the log."""
    cameras = [f"{spec.wire_key(name)} {size[0]}x{size[1]}" for name, size in spec.cameras.items()]
    return {
        "policy": spec.model,
        "actions": f"{spec.action_space} at {spec.control_hz:g} Hz by {spec.execution_law}, "
        f"{spec.n_action_steps} of {spec.horizon} carried out",
        "cameras": ", ".join(cameras) or "none",
    }
