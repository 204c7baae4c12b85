"""ROOT: clip a momentum's outlying entries, then orthogonalise with coefficients fitted to the shape."""

from __future__ import annotations

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Step, stage
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.schedules import Coefficients
from rlspec.optim.kernels.shape_fit import fit_quintic
from rlspec.optim.stages.filters import pass_energy

FITTED: dict[tuple[int, int], Coefficients] = {
    (2048, 2048): (3.4916, -4.8224, 2.1095),
    (2048, 3072): (3.4509, -4.5790, 1.9325),
    (2048, 8192): (2.9794, -3.6674, 1.6207),
    (2048, 16384): (3.1943, -3.8221, 1.5322),
}
"""(shorter side, longer side) of a block -> ROOT's published coefficients; for all other shapes they are fitted here.

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
    """Quantile of |entries| per block, of any size (torch.quantile stops at 2^24 entries, and sorts).

    Linear between order statistics as in torch.quantile for blocks up to `INTERPOLATED` entries; the lower neighbour
    for larger ones, where they are closer than a part in ten thousand.

    Args:
        blocks: (batch, rows, cols).
        quantile: from 0 to 1.

    Returns:
        (batch,).
    """
    magnitudes = blocks.abs().flatten(1).contiguous()
    position = quantile * (magnitudes.shape[1] - 1)
    below = int(position)
    select = smallest if magnitudes.device.type == "cpu" else smallest_by_bits
    lower = select(magnitudes, below + 1)
    if position == below or magnitudes.shape[1] > INTERPOLATED:
        return lower
    return lower.lerp(select(magnitudes, below + 2), position - below)


INTERPOLATED = 1 << 16


def smallest(magnitudes: Tensor, place: int) -> Tensor:
    """The `place`-th smallest of every row, from 1: (batch, entries) -> (batch,)."""
    return magnitudes.kthvalue(place, dim=1).values


def smallest_by_bits(magnitudes: Tensor, place: int) -> Tensor:
    """The same, exactly, by bisection on bit patterns, which order floats that are not negative as integers do.

    One parallel pass per bit, where CUDA's kthvalue gives a whole block of weights to a single multiprocessor.
    """
    wide = magnitudes.dtype == torch.float64
    bits = magnitudes.view(torch.int64 if wide else torch.int32)
    low = bits.new_zeros(len(bits), 1)
    high = torch.full_like(low, torch.iinfo(bits.dtype).max)
    for _ in range(63 if wide else 31):
        middle = low + (high - low) // 2
        enough = (bits <= middle).sum(1, keepdim=True) >= place
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
    return high.view(magnitudes.dtype)[:, 0]


@stage(iterates=True, bounded=True)
def fitted_polar(blocks: Tensor, step: Step, *, ns_steps: int) -> Tensor:
    """Muon's polar factor with coefficients for the block's shape: the published ones, or a fit of the same kind.

    Fitted for three steps at least: what brings all values near 1 in fewer overshoots elsewhere.
    """
    short, long = sorted(blocks.shape[1:])
    coefficients = FITTED.get((short, long)) or fit_quintic(short, long, max(ns_steps, 3))
    filtered = newton_schulz(blocks, (coefficients,) * ns_steps)
    step.energy = pass_energy(filtered)
    return filtered
