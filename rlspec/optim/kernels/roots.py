"""Inverse square roots of batches of symmetric positive semi-definite matrices.

On CUDA, and of small matrices, by products alone, for which nothing waits; on the CPU by eigendecomposition, which is
faster there: on one thread by 2 at a size of 64, 4 at 256 and 7 at 1024 in float32, by 8 in float64.

The coupled iteration `P = p(Y Z), Y <- P Y, Z <- Z P` from `Y = A / bound, Z = I` keeps `Y = Z A` and drives Z to
A^{-1/2}: with x^2 an eigenvalue of Y Z, every step is the quintic `x -> a x + b x^3 + c x^5` of Polar Express (arXiv
2505.16932). Every quintic multiplies a tiny x by `a`, so what converges is known beforehand: see `inverse_sqrt`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from rlspec.optim.kernels.blocks import nonzero, norm, per_block, product_dtype, widened
from rlspec.optim.kernels.schedules import PROMOTION, Schedule, polar_express

ITERATIONS = {torch.float32: 10, torch.float64: 18}
"""How many steps reach what rounding allows."""
DECOMPOSED_ON_CPU = 64
"""Size from which the CPU decomposes."""


@cache
def root_schedule(iterations: int) -> Schedule:
    """Polar Express' quintics, the second repeated as long as it takes, then two steps of their limit.

    The second maps [0, 1.99] into [0, 1.97] and multiplies small arguments by 4.1, so it may be repeated: the schedule
    reaches from x = 1/4400 (ten steps) down to 1/3.5e8 (18), where the published one stalls at growth 1.875.
    """
    published = polar_express(7, safety=1.0)
    if iterations <= 9:
        return polar_express(iterations, safety=1.0)
    return published[:1] + (published[1],) * (iterations - 9) + published[1:] + (PROMOTION,) * 2


def inverse_sqrt(gram: Tensor, damping: float | Tensor = 0.0, iterations: int | None = None) -> Tensor:
    """(gram + damping I)^{-1/2}; on CUDA without host synchronisation.

    `A = gram + damping I` is damped further by 2 eps of its norm where damping is less than that, because rounding
    makes a singular Gram matrix indefinite, and the iteration diverges on those; eps is that of the products, 2^-10 for
    float32 where TF32 is allowed. So the relative error of the root is about 2 eps times A's condition number: below
    3e-2 up to condition numbers of 1e5 in float32 and 1e14 in float64. Directions smaller still get a root that is too
    small, never more than 3000 (float32) or 7e7 (float64) times the largest direction's. A matrix of zeros with zero
    damping gives zeros.

    The root is symmetric up to that error, and no further: what it makes of large directions is accurate (1e-3 in
    float32) even when others are nearly singular, on its left side only. So write `M @ inverse_sqrt(M.mT @ M)` and
    `inverse_sqrt(M @ M.mT).mT @ M`, which are polar factors on what can be told from rounding, whatever the rank.

    Args:
        gram: (batch, n, n), symmetric positive semi-definite, of any scale that its dtype can hold; never mutated.
        damping: at least 0; a number, or (batch,) or (batch, 1, 1).
        iterations: None: `ITERATIONS` of the dtype, or the eigendecomposition; a number: iterations in any case.

    Returns:
        (batch, n, n), in float32 or wider.
    """
    matrix, shift, unit = _scaled(gram, damping)
    bound = nonzero(_norm_bound(matrix) + shift)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    shift = (shift / bound).clamp(min=2 * torch.finfo(product_dtype(matrix)).eps)
    if iterations is None and _decomposes(matrix):
        return _from_eigenvalues(matrix / bound, shift) * (bound.rsqrt() * unit)
    y = matrix / bound + shift * identity
    z = identity
    for a, b, c in root_schedule(iterations or ITERATIONS[matrix.dtype]):
        # In powers of E = I - Y Z, which goes to 0: the polynomial is exact where it must be 1.
        error = torch.baddbmm(identity, y, z, alpha=-1)
        factor = torch.baddbmm(error, error, error, beta=-b - 2 * c, alpha=c) + (a + b + c) * identity
        y, z = torch.bmm(factor, y), torch.bmm(z, factor)
    return z * (bound.rsqrt() * unit)


def _decomposes(matrix: Tensor) -> bool:
    """Whether eigenvalues are the faster way; LAPACK refuses NaN, which iterations pass on."""
    on_cpu = matrix.device.type == "cpu" and matrix.shape[-1] >= DECOMPOSED_ON_CPU
    return on_cpu and bool(matrix.isfinite().all())


def _from_eigenvalues(matrix: Tensor, shift: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    roots = (values.clamp(min=0) + shift[:, :, 0]).rsqrt()
    return torch.bmm(vectors * roots[:, None, :], vectors.mT)


def _scaled(gram: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale: gram / s and damping / s, one of them of order 1, and s^{-1/2} (batch, 1, 1); for zeros s^{-1/2} is 0."""
    work = widened(gram)
    shift = per_block(damping, work)
    peak = torch.maximum(work.diagonal(dim1=1, dim2=2).amax(1)[:, None, None], shift)
    unit = torch.where(peak > 0, peak.rsqrt(), 0.0)
    peak = nonzero(peak)
    return work / peak, shift / peak, unit


def _norm_bound(matrix: Tensor) -> Tensor:
    """An upper bound of the largest eigenvalue, (batch, 1, 1): the smaller of the Frobenius norm and Gershgorin's."""
    return torch.minimum(norm(matrix), matrix.abs().sum(2, keepdim=True).amax(1, keepdim=True))
