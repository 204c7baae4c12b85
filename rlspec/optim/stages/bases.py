"""Rules that work in a basis of their own: Conda in that of singular vectors, ARO in one that follows the momentum.

Both act on the shorter side of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlspec.errors import ConfigError, nearest
from rlspec.optim.composition import Buffer, Settings, Step, stage
from rlspec.optim.kernels.blocks import like, nonzero, tall, wide, widened
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.kernels.schedules import SCHEDULES
from rlspec.optim.stages.filters import check_schedule, pass_energy
from rlspec.optim.stages.scale import check_whole
from rlspec.optim.stages.second_moments import averaged_root

BASIS_EPS = 1e-5
"""Default of `basis_eps`: well above float32's rounding of a projection, so that directions which the gradient does not
have are not blown up to AdamW's size."""


def adam_ratio(average: Tensor, rms: Tensor, basis_eps: float) -> Tensor:
    """`average / rms` in a basis of columns, the denominator lifted by `basis_eps` times a row's typical norm.

    That is what rounding in the projection is measured by. The floor is relative, unlike Adam's eps, so that gradients
    of 1e-6 and of 1 take the same steps; where there is no gradient the ratio is zero.
    """
    columns = rms.mean(1, keepdim=True)
    peak = columns.amax(2, keepdim=True).clamp(min=torch.finfo(rms.dtype).tiny)
    floor = basis_eps * peak * torch.linalg.vector_norm(columns / peak, dim=2, keepdim=True)
    return average / (rms + floor).clamp(min=torch.finfo(rms.dtype).tiny)


def _conda_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    short = min(rows, cols)
    return {
        "exp_avg": Buffer((rows, cols)),
        "exp_avg_rms": Buffer((rows, cols)),
        "basis": Buffer((short, short), "eye"),
    }


def _check_conda(*, basis_period: int, conda_scale: float, basis_eps: float, **_: object) -> None:
    check_whole("basis_period", basis_period)
    if not conda_scale > 0:
        raise ConfigError(f"conda_scale={conda_scale!r}: must be positive")
    check_eps(basis_eps)


def check_eps(basis_eps: float) -> None:
    """Raises ConfigError unless 0 <= basis_eps < 1."""
    if not 0 <= basis_eps < 1:
        raise ConfigError(f"basis_eps={basis_eps!r}: must be from 0 to below 1; it is relative to the gradient")


@stage(buffers=_conda_buffers, check=_check_conda)
def conda(
    blocks: Tensor,
    step: Step,
    *,
    betas: tuple[float, float],
    basis_period: int = 2000,
    conda_scale: float = 0.25,
    basis_eps: float = BASIS_EPS,
) -> Tensor:
    """Adam on the gradient projected on the singular vectors of its own average (Conda, arXiv 2509.24218).

    Adam's first moment, kept in the original coordinates, gives the basis V of the shorter side by an SVD in the first
    step and every `basis_period` steps; numerator and second moment are those of `G V`, and the ratio goes back by V^T.
    As published, the second moment is not rotated when the basis changes. Not as published, `basis_eps` is relative to
    the typical norm of a gradient's row, where Conda adds an absolute 1e-8.

    Symmetry of tall blocks: signed permutations of rows, rotations of columns while singular values are distinct
    (transported with cols: `basis`, P^T V); of wide ones the other way round. Momentum and Nesterov play no part.
    """
    average = torch.lerp(step.state["exp_avg"], blocks, 1 - betas[0])
    basis = step.state["basis"]
    if (step.count - 1) % basis_period == 0:
        basis = singular_basis(tall(average))
    rms = averaged_root(tall(step.state["exp_avg_rms"]), torch.bmm(tall(blocks), basis), betas[1])
    step.state |= {"exp_avg": average, "exp_avg_rms": like(rms, blocks), "basis": basis}
    ratio = adam_ratio(torch.bmm(tall(average), basis), rms, basis_eps)
    correction = (1 - betas[1] ** step.count) ** 0.5 / (1 - betas[0] ** step.count)
    return like(torch.bmm(ratio, basis.mT), blocks) * (conda_scale * correction)


