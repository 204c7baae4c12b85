"""ROOT: clip a momentum's outlying entries, then orthogonalise with coefficients fitted to the shape."""

from __future__ import annotations

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Step, stage
from rlspec.optim.filters import pass_energy
from rlspec.optim.newton_schulz import KELLER, Coefficients, newton_schulz

FITTED: dict[tuple[int, int], Coefficients] = {
    (2048, 2048): (3.4916, -4.8224, 2.1095),
    (2048, 3072): (3.4509, -4.5790, 1.9325),
    (2048, 8192): (2.9794, -3.6674, 1.6207),
    (2048, 16384): (3.1943, -3.8221, 1.5322),
}
"""(shorter side, longer side) of a block -> ROOT's published coefficients; other shapes take Keller Jordan's.

Five steps map [0.01, 1] into [0.77, 1.2], except that those of (2048, 2048) overshoot their repelling fixed point: a
normalised singular value within 0.016 of 0.559 or 0.004 of 0.163 may end up at 3.3. Kept as published.
"""


def _check_quantile(*, outlier_quantile: float) -> None:
    if not 0 < outlier_quantile <= 1:
        raise ConfigError(f"outlier_quantile={outlier_quantile!r}: must be above 0 and at most 1 (1: no clipping)")


@stage(check=_check_quantile)
def clip_outliers(blocks: Tensor, step: Step, *, outlier_quantile: float = 0.9) -> Tensor:
    """Clamp entries to the quantile of their block's magnitudes: the momentum without outliers (arXiv 2511.20626).

    A block with so many exact zeros that the quantile itself is zero stays as it is: clamping would stop it for good.
    """
    if outlier_quantile == 1:
        return blocks
    limit = magnitude_quantile(blocks, outlier_quantile)[:, None, None]
    return torch.where(limit > 0, blocks.clamp(-limit, limit), blocks)


def magnitude_quantile(blocks: Tensor, quantile: float) -> Tensor:
    """Quantile of |entries| per block, linear between order statistics as in torch.quantile, of any size.

    Args:
        blocks: (batch, rows, cols).
        quantile: from 0 to 1.

    Returns:
        (batch,).
    """
    magnitudes = blocks.abs().flatten(1)
    position = quantile * (magnitudes.shape[1] - 1)
    below = int(position)
    lower = magnitudes.kthvalue(below + 1, dim=1).values
    if position == below:
        return lower
    # The next order statistic without a second selection: the smallest above `lower`, unless `lower` occurs again.
    repeated = (magnitudes <= lower[:, None]).sum(1) > below + 1
    above = magnitudes.where(magnitudes > lower[:, None], torch.inf).amin(1)
    return torch.where(repeated, lower, lower.lerp(above, position - below))


@stage()
def fitted_polar(blocks: Tensor, step: Step, *, ns_steps: int) -> Tensor:
    """Muon's polar factor with the coefficients of `FITTED` for the block's shape."""
    rows, cols = blocks.shape[1:]
    coefficients = FITTED.get((min(rows, cols), max(rows, cols)), KELLER)
    filtered = newton_schulz(blocks, (coefficients,) * ns_steps)
    step.energy = pass_energy(filtered)
    return filtered
