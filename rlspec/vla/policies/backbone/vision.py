"""A small vision tower that learns where things are within minutes on a CPU."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRID = 16
"""Cells per side that the tower returns."""


class ConvTower(nn.Module):
    """Convolutions down to 16 x 16 cells that know their places.

    The first convolution has the stride that leaves 32 x 32 cells, so images of 64, 96 and 128 pixels cost the same.

    Args:
        image_size: pixels per side, a multiple of 32.
        channels: of the first stage and of the cells.
        norm: over each image, "layer" of all channels together or "instance" of each by itself.
    """

    def __init__(self, image_size: int, channels: tuple[int, int], norm: str = "layer") -> None:
        super().__init__()
        stride = image_size // 32
        first, width = channels
        self.hidden_size = width
        group = partial(_group_norm, norm == "instance")
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 2 * stride + 1, stride, stride), group(first), nn.GELU(),
            nn.Conv2d(first, width, 3, 2, 1), group(width), nn.GELU(),
            nn.Conv2d(width, width, 3, 1, 1), group(width), nn.GELU(),
        )  # fmt: skip
        self.pos_embed = nn.Parameter(grid_positions(GRID, width))

    def forward(self, images: Tensor) -> Tensor:
        """Cells (N, 256, width) of images (N, 3, image_size, image_size) in [-1, 1]."""
        cells = self.stem(images.contiguous(memory_format=torch.channels_last))
        return cells.flatten(2).transpose(1, 2) + self.pos_embed


def _group_norm(each: bool, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels if each else 1, channels)


class WordResampler(nn.Module):
    """Learnt slots and the words of the instruction look at the cells of every camera.

    A word that names a thing finds its place in one product of word and cell, before the language model begins; with
    the cells themselves as tokens the decoder would cost several times as much.

    Args:
        cells: width of the tower's cells.
        width: of the words and of the tokens that come out.
        num_heads: of the attention.
        slots: tokens per camera besides the words.
        cameras: number of images per sample.
    """

    def __init__(self, cells: int, width: int, num_heads: int, slots: int, cameras: int) -> None:
        super().__init__()
        self.num_heads, self.slots = num_heads, slots
        self.probe = nn.Parameter(torch.randn(slots, width))
        self.temperature = nn.Parameter(torch.full((1,), 4.0))
        self.norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(cells, width)
        self.v_proj = nn.Linear(cells, width)
        self.o_proj = nn.Linear(width, width)
        self.cameras = nn.ModuleList(nn.Linear(width, width) for _ in range(cameras))

    def forward(self, cells: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Look at the cells.

        Args:
            cells: (B, cameras, P, cells).
            words: (B, W, width).

        Returns:
            Tokens (B, cameras * slots, width), and words (B, W, width) with what they found.
        """
        looking = torch.cat([self.probe.to(words.dtype).expand(len(words), -1, -1), words], 1)
        query = self._heads(self.q_proj(self.norm(looking)))[:, None]
        key, value = self._heads(self.k_proj(cells)), self._heads(self.v_proj(cells))
        # Of unit length, times a temperature: from the start every query prefers some cells; plain products are flat.
        query = F.rms_norm(query, query.shape[-1:]) * self.temperature
        key = F.rms_norm(key, key.shape[-1:])
        query = query.expand(-1, key.shape[1], -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
        found = self.o_proj(mixed.transpose(1, 2).flatten(2)).unflatten(0, cells.shape[:2])
        views = [camera(view) for camera, view in zip(self.cameras, found.unbind(1), strict=True)]
        tokens = torch.cat([view[:, : self.slots] for view in views], 1)
        evidence = torch.stack([view[:, self.slots :] for view in views]).sum(0)
        return tokens, words + evidence

    def _heads(self, tokens: Tensor) -> Tensor:
        """(..., L, width) to (..., heads, L, head)."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)


class Mlp(nn.Module):
    """Two linear layers with GELU."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) to (..., out)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


def grid_positions(grid: int, width: int) -> Tensor:
    """Sines and cosines of both coordinates, (grid * grid, width): a start from which places are told apart at once."""
    half = width // 4
    # With its device: transformers replaces linspace while it loads, and a process may never see the real one again.
    steps = torch.linspace(-1, math.log2(grid / 2), half, device=torch.get_default_device())
    frequencies = math.pi * 2**steps
    cells = (torch.arange(grid) + 0.5) / grid
    waves = cells[:, None] * frequencies
    axis = torch.cat([waves.sin(), waves.cos()], 1)
    rows = axis[:, None].expand(grid, grid, 2 * half)
    columns = axis[None].expand(grid, grid, 2 * half)
    both = torch.cat([rows, columns], -1).flatten(0, 1)
    return F.pad(both, (0, width - both.shape[1]))
