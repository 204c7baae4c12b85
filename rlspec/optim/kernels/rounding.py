"""Stochastic rounding to bfloat16: right on average, so that small changes are not lost in a state of 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor


def stochastic_round(values: Tensor, seed: int) -> Tensor:
    """Round float32 to bfloat16, up or down with probabilities that make the expectation exact.

    Adds 16 random bits below bfloat16's last one and cuts them off. The same seed gives the same bits, so a resumed run
    continues exactly. NaN and Inf stay what they are.

    Args:
        values: float32, any shape.
        seed: of the random bits.

    Returns:
        bfloat16 of the same shape.
    """
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randint(0, 1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    bits = (values.contiguous().view(torch.int32) + noise) & -(1 << 16)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(torch.bfloat16)
