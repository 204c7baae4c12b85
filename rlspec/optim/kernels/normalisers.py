"""What a singular value is measured against: normalisers, and the stable rank.

All but `none` divide by a norm of the block, one of extreme size divided by its largest entry first, so that entries
from 1e-20 to 1e20 neither underflow nor overflow, and add nothing to it: an epsilon of 1e-7 would close Pion's gate on
RLVR gradients. A block of zeros stays one. Inputs are never mutated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlspec.optim.kernels.blocks import flush_, nonzero, norm
from rlspec.optim.kernels.gram import short_gram, symmetric_product

_SAFETY = 1.02
_SMALL, _LARGE = 1e-15, 1e15
"""Frobenius norms between which the squares of all entries that matter are normal numbers of float32."""


def frobenius(blocks: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Divide every block by its Frobenius norm, in float32 or wider, then cast.

    Args:
        blocks: (batch, rows, cols), finite.
        compute_dtype: dtype of the result.

    Returns:
        (batch, rows, cols) with unit Frobenius norm.
    """
    work = blocks.to(torch.promote_types(torch.promote_types(blocks.dtype, compute_dtype), torch.float32))
    size = norm(work)
    extreme = ~((size > _SMALL) & (size < _LARGE))
    if work.device.type != "cpu" or bool(extreme.any()):  # asking saves three passes, but CUDA would wait
        # The infinity norm as two reductions: torch's own is twenty times slower on the CPU.
        peak = torch.maximum(work.amax((1, 2), keepdim=True), -work.amin((1, 2), keepdim=True))
        work = work / torch.where(extreme, peak.clamp(min=torch.finfo(work.dtype).tiny), 1.0)
        size = norm(work)
    return flush_((work / nonzero(size)).to(compute_dtype))


def frobenius_after_cast(blocks: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Cast, then divide by the Frobenius norm clamped at 1e-7, exactly as torch.optim.Muon does.

    Here for bitwise parity with it (`normalise="torch"`, `compute_dtype="bfloat16"`); blocks of norm below 1e-7 shrink.
    """
    cast = blocks.to(compute_dtype)
    norms = torch.stack([block.norm() for block in cast]).clamp(min=1e-7)
    return cast / norms[:, None, None]


def spectral(blocks: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Divide by 1.02 times the largest singular value, estimated by implicit power iterations.

    Filters then cut relative to the top direction, which always passes. The estimate is never too large; where many
    singular values crowd below the top one it is up to 5 % too small, so values of 1.03 remain.
    """
    unit = frobenius(blocks, compute_dtype)
    largest = largest_of_unit(unit) * _SAFETY
    return _divide(unit, largest)


def schatten4(blocks: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Divide by the Schatten 4-norm, `||M^T M||_F^(1/2)`: between the Frobenius and the spectral norm."""
    unit = frobenius(blocks, compute_dtype)
    return _divide(unit, norm(short_gram(unit)).squeeze((1, 2)).sqrt())


def aol(blocks: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Divide every row (column, if the block is tall) by `sqrt(sum_j |A_ij|)`, A the Gram matrix of the short side.

    Almost-orthogonal layers' bound, with which Turbo-Muon saves an iteration: no singular value exceeds 1 and few are
    small. It turns singular vectors, so what follows is equivariant only under signed permutations of the short side.
    """
    unit = frobenius(blocks, compute_dtype)
    wide = torch.promote_types(unit.dtype, torch.float32)
    weight = short_gram(unit).abs().sum(2, dtype=wide).sqrt()
    weight = nonzero(weight)
    tall = unit.shape[-2] > unit.shape[-1]
    return (unit / (weight[:, None, :] if tall else weight[:, :, None])).to(compute_dtype)


def none(blocks: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Only cast: for blocks whose singular values are in [0, 1] already; iterations diverge on larger ones."""
    return blocks.to(compute_dtype)


Normaliser = Callable[[Tensor, torch.dtype], Tensor]

NORMALISERS: dict[str, Normaliser] = {
    "frobenius": frobenius,
    "spectral": spectral,
    "schatten4": schatten4,
    "aol": aol,
    "none": none,
    "torch": frobenius_after_cast,
}
"""Name -> function(blocks, compute_dtype)."""


def stable_rank(blocks: Tensor, gram: Tensor | None = None) -> Tensor:
    """Squared Frobenius norm over squared largest singular value, per block.

    The largest singular value is never overestimated, so the result is never too small; it is exact when all nonzero
    ones are equal. No host synchronisation.

    Args:
        blocks: (batch, rows, cols), normalised; computed in float32 or wider.
        gram: `short_gram(blocks)`, if it is known already, in the dtype to compute in: 1 % accurate in bfloat16.

    Returns:
        (batch,), at least 1; 0 for an all-zero block.
    """
    if gram is None:
        gram = short_gram(blocks.to(torch.promote_types(blocks.dtype, torch.float32)))
    energy = gram.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.promote_types(gram.dtype, torch.float32))
    top = _largest_eigenvalue(gram)
    return torch.where(energy > 0, energy / nonzero(top), 0.0)


def largest_singular(blocks: Tensor) -> Tensor:
    """Largest singular value per block: never too large, up to 5 % too small where many crowd below it.

    No host synchronisation. Costs a Gram matrix of the short side and three products of its size.

    Args:
        blocks: (batch, rows, cols); computed in float32 or wider.

    Returns:
        (batch,).
    """
    unit = frobenius(blocks, torch.promote_types(blocks.dtype, torch.float32))
    return norm(blocks).squeeze((1, 2)) * largest_of_unit(unit)


def largest_of_unit(unit: Tensor) -> Tensor:
    """`largest_singular` of blocks that are normalised already."""
    return _largest_eigenvalue(short_gram(unit)).sqrt()


def _largest_eigenvalue(gram: Tensor) -> Tensor:
    """`(tr R^16 / tr R^12)^(1/4)`, R rescaled on the way: a mean of the eigenvalues, which never exceeds the largest.

    Args:
        gram: (batch, size, size), positive semidefinite.

    Returns:
        (batch,), in float32 or wider.
    """
    scale = norm(gram)
    power, norms = gram / nonzero(scale).to(gram.dtype), []
    for _ in range(2):
        power = symmetric_product(power, power)
        norms.append(norm(power))
        power = power / nonzero(norms[-1]).to(power.dtype)
    wide = scale.dtype
    last, power = symmetric_product(power, power).to(wide), power.to(wide)
    top = last.square().sum((1, 2), keepdim=True) / nonzero((last * power).sum((1, 2), keepdim=True))
    for size in reversed(norms):  # from the powers' units back to those of R
        top = (top * size).sqrt()
    return (scale * top).squeeze((1, 2))


def _divide(blocks: Tensor, norms: Tensor) -> Tensor:
    return (blocks / nonzero(norms)[:, None, None]).to(blocks.dtype)
