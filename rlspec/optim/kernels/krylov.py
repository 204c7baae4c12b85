"""The largest singular value from a few products with thin matrices, for what is only looked at.

Rules take theirs from the Gram matrix (`normalisers.largest_singular`): that is exactly equivariant, where a start of
random vectors is so only as far as the estimate is good.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlspec.optim.kernels.blocks import nonzero, norm, tall
from rlspec.optim.kernels.normalisers import frobenius, largest_of_unit

_VECTORS, _DEPTH = 8, 3
_SMALLEST = 256
"""Short side from which this is cheaper than the Gram matrix; (depth + 1) x vectors columns must have room in it."""


def top_singular(blocks: Tensor) -> Tensor:
    """Largest singular value per block: never too large, at most 6 % too small, on large square random matrices.

    NaN where a block has an entry that is not finite.

    Args:
        blocks: (batch, rows, cols); computed in float32 or wider.

    Returns:
        (batch,).
    """
    return norm(blocks).squeeze((1, 2)) * _top_of_unit(frobenius(blocks, _wide(blocks)))


def top_stable_rank(blocks: Tensor) -> Tensor:
    """Squared Frobenius norm over squared largest singular value: (batch, rows, cols) -> (batch,); 0 for zeros."""
    unit = frobenius(blocks, _wide(blocks))
    energy = norm(unit).square().squeeze((1, 2))
    return torch.where(energy > 0, energy / nonzero(_top_of_unit(unit).square()), energy)


def _wide(blocks: Tensor) -> torch.dtype:
    return torch.promote_types(blocks.dtype, torch.float32)


def _top_of_unit(unit: Tensor) -> Tensor:
    """By a block Krylov method (Musco and Musco, arXiv 1504.05477), where a Gram matrix would take longer.

    It does not for small blocks, nor on accelerators, where it costs little and small QR decompositions much.
    """
    if unit.device.type != "cpu" or min(unit.shape[-2:]) < _SMALLEST:
        return largest_of_unit(unit)
    work = tall(unit)
    generator = torch.Generator().manual_seed(0)  # of its own: looking at a step does not change what is drawn in it
    start = torch.linalg.qr(torch.randn(work.shape[-1], _VECTORS, generator=generator).to(work)).Q
    basis = [start.expand(len(work), -1, -1)]
    for _ in range(_DEPTH):
        basis.append(torch.linalg.qr(work.mT @ (work @ basis[-1])).Q)
    image = work @ torch.linalg.qr(torch.cat(basis, dim=-1)).Q
    finite = image.isfinite().all(-1).all(-1)
    top = torch.linalg.matrix_norm(torch.where(finite[:, None, None], image, 0.0), 2)
    return torch.where(finite, top, torch.nan)
