"""Blocks of an action head that read one layer of the backbone each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspec.vla.policies.backbone.vision import Mlp


class Context(NamedTuple):
    """Keys and values (B, heads, L, head) that a block reads besides its own tokens, and which of them count (B, L)."""

    key: Tensor
    value: Tensor
    mask: Tensor


class BridgeBlock(nn.Module):
    """Joint attention over the chunk's own tokens, the action queries and the task's hidden states, then an MLP.

    One softmax weighs the three sources, as in VLA-Adapter (arXiv 2509.09372). What the task's hidden states give
    passes a gate, tanh(gating_factor), that starts closed.

    Args:
        width: of the chunk's tokens.
        context_width: of the backbone's hidden states.
        num_heads: of the attention.
        modulated: whether norms are scaled, shifted and gated by a condition (B, width), as in DiT.
        gate: initial gating factor.
    """

    def __init__(
        self, width: int, context_width: int, num_heads: int, *, modulated: bool = False, gate: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.norm_adapter = nn.LayerNorm(context_width)
        self.norm_task = nn.LayerNorm(context_width)
        self.q_proj = nn.Linear(width, width)
        self.k_self = nn.Linear(width, width)
        self.v_self = nn.Linear(width, width)
        self.k_adapter = nn.Linear(context_width, width)
        self.v_adapter = nn.Linear(context_width, width)
        self.k_task = nn.Linear(context_width, width)
        self.v_task = nn.Linear(context_width, width)
        self.o_proj = nn.Linear(width, width)
        self.gating_factor = nn.Parameter(torch.full((1,), gate))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width)
        self.ada_ln = nn.Linear(width, 6 * width) if modulated else None
        if self.ada_ln is not None:
            nn.init.zeros_(self.ada_ln.weight)
            nn.init.zeros_(self.ada_ln.bias)

    def read(self, task: Tensor, mask: Tensor, adapter: Tensor) -> Context:
        """Keys and values of the backbone, which denoising steps share.

        Args:
            task: hidden states of images and text (B, L, context_width).
            mask: (B, L), False where padded.
            adapter: hidden states of the action queries, and proprioception (B, Q, context_width).
        """
        task, adapter = self.norm_task(task), self.norm_adapter(adapter)
        gate = torch.tanh(self.gating_factor)
        key = torch.cat([self.k_adapter(adapter), self.k_task(task)], 1)
        value = torch.cat([self.v_adapter(adapter), gate * self.v_task(task)], 1)
        seen = torch.cat([mask.new_ones(adapter.shape[:2]), mask], 1)
        return Context(self._heads(key), self._heads(value), seen)

    def forward(self, tokens: Tensor, context: Context, condition: Tensor | None = None) -> Tensor:
        """Tokens (B, T, width) to the same; condition (B, width) where modulated."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self._modulation(condition)
        tokens = tokens + gate * self._attend(self.norm1(tokens) * (1 + scale) + shift, context)
        return tokens + gate_mlp * self.mlp(self.norm2(tokens) * (1 + scale_mlp) + shift_mlp)

    def _modulation(self, condition: Tensor | None) -> list[Tensor] | tuple[float, ...]:
        if self.ada_ln is None:
            return 0.0, 0.0, 1.0, 0.0, 0.0, 1.0
        assert condition is not None
        shift, scale, gate, *rest = self.ada_ln(condition)[:, None].chunk(6, -1)
        shift_mlp, scale_mlp, gate_mlp = rest
        return [shift, scale, 1 + gate, shift_mlp, scale_mlp, 1 + gate_mlp]

    def _attend(self, tokens: Tensor, context: Context) -> Tensor:
        key = torch.cat([self._heads(self.k_self(tokens)), context.key], 2)
        value = torch.cat([self._heads(self.v_self(tokens)), context.value], 2)
        mask = torch.cat([context.mask.new_ones(tokens.shape[:2]), context.mask], 1)[:, None, None]
        mixed = F.scaled_dot_product_attention(self._heads(self.q_proj(tokens)), key, value, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
