"""Dion: a low-rank polar factor by one power iteration, with error feedback (arXiv 2504.05295)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Buffer, Settings, Step, stage
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.stages.bases import orthogonal_factor
from rlspec.optim.stages.filters import pass_energy

DION_RANK = 0.25


def _buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    rank = max(1, round(settings.get("dion_rank", DION_RANK) * min(rows, cols)))
    return {"dion_momentum": Buffer((rows, cols)), "dion_basis": Buffer((cols, rank), start="normal")}


def _check(dion_rank: float, momentum: float, dion_eps: float) -> None:
    if not 0 < dion_rank <= 1 or not dion_eps >= 0:
        raise ConfigError(f"dion_rank={dion_rank}, dion_eps={dion_eps}: need 0 < dion_rank <= 1 and dion_eps >= 0")


@stage(buffers=_buffers, check=_check)
def dion(
    blocks: Tensor, step: Step, *, dion_rank: float = DION_RANK, momentum: float, dion_eps: float = 1e-5
) -> Tensor:
    """`P R^T` with P orthonormal and the columns of R of unit length; what it leaves out stays in the momentum.

    P spans M Q, Q are the columns of the last step, R = M^T P, and M loses (1 - momentum) P R^T. A column of R below
    dion_eps of the longest is no direction but rounding, and is left as short as it is.
    """
    accumulated = step.state["dion_momentum"] + blocks
    left = orthogonal_factor(torch.bmm(accumulated, step.state["dion_basis"]))
    right = torch.bmm(accumulated.mT, left)
    step.state["dion_momentum"] = accumulated - (1 - momentum) * torch.bmm(left, right.mT)
    right = frobenius(right, right.dtype)  # squares of 1e20 overflow
    lengths = torch.linalg.vector_norm(right, dim=1, keepdim=True)
    floor = (dion_eps * lengths.amax(2, keepdim=True)).clamp(min=torch.finfo(right.dtype).tiny)
    step.state["dion_basis"] = right / torch.maximum(lengths, floor)
    update = torch.bmm(left, step.state["dion_basis"].mT)
    step.energy = pass_energy(update)
    return update
