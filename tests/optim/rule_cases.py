"""What the batteries over every rule share: parameters and gradients that fit a rule, and one way to run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from rlspec.optim import RULES, SpectralOptimizer

NAMES = [name for name in RULES]
PAIRS = [name for name, rule in RULES.items() if rule.kind == "pair"]
ALONE = [name for name, rule in RULES.items() if rule.kind != "pair" and rule.kernel is None]
"""Compositions on one parameter at a time: rules of matrices, and elementwise ones, which take a matrix whole."""
AS_LONG_AS_THE_GRADIENT = [name for name, rule in RULES.items() if rule.length == "gradient"]
every_rule = pytest.mark.parametrize("rule", NAMES)
every_rule_alone = pytest.mark.parametrize("rule", ALONE)
in_both_arithmetics = pytest.mark.usefixtures("arithmetic")

ADAPTIVE_DECAY = ("namo", "namo_d")
"""Rules whose weight decay follows their adaptive learning rate, by their paper."""


def spanning(firsts: Sequence[Any], seconds: Sequence[Any], each: int = 2) -> list[Any]:
    """Cases of every first with every second when slow; by default every first with `each` of the seconds, in turn."""
    slow = pytest.mark.slow
    return [
        pytest.param(
            *(value for part in (first, second) for value in (part if isinstance(part, tuple) else (part,))),
            marks=[] if (i + j) % len(seconds) < each else [slow],
        )
        for i, first in enumerate(firsts)
        for j, second in enumerate(seconds)
    ]


def shapes_for(rule: str) -> tuple[tuple[int, ...], ...]:
    """A wide and a tall matrix, or two LoRA pairs of rank 3."""
    return ((3, 9), (6, 3), (3, 9), (6, 3)) if rule in PAIRS else ((6, 9), (9, 6), (6, 9))


def matrices(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def params_for(rule: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return matrices(*shapes_for(rule), dtype=dtype)


def set_gradients(params: list[nn.Parameter], seed: int = 1, scale: float = 1.0, decay: float = 0.3) -> None:
    """Low stable rank, so that every gate lets something pass."""
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        gradient = torch.randn(param.shape, generator=generator)
        if param.ndim > 1:
            gradient = gradient * decay ** torch.arange(param.shape[-1])
        param.grad = (gradient * scale).to(param.dtype)


def train(
    rule: str, params: list[nn.Parameter], steps: int = 3, scale: float = 1.0, decay: float = 0.3, **settings
) -> SpectralOptimizer:
    """Run a few steps on gradients that depend on the step alone."""
    optimizer = SpectralOptimizer(params, rule=rule, **({"lr": 0.1} | settings))
    for step in range(steps):
        set_gradients(params, seed=step + 1, scale=scale, decay=decay)
        optimizer.step()
    return optimizer


def change(rule: str, params: list[nn.Parameter], **settings) -> list[torch.Tensor]:
    """What one step with lr 1 on the gradients that are there changes."""
    before = [param.detach().clone() for param in params]
    SpectralOptimizer(params, rule=rule, **({"lr": 1.0} | settings)).step()
    return [param.detach() - old for param, old in zip(params, before, strict=True)]


def same_bits(one: list[nn.Parameter], other: list[nn.Parameter]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
