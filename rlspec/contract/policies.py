"""What LeRobot's policies call what trainer, evaluation and server read off their configs."""

from __future__ import annotations

from typing import Any

REGRESSION = "rlspec_adapter"
"""The type whose head says one chunk and no distribution, before reinforcement learning gives it a Gaussian."""

WITH_LIKELIHOOD = ("rlspec_flow", "rlspec_smolvla", "rlspec_pi05", REGRESSION)
"""Types of policies whose chunks of actions have a density, which reinforcement learning needs."""


def chunk_length(config: Any) -> int | None:
    """Actions that a policy predicts at once; None: it does not act in chunks."""
    for name in ("chunk_size", "horizon", "action_chunk_size"):
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    return None


def action_steps(config: Any) -> int | None:
    """How many of them are meant to be carried out; None: the policy does not say."""
    steps = getattr(config, "n_action_steps", None)
    return None if steps is None else int(steps)


def keeps_past(config: Any) -> bool:
    """Whether a policy reads observations before the newest one."""
    states = getattr(config, "state_delta_indices", None) or ()
    return getattr(config, "n_obs_steps", 1) > 1 or len(states) > 1
