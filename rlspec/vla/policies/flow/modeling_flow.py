"""`rlspec_flow`: one pass of the backbone, and as many passes of the head as there are denoising steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from lerobot.utils.constants import OBS_STATE
from torch import Tensor, nn
from torch.nn import functional as F

from rlspec.vla.policies.backbone.backbone import Hidden
from rlspec.vla.policies.backbone.bridge import Context
from rlspec.vla.policies.backbone.observation import read_images, read_text, read_vector
from rlspec.vla.policies.backbone.policy import BridgedHead, BridgedModel, ChunkPolicy, masked_mean
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig
from rlspec.vla.policies.backbone.vlm import First
from rlspec.vla.policies.flow.configuration_flow import RlspecFlowConfig
from rlspec.vla.policies.flow.vlanext_head import VlanextHead, frequency_loss, published_times
from rlspec.vla.policies.guidance import Field, Guidance, published_settings


class FlowHead(BridgedHead):
    """The velocity of noisy actions at a time, norms modulated by the time."""

    def __init__(self, config: BackbonePolicyConfig, layers: list[int], context_width: int, actions: int) -> None:
        super().__init__(config, layers, context_width, modulated=True)
        width = config.head_width
        self.action_in_proj = nn.Linear(actions, width)
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)
        self.action_out_proj = nn.Linear(width, actions)

    def forward(self, noisy: Tensor, time: Tensor, contexts: list[Context]) -> Tensor:
        """Velocity (B, chunk, A) of noisy actions (B, chunk, A) at times (B,) in [0, 1], 1 is noise."""
        waves = time_embedding(time, self.time_mlp_in.in_features).to(noisy.dtype)
        condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(waves))))
        tokens = self.action_in_proj(noisy) + self.action_tokens
        return self.action_out_proj(self.run(tokens, contexts, condition))


class FlowModel(BridgedModel):
    """Backbone and flow-matching head."""

    def __init__(self, config: RlspecFlowConfig, actions: int) -> None:
        super().__init__(config)
        given = (config, self.layers, self.backbone.width, actions)
        self.action_head = FlowHead(*given) if config.head == "bridge" else VlanextHead(*given)


class VlanextModel(FlowModel):
    """Its states are the first tokens of the language model."""

    def __init__(self, config: RlspecFlowConfig, actions: int) -> None:
        super().__init__(config, actions)
        state = config.robot_state_feature
        if self.proprio_projector is not None and state is not None:
            self.proprio_projector = nn.Linear(state.shape[0], self.backbone.width)  # type: ignore[assignment]

    def encode_history(self, images: Tensor, ids: Tensor, mask: Tensor, states: Tensor, real: Tensor) -> Hidden:
        """Hidden states of the backbone, after the newest states (B, T, state), of which `real` (B, T) count."""
        assert self.proprio_projector is not None
        first = First(self.proprio_projector(states), real)
        return self.backbone(images, ids, mask, self.action_queries.weight, first)


class RlspecFlowPolicy(ChunkPolicy):
    """Flow matching over action chunks (the pi0 and VLANeXt idea): x_t = t noise + (1 - t) action."""

    config_class = RlspecFlowConfig
    name = "rlspec_flow"
    model: FlowModel
    config: RlspecFlowConfig

    def build_model(self, config: BackbonePolicyConfig) -> FlowModel:
        """The network."""
        assert isinstance(config, RlspecFlowConfig)
        kind = FlowModel if config.head == "bridge" else VlanextModel
        return kind(config, self.action_dim)

    def encode(self, batch: dict[str, Tensor]) -> tuple[Hidden, Tensor | None]:
        """As the parent; of "vlanext", states go in before everything."""
        model = self.model
        if not isinstance(model, VlanextModel) or model.proprio_projector is None:
            return super().encode(batch)
        states, real = self._newest_states(batch)
        ids, mask = read_text(batch)
        images = read_images(batch, self.config, self.training)
        return model.encode_history(images, ids, mask, self.clipped(states), real), None

    def _newest_states(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(B, T, state) and which of them there were, (B, T)."""
        state, count = batch[OBS_STATE], self.config.state_history
        states = state[:, None] if state.ndim == 2 else state
        padded = batch.get(f"{OBS_STATE}_is_pad")
        real = states.new_ones(states.shape[:2], dtype=torch.bool) if padded is None else ~padded.bool()
        lacking = max(count - states.shape[1], 0)
        states, real = F.pad(states, (0, 0, lacking, 0))[:, -count:], F.pad(real, (lacking, 0))[:, -count:]
        read_vector({OBS_STATE: states[:, -1]}, OBS_STATE, self.model.proprio_projector.in_features, 2)  # type: ignore[union-attr, arg-type]
        return states, real

    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """As the parent; states are remembered."""
        if self.config.state_history > 1:
            self._states.append(batch[OBS_STATE])
            batch = {**batch, OBS_STATE: torch.stack(list(self._states), 1)}
        return super().select_action(batch, **kwargs)

    def reset(self) -> None:
        """Forget the rest of the last chunk, and start the noise again where it has a seed."""
        super().reset()
        self._states: deque[Tensor] = deque(maxlen=self.config.state_history)
        seed = self.config.noise_seed
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def forward(
        self, batch: dict[str, Tensor], noise: Tensor | None = None, time: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the velocity noise - action over steps that are not padding.

        Args:
            batch: preprocessed.
            noise: (B, chunk, A); None: drawn.
            time: (B,); None: drawn.
        """
        actions, real = self.read_actions(batch)
        copies = self.config.time_samples
        contexts = self.model.action_head.read(*self.encode(batch))
        if copies > 1:
            actions, real = actions.repeat(copies, 1, 1), real.repeat(copies, 1)
            contexts = [Context(*(part.repeat(copies, *[1] * (part.ndim - 1)) for part in each)) for each in contexts]
        noise = torch.randn_like(actions) if noise is None else noise
        time = self._draw_time(actions) if time is None else time
        noisy = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        velocity = self.model.action_head(noisy, time, contexts).float()
        loss = masked_mean((velocity - (noise - actions)).square(), real)
        if not (weight := self.config.frequency_weight):
            return loss, {"flow_loss": loss.item()}
        errors = (noisy - time[:, None, None] * velocity - actions) * real[..., None]
        config = self.config
        frequencies = frequency_loss(errors, config.frequency_split, config.frequency_low, config.frequency_high)
        return loss + weight * frequencies, {"flow_loss": loss.item(), "frequency_loss": frequencies.item()}

    def supports_rtc(self) -> bool:
        """Chunks can be guided by what is left of the one in hand (real-time chunking)."""
        return True

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None = None,
        *,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Normalised actions (B, chunk, A).

        Args:
            batch: preprocessed.
            noise: (B, chunk, A); None: drawn.
            inference_delay: rows of `prev_chunk_left_over` that will be carried out before the chunk arrives.
            prev_chunk_left_over: normalised actions that come next in the chunk in hand, (n, A) or (B, n, A): the new
                chunk continues them. None: it is free. Takes a gradient, so not in inference mode.
            execution_horizon: rows of `prev_chunk_left_over` that count; None: `rtc_config`'s number, or all.
            kwargs: of other policies; passed over.
        """
        self.eval()
        field: Field = self.velocity_field(batch)
        if noise is None:
            noise = self._draw_noise(read_text(batch)[0])
        settings = self.config.rtc_config or published_settings()
        if prev_chunk_left_over is not None and settings.enabled:
            if execution_horizon is None and self.config.rtc_config is not None:
                execution_horizon = settings.execution_horizon
            prefix = prev_chunk_left_over.to(noise)
            field = Guidance.of(prefix, inference_delay or 0, execution_horizon, settings, noise.shape).around(field)
        assert self.config.num_steps is not None
        if self.config.head == "vlanext":
            return follow(field, noise, published_times(self.config.num_steps))
        return euler(field, noise, self.config.num_steps)

    @property
    def flow_shape(self) -> tuple[int, int, int]:
        """Denoising steps, rows of a chunk, numbers in a row."""
        assert self.config.num_steps is not None
        return self.config.num_steps, self.config.chunk_size, self.action_dim

    def velocity_field(self, batch: dict[str, Tensor]) -> Field:
        """The velocity (B, chunk, A) of noisy actions at times (B,); the backbone reads the observations once."""
        contexts = self.model.action_head.read(*self.encode(batch))

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            return self.model.action_head(x, time, contexts).float()

        return velocity

    def _draw_noise(self, like: Tensor) -> Tensor:
        shape = (len(like), self.config.chunk_size, self.action_dim)
        if self._generator is None:
            return torch.randn(shape, device=like.device)
        return torch.randn(shape, generator=self._generator).to(like.device)

    def _draw_time(self, actions: Tensor) -> Tensor:
        if self.config.head == "vlanext":  # as published, evenly
            return torch.rand(len(actions), device=actions.device)
        distribution = torch.distributions.Beta(self.config.time_alpha, self.config.time_beta)
        return distribution.sample((len(actions),)).to(actions) * 0.999 + 0.001


def euler(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Follow a velocity field from time 1 to 0 in equal steps.

    Args:
        velocity: of x (B, ...) at times (B,).
        noise: x at time 1.
        steps: number of evaluations.
    """
    x = noise
    for step in range(steps):
        time = x.new_full((len(x),), 1 - step / steps)
        x = x - velocity(x, time) / steps
    return x


def follow(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, times: list[float]) -> Tensor:
    """Follow a velocity field from the first time to the last, with one evaluation at each but that."""
    x = noise
    for start, end in pairwise(times):
        x = x - (start - end) * velocity(x, x.new_full((len(x),), start))
    return x


def time_embedding(time: Tensor, width: int, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """Sines and cosines of times (B,) at periods from `shortest` to `longest`, (B, width)."""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float32, device=time.device)
    periods = shortest * (longest / shortest) ** fraction
    angles = 2 * math.pi * time.float()[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], 1)
