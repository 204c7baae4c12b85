"""The policies without a model that a server can be asked for."""

from __future__ import annotations

from pathlib import Path

from rlspec.contract.actions import ACTION_SPACES, DROID_HYBRID, JOINT_POSITION, JOINT_VELOCITY
from rlspec.contract.messages import OPEN_LOOP_STEPS
from rlspec.contract.pictures import OPENPI_SIZE
from rlspec.errors import ConfigError, nearest
from rlspec.serving.builtin import BUILT_IN, HoldBatchPolicy, ReplayPolicy, ZerosPolicy, load_actions
from rlspec.serving.policy import BatchPolicy, PolicySpec
from rlspec.serving.settings import ServedPolicy

_HORIZON = 16


def built_in_policy(wanted: ServedPolicy) -> BatchPolicy:
    """The policy that `policy=` names.

    Raises:
        ConfigError: There is none, it cannot act in the action space, or its file cannot be read.
    """
    name, _, file = (wanted.policy or "").partition(":")
    if name not in BUILT_IN or (name == "replay") != bool(file):
        raise ConfigError(f"policy={wanted.policy}: {nearest(name, ('hold', 'zeros', 'replay:FILE'))}")
    space = wanted.action_space or (JOINT_POSITION if name == "hold" else JOINT_VELOCITY)
    horizon = wanted.horizon or _HORIZON
    steps = wanted.n_action_steps or min(OPEN_LOOP_STEPS, horizon)
    if steps > horizon:
        raise ConfigError(f"n_action_steps={steps}: wants 1 to {horizon}, the horizon")
    spec = PolicySpec(
        model=wanted.policy or "" if not file else f"replay of {Path(file).name}",
        action_space=space,
        control_hz=wanted.control_hz or ACTION_SPACES[space].control_hz,
        execution_law=wanted.execution_law or DROID_HYBRID,
        horizon=horizon,
        n_action_steps=steps,
        cameras={camera: OPENPI_SIZE for camera in wanted.wire_keys},
        wire_keys=dict(wanted.wire_keys),
        prompt=wanted.prompt,
    )
    if name == "replay":
        return ReplayPolicy(spec, load_actions(Path(file).expanduser(), space))
    return HoldBatchPolicy(spec) if name == "hold" else ZerosPolicy(spec)
