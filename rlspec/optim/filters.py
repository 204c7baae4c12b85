"""What happens to the spectrum: pure functions on batches of normalised matrices.

A filter maps (batch, rows, cols) to the filtered blocks and their pass energy, `||X||_F^2` per block in float32: the
number of singular directions that pass. Zero means that the block gets no update.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.newton_schulz import (
    PROMOTION,
    SUPPRESSION,
    Schedule,
    high_pass_schedule,
    newton_schulz,
    stable_rank,
)

Filter = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(batch, rows, cols) -> filtered (batch, rows, cols), pass energy (batch,)."""


def pass_energy(blocks: Tensor) -> Tensor:
    """Squared Frobenius norm per block, in float32 or wider: (batch, rows, cols) -> (batch,)."""
    dtype = torch.promote_types(blocks.dtype, torch.float32)
    return torch.linalg.vector_norm(blocks, dim=(1, 2), dtype=dtype).square()


def identity() -> Filter:
    """Leave the normalised blocks as they are; one direction's worth of energy."""
    return lambda blocks: (blocks, pass_energy(blocks))


def polar(schedule: Schedule) -> Filter:
    """Map every singular value towards 1 (Muon): the polar factor as far as the schedule converges."""
    return partial(_filtered, schedule=schedule)


def high_pass(promotion_steps: int | Literal["auto"], ns_steps: int = 5) -> Filter:
    """Pion's gate: singular values above a threshold go to 1, those below to 0 (arXiv 2605.19282).

    Args:
        promotion_steps: k_p in [0, ns_steps]; k_p = 0 passes at most one direction, k_p = ns_steps all of them. `auto`
            takes, for each block, the smallest k_p whose gate lets at least its top direction pass, from the block's
            measured stable rank.
        ns_steps: iterations in all, promotion and suppression together.

    Raises:
        ConfigError: if k_p is outside that range.
    """
    if promotion_steps == "auto":
        return partial(_auto_high_pass, ns_steps=ns_steps)
    if (
        isinstance(promotion_steps, bool)
        or not isinstance(promotion_steps, int)
        or not 0 <= promotion_steps <= ns_steps
    ):
        raise ConfigError(
            f"promotion_steps={promotion_steps!r}: must be 'auto' or an integer from 0 to ns_steps={ns_steps}"
        )
    return polar(high_pass_schedule(promotion_steps, ns_steps))


def _filtered(blocks: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    filtered = newton_schulz(blocks, schedule)
    return filtered, pass_energy(filtered)


@cache
def gate_threshold(promotion_steps: int) -> float:
    """Smallest normalised singular value that passes k_p promotion steps and then many suppression steps.

    It is the pre-image of sqrt(2/3), the repelling fixed point of f_s, under f_p applied k_p times: 0.8165, 0.5230,
    0.2957, 0.1605, 0.0860, ...
    """
    a, b, c = PROMOTION
    low, high = 0.0, 1.0
    while high - low > 1e-15:
        middle = x = (low + high) / 2
        for _ in range(promotion_steps):
            x = a * x + b * x**3 + c * x**5
        low, high = (low, middle) if x > (2 / 3) ** 0.5 else (middle, high)
    return high


def auto_promotion_steps(blocks: Tensor, ns_steps: int = 5) -> Tensor:
    """Smallest k_p per block whose gate lets the top direction pass: s_1 / ||M||_F above `gate_threshold(k_p)`.

    No host synchronisation. The measured stable rank is never too small, so the choice errs towards a more open gate.

    Args:
        blocks: (batch, rows, cols) with unit Frobenius norm.
        ns_steps: iterations in all; k_p = ns_steps, which has no gate, is chosen when every gate is shut.

    Returns:
        (batch,) integers in [0, ns_steps].
    """
    limits = [gate_threshold(k) ** -2 for k in range(ns_steps)]
    rank = stable_rank(blocks)
    return (rank[:, None] >= torch.tensor(limits, dtype=rank.dtype, device=rank.device)).sum(1)


def _auto_high_pass(blocks: Tensor, ns_steps: int) -> tuple[Tensor, Tensor]:
    promotion_steps = auto_promotion_steps(blocks, ns_steps)
    steps = []
    for step in range(ns_steps):
        promote = (promotion_steps > step)[:, None, None]
        steps.append(
            tuple(torch.where(promote, p, s).to(blocks.dtype) for p, s in zip(PROMOTION, SUPPRESSION, strict=True))
        )
    filtered = newton_schulz(blocks, steps)  # type: ignore[arg-type]
    return filtered, pass_energy(filtered)
