"""What reinforcement learning of language models and of robots' policies share: advantages of groups, and clipping."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]


def group_advantages(rewards: Tensor, *, scale: Scale = "group", epsilon: float = 0.0) -> Tensor:
    """How much better than its group each sample did; zeros where all did alike.

    Args:
        rewards: (..., samples), a group in each row. NaN: a sample that does not count, whose advantage is 0.
        scale: over the standard deviation of the group (GRPO, arXiv 2402.03300) or of the batch, or the difference to
            the group's mean alone (Dr. GRPO, arXiv 2503.20783).
        epsilon: added to the standard deviation; TRL adds 1e-4.
    """
    values = rewards.double()
    counted = ~values.isnan()
    centred = torch.where(counted, values - values.nanmean(-1, keepdim=True), 0.0)
    most, least = (torch.where(counted, values, end) for end in (-math.inf, math.inf))
    differ = most.amax(-1, keepdim=True) > least.amin(-1, keepdim=True)
    if scale == "group":
        counts = counted.sum(-1, keepdim=True)
        centred = centred / ((centred.square().sum(-1, keepdim=True) / (counts - 1)).sqrt() + epsilon)
    elif scale == "batch":
        centred = centred / (values[counted].std() + epsilon)
    return torch.where(differ, centred, 0.0).to(rewards.dtype)


def bound_log_ratio(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Log ratios stopped on the side that the advantage's sign would exploit, and which of them were.

    Args:
        log_ratio: log pi - log pi_old, any shape.
        advantages: broadcast against it.
        low: where a negative advantage stops, as a log ratio below 0.
        high: where a positive one stops, above 0.

    Returns:
        bounded log ratios, and (bool) where the bound holds, so that no gradient passes.
    """
    gains, loses = advantages > 0, advantages < 0
    bounded = torch.where(gains, log_ratio.clamp(max=high), log_ratio.clamp(min=low))
    return bounded, (gains & (log_ratio > high)) | (loses & (log_ratio < low))


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective, to be minimised, and (bool) what was clipped: `-min(r A, clip(r, 1 - low, 1 + high) A)`.

    Args:
        log_ratio: log pi - log pi_old.
        advantages: of the same shape, no gradient.
        clip_low: in (0, 1).
        clip_high: above 0; larger than `clip_low` lets what is rare become likelier (DAPO, arXiv 2503.14476).
    """
    bounded, clipped = bound_log_ratio(log_ratio, advantages, math.log1p(-clip_low), math.log1p(clip_high))
    return -advantages * bounded.exp(), clipped


def approx_kl(log_ratio: Tensor) -> Tensor:
    """Each sample's part of KL(pi_old || pi), never negative: `r - 1 - log r` (k3)."""
    return log_ratio.exp() - 1 - log_ratio
