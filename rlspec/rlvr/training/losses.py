"""The GMPO objective as a pure function. GRPO's is TRL's own, see `trl.GRPOTrainer`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlspec.policy_gradient import bound_log_ratio


@dataclass(frozen=True)
class GmpoTerms:
    """Result of `gmpo_loss`; B sequences of L tokens."""

    loss: Tensor  # scalar: mean over the B sequences
    log_ratio: Tensor  # (B, L) log pi - log pi_old, not clipped
    clipped: Tensor  # (B, L) bool: tokens whose ratio the clip stopped, padding excluded


def gmpo_loss(
    per_token_logps: Tensor,
    old_per_token_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    epsilon_low: float = 0.4,
    epsilon_high: float = 0.4,
    sampling_ratio: Tensor | None = None,
) -> GmpoTerms:
    """Minus the advantage times the geometric mean of clipped token ratios (arXiv:2507.20673, eq. 4).

    Clipping acts on log ratios, so 0.4 bounds a token's ratio by exp(+-0.4), and only on the side that the advantage's
    sign would exploit: from above where it is positive, from below where it is negative.

    Args:
        per_token_logps: (B, L) log-probabilities under the policy being trained.
        old_per_token_logps: (B, L) the same under the policy that the block of rollouts started from, no gradient.
        advantages: (B,).
        mask: (B, L), 1 for completion tokens that count. A sequence without any contributes 0.
        epsilon_low: Clip of log ratios from below, above 0.
        epsilon_high: Clip of log ratios from above, above 0.
        sampling_ratio: Correction for a rollout engine whose probabilities differ from the trainer's, pi_old / engine
            per token (B, L), or per sequence (B, 1) as the product over its tokens. Both enter as the geometric mean
            over tokens, like the policy's own ratio; a ratio of 0 (masked by the caller) removes the sequence.
    """
    mask = mask.to(per_token_logps.dtype)
    lengths = mask.sum(-1).clamp(min=1.0)  # (B,)
    log_ratio = per_token_logps - old_per_token_logps
    bounded, clipped = bound_log_ratio(log_ratio, advantages.unsqueeze(-1), -epsilon_low, epsilon_high)
    coefficient = torch.exp((bounded * mask).sum(-1) / lengths)  # (B,)
    if sampling_ratio is not None:
        coefficient = coefficient * geometric_mean_ratio(sampling_ratio, mask)
    loss = (-advantages * coefficient * (mask.sum(-1) > 0)).mean()
    return GmpoTerms(loss=loss, log_ratio=log_ratio.detach(), clipped=clipped & mask.bool())


def geometric_mean_ratio(ratio: Tensor, mask: Tensor) -> Tensor:
    """Geometric mean over a sequence's tokens of (B, L) ratios, or of a (B, 1) product of them; (B,), detached."""
    lengths = mask.sum(-1).clamp(min=1.0)
    log_ratio = ratio.detach().log()  # -inf where the caller masked a ratio to 0
    total = log_ratio.squeeze(-1) if ratio.shape[-1] == 1 else log_ratio.masked_fill(mask == 0, 0.0).sum(-1)
    return torch.exp(total / lengths)
