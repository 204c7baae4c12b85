"""Policies as distributions over chunks of actions: what reinforcement learning draws from and weighs."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from rlspec.contract.policies import WITH_LIKELIHOOD, chunk_length, keeps_past
from rlspec.errors import ConfigError
from rlspec.vla.policies.flow_sde import Velocity, chain_log_prob, draw_chain, normal_log_prob


class ChunkDistribution(Protocol):
    """Chunks of normalised actions, given observations."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one draw, (K + 1, chunk, D), from noise to actions; of D numbers the last D - A may be padding."""

    def draw(self, batch: dict[str, Any], noise: Tensor) -> Tensor:
        """Draws (B, K + 1, chunk, D), for standard normal noise of the same shape."""

    def log_prob(self, batch: dict[str, Any], draws: Tensor) -> Tensor:
        """Log-density (B,) in float64 of the draws, whose rows that are carried out count, without padding."""


class FlowPolicy(Protocol):
    """A policy that follows a velocity field."""

    config: Any

    @property
    def flow_shape(self) -> tuple[int, int, int]:
        """Denoising steps, rows of a chunk, numbers in a row."""

    def velocity_field(self, batch: dict[str, Any]) -> Velocity:
        """The velocity, with gradients, for preprocessed observations, which are read once."""


class FlowDistribution:
    """A flow policy sampled by the SDE of `flow_sde`.

    The density is that of the whole way from noise to actions. Rows that are not carried out and padding are drawn as
    well and left out of it, as RLinf does; they could matter only through what the other numbers make of them.
    """

    def __init__(self, policy: FlowPolicy, noise_level: float) -> None:
        self._policy, self._noise_level = policy, noise_level
        self._rows, self._numbers = _carried_out(policy.config)

    @property
    def shape(self) -> tuple[int, int, int]:
        """See ChunkDistribution."""
        steps, rows, numbers = self._policy.flow_shape
        return steps + 1, rows, numbers

    @torch.no_grad()
    def draw(self, batch: dict[str, Any], noise: Tensor) -> Tensor:
        """See ChunkDistribution."""
        return draw_chain(self._policy.velocity_field(batch), noise, self._noise_level)

    def log_prob(self, batch: dict[str, Any], draws: Tensor) -> Tensor:
        """See ChunkDistribution."""
        found = chain_log_prob(self._policy.velocity_field(batch), draws, self._noise_level)
        return found[:, :, : self._rows, : self._numbers].sum((1, 2, 3))


class GaussianDistribution:
    """A regression head's chunk as the mean of a Gaussian, whose scale per number of an action is a parameter."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._rows, self._numbers = _carried_out(policy.config)

    @property
    def shape(self) -> tuple[int, int, int]:
        """See ChunkDistribution."""
        return 1, self._policy.config.chunk_size, self._policy.action_dim

    @torch.no_grad()
    def draw(self, batch: dict[str, Any], noise: Tensor) -> Tensor:
        """See ChunkDistribution."""
        return self._policy.predict_mean(batch)[:, None] + self._policy.log_scale.exp() * noise

    def log_prob(self, batch: dict[str, Any], draws: Tensor) -> Tensor:
        """See ChunkDistribution."""
        found = normal_log_prob(draws[:, 0], self._policy.predict_mean(batch), self._policy.log_scale)
        return found[:, : self._rows, : self._numbers].sum((1, 2))


def distribution_of(policy: Any, noise_level: float) -> ChunkDistribution:
    """A policy's distribution; behind adapters, that of the policy below them.

    Args:
        policy: of LeRobot; in evaluation mode, as both sides of a ratio must see the same network.
        noise_level: of a flow policy.

    Raises:
        ConfigError: It has none, or reads past observations.
    """
    bare = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    if keeps_past(bare.config):
        raise ConfigError(
            f"policy.type={bare.config.type}: it keeps past observations (state_history > 1), which reinforcement "
            "learning does not; choose a policy that was trained with state_history=1"
        )
    if hasattr(bare, "velocity_field"):
        return FlowDistribution(bare, noise_level)
    if getattr(bare, "log_scale", None) is not None:
        return GaussianDistribution(bare)
    raise ConfigError(
        f"policy.type={bare.config.type}: it has no likelihood to reinforce; choose {', '.join(WITH_LIKELIHOOD)}"
    )


def _carried_out(config: Any) -> tuple[int, int]:
    """Rows of a chunk and numbers of a row that reach the robot."""
    rows = getattr(config, "n_action_steps", None) or chunk_length(config)
    assert rows is not None
    return int(rows), int(config.action_feature.shape[0])
