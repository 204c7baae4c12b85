"""Small parameters and gradients for every rule of the table, the same on every device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlspec.optim import RULES, SpectralOptimizer

HEADS = 4


def is_pair(rule: str) -> bool:
    return RULES[rule].pair is not None


def parameters(
    rule: str, device: str, dtype: torch.dtype = torch.float32, shape: tuple[int, int] = (96, 160)
) -> list[nn.Parameter]:
    """Matrices of that shape and its transpose, or LoRA pairs of rank 8 around it; drawn on the CPU."""
    rows, cols = shape
    shapes = ((8, cols), (rows, 8), (8, rows), (cols, 8)) if is_pair(rule) else (shape, (cols, rows), shape)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(each, generator=generator) * 0.02 for each in shapes]
    return [nn.Parameter(value.to(device=device, dtype=dtype)) for value in values]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    """Gradients of RLVR's size whose spectrum decays, so that every gate lets something pass."""
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        decay = 0.5 ** (torch.arange(param.shape[-1]) * (8.0 / param.shape[-1]))
        gradient = torch.randn(param.shape, generator=generator) * decay * 1e-6
        param.grad = gradient.to(device=param.device, dtype=param.dtype)


def optimizer_of(rule: str, params: list[nn.Parameter], **settings: Any) -> SpectralOptimizer:
    heads = {} if is_pair(rule) or not RULES[rule].spectral else {"num_heads": HEADS}
    chosen: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "promotion_steps": "auto", **heads} | settings
    return SpectralOptimizer(params, rule=rule, **chosen)
