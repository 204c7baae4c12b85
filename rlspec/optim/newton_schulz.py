"""Newton-Schulz iterations on batches of matrices, and the coefficient schedules that shape their spectrum.

An iteration step `X <- a X + (b A + c A A) X`, `A = X X^T`, acts on every singular value alone:
`x -> a x + b x^3 + c x^5`. A schedule of steps is therefore a function of the spectrum; `transfer` evaluates it on
singular values directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]
Schedule = tuple[Coefficients, ...]

KELLER: Coefficients = (3.4445, -4.7750, 2.0315)
"""Keller Jordan's quintic, also of torch.optim.Muon: five steps map [0.01, 1] into [0.68, 1.14]."""

PROMOTION: Coefficients = (15 / 8, -10 / 8, 3 / 8)
"""Pion's f_p: f(1) = 1, f'(1) = 0, monotone on [0, 1], the largest such slope at 0 (arXiv 2605.19282)."""

SUPPRESSION: Coefficients = (0.0, 5 / 2, -3 / 2)
"""Pion's f_s: f(1) = 1, f'(1) = f'(0) = 0; repelling fixed point sqrt(2/3), below it everything decays to 0."""

_POLAR_EXPRESS: Schedule = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)


def keller(steps: int = 5) -> Schedule:
    """Repeat Keller Jordan's coefficients (https://kellerjordan.github.io/posts/muon/)."""
    return (KELLER,) * steps


def polar_express(steps: int = 5, safety: float = 1.05) -> Schedule:
    """Optimal composition of quintics (Polar Express, arXiv 2505.16932), ended by its limit, `PROMOTION`.

    Args:
        steps: number of iterations.
        safety: the argument of all but the last step is divided by it, so that rounding in bf16 cannot push a singular
            value beyond the interval on which the polynomial was fitted; 1 gives the coefficients as published.
    """
    raw = (_POLAR_EXPRESS + (PROMOTION,) * steps)[:steps]
    damped = tuple((a / safety, b / safety**3, c / safety**5) for a, b, c in raw[:-1])
    return damped + raw[-1:]


def high_pass_schedule(promotion_steps: int, steps: int = 5) -> Schedule:
    """Pion: `promotion_steps` (k_p) times f_p, then f_s for the rest."""
    return (PROMOTION,) * promotion_steps + (SUPPRESSION,) * (steps - promotion_steps)


def transfer(singular_values: Tensor, schedule: Schedule) -> Tensor:
    """Evaluate a schedule on normalised singular values, elementwise; the exact answer an iteration approximates."""
    x = singular_values
    for a, b, c in schedule:
        x = a * x + b * x**3 + c * x**5
    return x


def newton_schulz(blocks: Tensor, schedule: Sequence[tuple[float | Tensor, float | Tensor, float | Tensor]]) -> Tensor:
    """Run a schedule on matrices whose singular values lie in [0, 1].

    Args:
        blocks: (batch, rows, cols), normalised, of the dtype to compute in; never mutated.
        schedule: coefficients per step; a coefficient may be a tensor (batch, 1, 1) that differs between blocks.

    Returns:
        (batch, rows, cols): the same singular vectors, every singular value mapped by the schedule.
    """
    tall = blocks.shape[-2] > blocks.shape[-1]
    x = blocks.mT if tall else blocks
    for coefficients in schedule:
        x = _step(x, *coefficients)
    return x.mT if tall else x


def _step(x: Tensor, a: float | Tensor, b: float | Tensor, c: float | Tensor) -> Tensor:
    gram = torch.bmm(x, x.mT)
    if isinstance(a, Tensor) or isinstance(b, Tensor) or isinstance(c, Tensor):
        return a * x + torch.bmm(b * gram + c * torch.bmm(gram, gram), x)
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    if a == 0.0:
        return torch.bmm(polynomial, x)
    return torch.baddbmm(x, polynomial, x, beta=a)


def frobenius(blocks: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Divide every block by its Frobenius norm, then cast.

    The norm is taken in float32 or wider, of the block divided by its largest entry, so entries from 1e-20 to 1e20
    neither underflow nor overflow, and nothing is added to it: an epsilon of 1e-7 would close Pion's gate on RLVR
    gradients.

    Args:
        blocks: (batch, rows, cols), finite; never mutated.
        compute_dtype: dtype of the result.

    Returns:
        (batch, rows, cols) with unit Frobenius norm; an all-zero block stays zero.
    """
    work = blocks.to(torch.promote_types(torch.promote_types(blocks.dtype, compute_dtype), torch.float32))
    # The infinity norm as two reductions: torch's own is twenty times slower on the CPU.
    peak = torch.maximum(work.amax((1, 2), keepdim=True), -work.amin((1, 2), keepdim=True))
    scaled = work / peak.clamp(min=torch.finfo(work.dtype).tiny)
    norm = torch.linalg.vector_norm(scaled, dim=(1, 2), keepdim=True)
    return (scaled / torch.where(norm > 0, norm, 1.0)).to(compute_dtype)


def frobenius_after_cast(blocks: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Cast, then divide by the Frobenius norm clamped at 1e-7, exactly as torch.optim.Muon does.

    Here for bitwise parity with it (`normalise="torch"`, `compute_dtype="bfloat16"`); blocks of norm below 1e-7 shrink.
    """
    cast = blocks.to(compute_dtype)
    norms = torch.stack([block.norm() for block in cast]).clamp(min=1e-7)
    return cast / norms[:, None, None]


NORMALISERS = {"frobenius": frobenius, "torch": frobenius_after_cast}
"""What a singular value is measured against: name -> function(blocks, compute_dtype)."""


def stable_rank(blocks: Tensor) -> Tensor:
    """Squared Frobenius norm over squared largest singular value, per block.

    The largest singular value comes from 16 implicit power iterations (three squarings of the Gram matrix, then a
    Rayleigh quotient): never overestimated, so the result is never too small; exact when all nonzero ones are equal.

    Args:
        blocks: (batch, rows, cols), normalised; computed in float32 or wider.

    Returns:
        (batch,), at least 1; 0 for an all-zero block.
    """
    work = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
    x = work.mT if work.shape[-2] > work.shape[-1] else work
    gram = torch.bmm(x, x.mT)
    power = gram
    for _ in range(3):
        norm = torch.linalg.vector_norm(power, dim=(1, 2), keepdim=True)
        power = power / torch.where(norm > 0, norm, 1.0)
        power = torch.bmm(power, power)
    top = (power * torch.bmm(power, gram)).sum((1, 2)) / power.square().sum((1, 2))
    energy = gram.diagonal(dim1=1, dim2=2).sum(1)
    return torch.where(energy > 0, energy / top, 0.0)
