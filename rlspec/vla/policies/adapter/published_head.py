"""The action heads of VLA-Adapter and VLA-Adapter-Pro as published (arXiv 2509.09372 and its code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.vla.policies.backbone.backbone import Hidden
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig

HEADS = 8
NOISE = 0.02
ROPE_BASE = 10_000.0


class PublishedHead(nn.Module):
    """Empty tokens of a chunk's steps become actions, through one block for each of the backbone's layers.

    In training a Gaussian disturbance, drawn anew in every pass and shared by the batch, is added to the empty tokens.
    Where the published code reads all of a fixed number of tokens, padding is left out here.
    """

    def __init__(self, config: BackbonePolicyConfig, layers: list[int], width: int, actions: int, *, pro: bool) -> None:
        super().__init__()
        if width % HEADS or (width // HEADS) % 2:
            raise ConfigError(
                f"{config.type}: a published head is as wide as the backbone, a multiple of 16; it has {width}"
            )
        self.layers = layers
        self.chunk_size = config.chunk_size
        self.layer_norm1 = nn.LayerNorm(actions * width)
        self.fc1 = nn.Linear(actions * width, width)
        block = ProBlock if pro else SharedBlock
        self.mlp_resnet_blocks = nn.ModuleList(block(width) for _ in layers)
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, actions)

    def forward(self, hidden: Hidden, proprio: Tensor | None) -> Tensor:
        """Actions (B, chunk, A)."""
        reference = hidden.queries[0]
        empty = reference.new_zeros(len(reference), self.chunk_size, self.fc1.in_features)
        if self.training:
            empty = empty + NOISE * torch.randn_like(empty[0])
        tokens = torch.relu(self.fc1(self.layer_norm1(empty)))
        for block, layer in zip(self.mlp_resnet_blocks, self.layers, strict=True):
            queries = hidden.queries[layer]
            adapter = queries if proprio is None else torch.cat([queries, proprio.to(queries.dtype)], 1)
            tokens = block(tokens, hidden.task[layer], hidden.mask, adapter)
        return self.fc2(self.layer_norm2(tokens))


class PublishedBlock(nn.Module):
    """Attention over the chunk, the action queries and the task, then a feed-forward layer without a way around it.

    The gate tanh(g), 0 at the start, multiplies the *logits* of the task's tokens: a closed gate weighs all of them
    alike instead of leaving them out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())
        self.q_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.gating_factor = nn.Parameter(torch.zeros(1))

    def keys_and_values(self, tokens: Tensor, adapter: Tensor, task: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of the chunk's tokens, the queries with proprioception, and the task, each (B, heads, L, head)."""
        raise NotImplementedError

    def queries(self, tokens: Tensor) -> Tensor:
        """(B, heads, T, head)."""
        return self.split(self.q_proj(tokens))

    def forward(self, tokens: Tensor, task: Tensor, mask: Tensor, adapter: Tensor) -> Tensor:
        """Tokens (B, T, D) to the same, with task (B, L, D), of which `mask` (B, L) counts, and adapter (B, Q, D)."""
        keys, values = self.keys_and_values(tokens, adapter, task)
        query = self.queries(tokens)
        logits = [query @ key.transpose(-2, -1) for key in keys]
        logits[-1] = (logits[-1] * torch.tanh(self.gating_factor)).masked_fill(~mask[:, None, None], float("-inf"))
        weights = torch.softmax(torch.cat(logits, -1) / math.sqrt(query.shape[-1]), dim=-1)
        mixed = (weights @ torch.cat(values, 2)).transpose(1, 2).flatten(2)
        return self.ffn(self.o_proj(mixed) + tokens)

    def split(self, tokens: Tensor) -> Tensor:
        """(B, L, D) to (B, heads, L, head)."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SharedBlock(PublishedBlock):
    """VLA-Adapter's: one projection for the keys of all three, one for their values."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)

    def keys_and_values(self, tokens: Tensor, adapter: Tensor, task: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """As the parent."""
        sources = (tokens, adapter, task)
        return [self.split(self.k_proj(each)) for each in sources], [self.split(self.v_proj(each)) for each in sources]


class ProBlock(PublishedBlock):
    """VLA-Adapter-Pro's: projections for each, and rotary positions that count from 0 in each.

    The published rotation turns neighbouring channels by angles that belong to halves; it is kept. Its FiLM layer,
    which nothing uses, is left out.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        for name in ("k_self", "v_self", "k_adapter", "v_adapter", "k_task", "v_task"):
            setattr(self, name, nn.Linear(width, width))

    def queries(self, tokens: Tensor) -> Tensor:
        """As the parent, turned."""
        return turned(super().queries(tokens))

    def keys_and_values(self, tokens: Tensor, adapter: Tensor, task: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """As the parent, keys turned."""
        sources = {"self": tokens, "adapter": adapter, "task": task}
        keys = [turned(self.split(getattr(self, f"k_{name}")(each))) for name, each in sources.items()]
        return keys, [self.split(getattr(self, f"v_{name}")(each)) for name, each in sources.items()]


def turned(tokens: Tensor) -> Tensor:
    """Rotary positions of (B, heads, L, head), from 0, as VLA-Adapter-Pro has them."""
    length, size = tokens.shape[-2:]
    rates = ROPE_BASE ** (-torch.arange(0, size, 2, device=tokens.device, dtype=torch.float32) / size)
    angles = torch.arange(length, device=tokens.device, dtype=torch.float32)[:, None] * rates
    angles = torch.cat([angles, angles], -1)
    pairs = torch.stack((-tokens[..., 1::2], tokens[..., ::2]), -1).reshape_as(tokens)
    return tokens * angles.cos().to(tokens.dtype) + pairs * angles.sin().to(tokens.dtype)
