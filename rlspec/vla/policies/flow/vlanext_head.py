"""The action head of VLANeXt as published (ICML 2026, and its code), and its loss of frequencies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspec.vla.policies.backbone.backbone import Hidden
from rlspec.vla.policies.backbone.bridge import Context
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig

TIME_FEATURES = 256
TIME_STEPS = 1000  # a time in [0, 1] counts as so many steps
PERIOD = 10_000.0
EPS = 1e-6


class VlanextHead(nn.Module):
    """The velocity of noisy actions, through one block for each of the backbone's layers.

    A block attends to the chunk's own tokens and to all that its layer has, of images, text, states and queries. Where
    the published code attends to padding too, it is left out here.
    """

    def __init__(self, config: BackbonePolicyConfig, layers: list[int], context_width: int, actions: int) -> None:
        super().__init__()
        width = config.head_width
        self.layers = layers
        self.action_in_proj = nn.Linear(actions, width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(config.chunk_size, width))
        self.time_mlp_in = nn.Linear(TIME_FEATURES, width)
        self.time_mlp_out = nn.Linear(width, width)
        self.blocks = nn.ModuleList(VlanextBlock(width, context_width, config.head_heads) for _ in layers)
        self.ada_ln = _from_zero(nn.Linear(width, 2 * width))
        self.action_out_proj = _from_zero(nn.Linear(width, actions))
        nn.init.xavier_uniform_(self.action_in_proj.weight)
        for layer in (self.time_mlp_in, self.time_mlp_out):
            nn.init.normal_(layer.weight, std=0.02)

    def read(self, hidden: Hidden, proprio: Tensor | None) -> list[Context]:  # noqa: ARG002  # states are among the task
        """Keys and values of every block, which denoising steps share."""
        contexts = []
        for block, layer in zip(self.blocks, self.layers, strict=True):
            seen = torch.cat([hidden.task[layer], hidden.queries[layer]], 1)
            mask = torch.cat([hidden.mask, hidden.mask.new_ones(hidden.queries[layer].shape[:2])], 1)
            contexts.append(block.read(seen, mask))  # type: ignore[operator]
        return contexts

    def forward(self, noisy: Tensor, time: Tensor, contexts: list[Context]) -> Tensor:
        """Velocity (B, chunk, A) of noisy actions (B, chunk, A) at times (B,) in [0, 1], 1 is noise."""
        condition = self.time_mlp_out(F.silu(self.time_mlp_in(time_features(time).to(noisy.dtype))))
        tokens = self.action_in_proj(noisy) + self.pos_embed
        for block, context in zip(self.blocks, contexts, strict=True):
            tokens = block(tokens, context, condition)
        shift, scale = self.ada_ln(F.silu(condition))[:, None].chunk(2, -1)
        return self.action_out_proj(_normed(tokens) * (1 + scale) + shift)


class VlanextBlock(nn.Module):
    """Attention and a feed-forward layer whose norms and ways in are modulated by the time, closed at the start."""

    def __init__(self, width: int, context_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.context_proj = nn.Linear(context_width, width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.ada_ln = _from_zero(nn.Linear(width, 6 * width))
        nn.init.xavier_uniform_(self.context_proj.weight)
        for layer in (self.q_proj, self.k_proj, self.v_proj):  # as torch draws the three of an attention together
            nn.init.uniform_(layer.weight, -math.sqrt(1.5 / width), math.sqrt(1.5 / width))
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.zeros_(layer.bias)

    def read(self, seen: Tensor, mask: Tensor) -> Context:
        """Keys and values of a layer's hidden states (B, L, context_width), of which `mask` (B, L) counts."""
        seen = self.context_proj(seen)
        return Context(self._heads(self.k_proj(seen)), self._heads(self.v_proj(seen)), mask)

    def forward(self, tokens: Tensor, context: Context, condition: Tensor) -> Tensor:
        """Tokens (B, T, width) to the same, at a condition (B, width)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.ada_ln(F.silu(condition))[:, None].chunk(6, -1)
        inside = _normed(tokens) * (1 + scale) + shift
        key = torch.cat([self._heads(self.k_proj(inside)), context.key], 2)
        value = torch.cat([self._heads(self.v_proj(inside)), context.value], 2)
        mask = torch.cat([context.mask.new_ones(tokens.shape[:2]), context.mask], 1)[:, None, None]
        mixed = F.scaled_dot_product_attention(self._heads(self.q_proj(inside)), key, value, attn_mask=mask)
        tokens = tokens + gate * self.o_proj(mixed.transpose(1, 2).flatten(2))
        inside = _normed(tokens) * (1 + scale_mlp) + shift_mlp
        return tokens + gate_mlp * self.fc2(F.gelu(self.fc1(inside), approximate="tanh"))

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _from_zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _normed(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=EPS)


def time_features(time: Tensor) -> Tensor:
    """Cosines, then sines, of times (B,) in [0, 1]: (B, 256)."""
    half = TIME_FEATURES // 2
    rates = PERIOD ** (-torch.arange(half, dtype=torch.float32, device=time.device) / half)
    angles = TIME_STEPS * time.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


def published_times(steps: int) -> list[float]:
    """At which the velocity is asked for, and the end: evenly from 1 to 1 / 1000, then 0."""
    last = 1 / TIME_STEPS
    return [*(1 + (last - 1) * step / max(steps - 1, 1) for step in range(steps)), 0.0]


def frequency_loss(errors: Tensor, split: float, low: float, high: float) -> Tensor:
    """Mean square of errors (B, T, A) of actions over the frequencies of a chunk, the lowest and the others weighted.

    Args:
        errors: 0 where padded.
        split: share of the T frequencies that are low; at least one is.
        low: weight of those.
        high: weight of the others.
    """
    steps = errors.shape[1]
    cut = max(1, int(steps * split))
    weights = errors.new_tensor([low] * cut + [high] * (steps - cut))
    coefficients = torch.einsum("kt,bta->bka", cosines(steps).to(errors), errors)
    return (weights[:, None] * coefficients.square()).mean()


def cosines(steps: int) -> Tensor:
    """The orthonormal discrete cosine transform (DCT-II): (frequencies, steps)."""
    frequency, step = torch.arange(steps, dtype=torch.float64)[:, None], torch.arange(steps, dtype=torch.float64)
    waves = torch.cos(math.pi / steps * (step + 0.5) * frequency) * math.sqrt(2 / steps)
    waves[0] /= math.sqrt(2)
    return waves
