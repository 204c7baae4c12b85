"""Soft clipping of singular values: SPECTRA (arXiv 2603.14315), around any rule.

`H_c(U) = (I + U U^T / c^2)^{-1/2} U` maps every singular value s to s / sqrt(1 + s^2 / c^2): the identity far below c,
c times the polar factor far above, smooth between, and nothing is decomposed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Step, stage
from rlspec.optim.kernels.blocks import like, per_block, wide, widened
from rlspec.optim.kernels.roots import inverse_sqrt
from rlspec.optim.stages.scale import check_whole


def soft_clip_blocks(blocks: Tensor, clip: float | Tensor) -> Tensor:
    """Map singular values s to s / sqrt(1 + (s / clip)^2).

    Computed in float32 or wider from the Gram matrix of the short side: the relative error is about 2 eps times
    1 + (s_1 / clip)^2 at the small singular values, and a few eps where clip is above s_1.

    Args:
        blocks: (batch, rows, cols), of any scale; never mutated.
        clip: bound on the singular values, positive; a tensor is (batch,) or (batch, 1, 1).

    Returns:
        (batch, rows, cols), in the dtype of `blocks`.
    """
    work = widened(blocks)
    if not work.numel():
        return blocks
    bound = per_block(clip, work)
    x = wide(work)
    # In units of the largest entry or of the bound, whichever is larger, so that no square leaves the dtype's range.
    unit = torch.maximum(x.abs().amax((1, 2), keepdim=True), bound)
    scaled, relative = x / unit, bound / unit
    clipped = bound * torch.bmm(inverse_sqrt(torch.bmm(scaled, scaled.mT), relative.square()).mT, scaled)
    return like(clipped, blocks).to(blocks.dtype)


def _check_clip(spectral_clip: float, clip_warmup: int) -> None:
    check_whole("clip_warmup", clip_warmup, least=0)
    if not spectral_clip > 0:
        raise ConfigError(f"spectral_clip={spectral_clip}: must be positive; the paper has 10, and 5 for small models")


@stage(check=_check_clip)
def soft_clip(blocks: Tensor, step: Step, *, spectral_clip: float = 10.0, clip_warmup: int = 0) -> Tensor:
    """`soft_clip_blocks` as a stage: the bound is on the update before lr and `adjust_lr` (the paper's c = 10, or 5).

    In the first `clip_warmup` steps, those of the schedule's warm-up, c lr is constant as in the paper: the bound is c
    times the peak rate, which schedulers of torch keep as `initial_lr`, over the present one. The paper's optional
    clipping of raw gradients (c = 0.1) is the optimizer's `gradient_clip`.
    """
    peak = float(step.settings.get("initial_lr", step.lr))
    if step.count <= clip_warmup and 0 < step.lr < peak:
        spectral_clip *= peak / step.lr
    return soft_clip_blocks(blocks, spectral_clip)