def singular_basis(blocks: Tensor) -> Tensor:
    """Right singular vectors V (batch, cols, cols) of tall blocks; the left ones are never formed.

    The triangular factor has the same ones, so a vocabulary of rows costs no more than the QR decomposition.
    """
    triangle = torch.linalg.qr(frobenius(blocks, blocks.dtype), mode="r").R
    return torch.linalg.svd(triangle).Vh.mT.contiguous()


def sinkgd(blocks: Tensor) -> Tensor:
    """Five times: rows to norm sqrt(cols), then columns to norm sqrt(rows) (SinkGD); divided by sqrt(cols)."""
    work, cols = blocks, blocks.shape[2]
    for _ in range(5):
        work = unit(work, 2) * cols**0.5
        work = unit(work, 1) * (blocks.shape[1] / cols) ** 0.5
    return work


def unit(blocks: Tensor, dim: int) -> Tensor:
    """Rows (dim 2) or columns (dim 1) of norm 1; zero ones stay."""
    norm = torch.linalg.vector_norm(blocks, dim=dim, keepdim=True)
    return blocks / nonzero(norm)


BASE_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sinkgd": sinkgd,
    "row_norm": lambda blocks: unit(blocks, 2),
    "sign": lambda blocks: blocks.sign() / blocks.shape[2] ** 0.5,
    "identity": lambda blocks: blocks,
}
"""Name -> function of wide blocks in the rotated frame; `polar` is made with its schedule. All but `identity` give
||X||_F^2 = rows, as a full polar factor does."""


def _check_aro(*, base_function: str, schedule: str, **_: object) -> None:
    allowed = (*BASE_FUNCTIONS, "polar")
    if base_function not in allowed:
        raise ConfigError(f"base_function={base_function!r}; {nearest(base_function, allowed)}")
    check_schedule(schedule)


def _aro_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    short = min(rows, cols)
    return {"rotation": Buffer((short, short), "eye")}


@stage(buffers=_aro_buffers, check=_check_aro)
def aro(
    blocks: Tensor, step: Step, *, base_function: str = "sinkgd", schedule: str = "keller", ns_steps: int
) -> Tensor:
    """A base function f in a rotated frame that follows the momentum (ARO, arXiv 2602.09006).

    For wide M: `R <- orthogonal factor of QR(M f(R^T M)^T)`, positive diagonal; update `R f(R^T M)`. Tall blocks are
    transposed, so that R acts on the shorter side. The momentum is normalised first, and directions at the level of
    rounding, which f would blow up, are left out: `identity` gives the momentum divided by its norm, `polar` Muon.

    Symmetry of wide blocks: rotations of rows if `rotation` is transported along, R -> Q R (from the identity a rule
    starts in a frame of its own: there only signs of rows); signed permutations of columns. Tall ones the other way
    round.
    """
    work = widened(wide(blocks))
    work = frobenius(work, work.dtype)
    step.normalised = like(work, blocks)
    rotation = step.state["rotation"]

    def base(rotated: Tensor) -> Tensor:
        if base_function == "polar":
            return newton_schulz(rotated, SCHEDULES[schedule](ns_steps))
        return BASE_FUNCTIONS[base_function](rotated if base_function == "identity" else _drop_rounding(rotated))

    new = orthogonal_factor(torch.bmm(work, base(torch.bmm(rotation.mT, work)).mT))
    moved = (work != 0).any(2).any(1)[:, None, None]
    step.state["rotation"] = rotation = torch.where(moved, new, rotation)
    update = torch.bmm(rotation, base(torch.bmm(rotation.mT, work)))
    step.energy = pass_energy(update)
    return like(update, blocks)


def _drop_rounding(blocks: Tensor) -> Tensor:
    """Zero the rows of unit-norm blocks that are rounding only."""
    norm = torch.linalg.vector_norm(blocks, dim=2, keepdim=True)
    return torch.where(norm > 8 * torch.finfo(blocks.dtype).eps, blocks, 0.0)


def orthogonal_factor(blocks: Tensor) -> Tensor:
    """Q of the QR decomposition with a nonnegative diagonal in R, which makes it unique: Q(U A) = U Q(A)."""
    factor, triangle = torch.linalg.qr(blocks)
    sign = torch.where(triangle.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).to(factor.dtype)
    return factor * sign[:, None, :]
