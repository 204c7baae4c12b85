"""What happens to the spectrum: stages on batches of matrices, normalised first.

A filter leaves its pass energy in `Step.energy`, `||X||_F^2` per block in float32: the number of singular directions
that pass. Zero means that the block gets no update.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from rlspec.errors import ConfigError, nearest
from rlspec.optim.composition import Step, stage
from rlspec.optim.kernels.blocks import norm, widened
from rlspec.optim.kernels.gram import short_gram
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import NORMALISERS, stable_rank
from rlspec.optim.kernels.schedules import LOW_PASS, PROMOTION, SCHEDULES, SUPPRESSION, high_pass_schedule, transfer
from rlspec.optim.stages.scale import check_whole


def pass_energy(blocks: Tensor) -> Tensor:
    """Squared Frobenius norm per block, in float32 or wider: (batch, rows, cols) -> (batch,)."""
    return norm(blocks).flatten().square()


@stage()
def normalise(blocks: Tensor, step: Step, *, normalise: str) -> Tensor:
    """Bring the singular values into [0, 1], in the arithmetic type of the iterations."""
    step.normalised = NORMALISERS[normalise](blocks, step.compute_dtype)
    return step.normalised


def check_schedule(schedule: str, **_: object) -> None:
    """Raises ConfigError on a name that is not in `SCHEDULES`."""
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule={schedule!r}; {nearest(schedule, SCHEDULES)}")


@stage(check=check_schedule, iterates=True, bounded=True)
def polar(blocks: Tensor, step: Step, *, ns_steps: int, schedule: str = "keller") -> Tensor:
    """Map every singular value towards 1 (Muon): the polar factor as far as the schedule converges."""
    method = "torch" if step.settings.get("normalise") == "torch" else "auto"
    filtered = newton_schulz(blocks, SCHEDULES[schedule](ns_steps), method=method)
    step.energy = pass_energy(filtered)
    return filtered


def _check_high_pass(promotion_steps: float | str, ns_steps: int) -> None:
    if promotion_steps == "auto":
        return
    number = isinstance(promotion_steps, int | float) and not isinstance(promotion_steps, bool)
    if not number or not 0 <= promotion_steps <= ns_steps:  # type: ignore[operator]
        raise ConfigError(
            f"promotion_steps={promotion_steps!r}: must be 'auto' or a number from 0 to ns_steps={ns_steps}"
        )


@stage(check=_check_high_pass, iterates=True, bounded=True)
def high_pass(blocks: Tensor, step: Step, *, promotion_steps: float | Literal["auto"], ns_steps: int) -> Tensor:
    """Pion's gate: singular values above a threshold go to 1, those below to 0 (arXiv 2605.19282).

    `promotion_steps` is k_p in [0, ns_steps]: k_p = 0 passes at most one direction, k_p = ns_steps all of them, and
    fractions lie between (`high_pass_schedule`). `auto` takes, for each block, the smallest whole k_p whose gate lets
    at least its top direction pass, from the block's measured stable rank.
    """
    if promotion_steps == "auto":
        gram = short_gram(blocks)
        filtered = newton_schulz(blocks, auto_schedule(blocks, ns_steps, gram), gram=gram)
    else:
        filtered = newton_schulz(blocks, high_pass_schedule(promotion_steps, ns_steps))
    step.energy = pass_energy(filtered)
    return filtered


@stage(iterates=True, bounded=True)
def low_pass(blocks: Tensor, step: Step) -> Tensor:
    """The control of Pion's paper, LPMuon: singular values below 1/2 go to 1, those above to 0; it should not learn.

    Always five iterations, see `rlspec.optim.kernels.schedules.LOW_PASS`.
    """
    filtered = newton_schulz(blocks, LOW_PASS)
    step.energy = pass_energy(filtered)
    return filtered


@stage(check=lambda rank: check_whole("rank", rank), bounded=True)
def low_rank(blocks: Tensor, step: Step, *, rank: int = 128) -> Tensor:
    """The exact control of Pion's paper, LRMuon: `U_k V_k^T` of the k = rank largest singular values.

    By definition an SVD in float32 (float64 for float64), some fifteen times slower than iterations. Directions without
    a singular value, those below rounding (max(rows, cols) eps s_1), are left out, so a block of zeros stays one.
    """
    work = widened(blocks)
    u, s, vh = torch.linalg.svd(work, full_matrices=False)
    floor = max(blocks.shape[1:]) * torch.finfo(work.dtype).eps * s.amax(1, keepdim=True) if s.numel() else s
    keep = ((s > floor) & (torch.arange(s.shape[1], device=s.device) < rank)).to(work.dtype)
    filtered = torch.bmm(u * keep[:, None, :], vh)
    step.energy = keep.sum(1)
    return filtered


@cache
def gate_threshold(promotion_steps: float) -> float:
    """Smallest normalised singular value that passes k_p promotion steps and then many suppression steps.

    It is the pre-image of sqrt(2/3), the repelling fixed point of f_s, under f_p applied k_p times: 0.8165, 0.5230,
    0.2957, 0.1605, 0.0860, ...; for a fraction under p_a after them.
    """
    opening = high_pass_schedule(promotion_steps, math.ceil(promotion_steps))
    low, high = 0.0, 1.0
    while high - low > 1e-15:
        middle = (low + high) / 2
        x = transfer(torch.tensor(middle, dtype=torch.float64), opening).item()
        low, high = (low, middle) if x > (2 / 3) ** 0.5 else (middle, high)
    return high


def auto_promotion_steps(blocks: Tensor, ns_steps: int = 5, gram: Tensor | None = None) -> Tensor:
    """Smallest k_p per block whose gate lets the top direction pass: s_1 / ||M||_F above `gate_threshold(k_p)`.

    No host synchronisation. The measured stable rank is never too small, so the choice errs towards a more open gate.

    Args:
        blocks: (batch, rows, cols) with unit Frobenius norm.
        ns_steps: iterations in all; k_p = ns_steps, which has no gate, is chosen when every gate is shut.
        gram: `short_gram(blocks)`, if it is known already.

    Returns:
        (batch,) integers in [0, ns_steps].
    """
    rank = stable_rank(blocks, gram)
    shut = [rank >= gate_threshold(k) ** -2 for k in range(ns_steps)]
    return torch.stack(shut).sum(0) if shut else torch.zeros_like(rank, dtype=torch.long)


def auto_schedule(blocks: Tensor, ns_steps: int, gram: Tensor | None = None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Coefficients (batch, 1, 1) per step: for each block its own `auto_promotion_steps`, then suppression."""
    promotion_steps = auto_promotion_steps(blocks, ns_steps, gram)
    steps = []
    for step in range(ns_steps):
        promote = (promotion_steps > step)[:, None, None]
        a, b, c = (torch.where(promote, p, s).to(blocks.dtype) for p, s in zip(PROMOTION, SUPPRESSION, strict=True))
        steps.append((a, b, c))
    return steps
