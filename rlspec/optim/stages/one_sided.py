"""Filters for parameters with a smaller symmetry group than O x O (Lau and Su, arXiv 2605.18106).

Rows that are tokens, neurons or experts can only be permuted (and their signs flipped, where nothing prevents it), so
they are normalised one by one, or by a one-sided polar factor that leaves them in place. Rows of an untied output layer
and of a router can be shifted together without effect, so their mean is taken out before and after: `centered`.

Lengths: the rows of `row_norm` have norm 1, as published, when `adjust_lr` is "none"; "match_rms_adamw" gives every row
of a matrix root mean square 0.2, however many are stale. The polar ones are polar factors times the nuclear norm to the
power of `nuclear_exponent`, as published; a length matched to AdamW's is fixed, so the nuclear norm is left out there
and the length is Muon's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlspec.errors import ConfigError, nearest
from rlspec.optim.composition import Step, stage
from rlspec.optim.kernels.blocks import nonzero, widened
from rlspec.optim.kernels.blocks import norm as frobenius_norm
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.kernels.roots import ITERATIONS, inverse_sqrt, root_schedule
from rlspec.optim.kernels.schedules import polar_express
from rlspec.optim.stages.scale import MATCHED

POLAR_STEPS = 8
"""Of Polar Express, in half precision: enough for singular values above 1e-3 of the norm."""

EPS_MODES = ("relative", "absolute")
EpsMode = Literal["relative", "absolute"]
Side = Literal["left", "right"]

_SMALLEST_NORM, _LARGEST_DAMPING = 1e-30, 1e30


def measured_unit(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks over their Frobenius norms, and the norms (batch, 1, 1), in float32 or wider, for any scale of entries."""
    work = widened(blocks)
    unit = frobenius(work, work.dtype)
    peak = work.abs().amax((1, 2), keepdim=True)
    return unit, peak / unit.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(work.dtype).tiny)


def unit_rows(blocks: Tensor, eps: float | Tensor) -> Tensor:
    """Divide every row by its norm plus eps; rows of zeros stay zeros.

    Args:
        blocks: (batch, rows, cols).
        eps: at least 0; a tensor is (batch, 1, 1).
    """
    norms = torch.linalg.vector_norm(blocks, dim=2, keepdim=True) + eps
    return blocks / nonzero(norms)


def one_sided_polar(unit: Tensor, side: Side, damping: float | Tensor | None, dtype: torch.dtype) -> Tensor:
    """M (M^T M + damping I)^{-1/2} (right), or (M M^T + damping I)^{-1/2} M (left).

    Both are the same matrix; the side says which Gram matrix is inverted. Without damping they are the polar factor,
    for which Newton-Schulz on M itself is more accurate than a root of a Gram matrix, whose condition is squared.

    Args:
        unit: (batch, rows, cols), singular values in [0, 1].
        side: of the Gram matrix: right is cols x cols, left rows x rows.
        damping: at least 0, where one is wanted; a tensor is (batch, 1, 1).
        dtype: of the iterations without damping; half precision takes a schedule with room for its rounding.
    """
    if damping is None:
        half = dtype in (torch.bfloat16, torch.float16)
        schedule = polar_express(POLAR_STEPS) if half else root_schedule(ITERATIONS[unit.dtype])
        return newton_schulz(unit.to(dtype) if half else unit, schedule).to(unit.dtype)
    if side == "left":
        return torch.bmm(inverse_sqrt(torch.bmm(unit, unit.mT), damping).mT, unit)
    return torch.bmm(unit, inverse_sqrt(torch.bmm(unit.mT, unit), damping))


def centered(blocks: Tensor) -> Tensor:
    """Subtract from every row the mean of the rows, so that columns sum to zero."""
    return blocks - blocks.mean(1, keepdim=True)


def rounding(unit: Tensor) -> float:
    """What centering leaves of equal rows of a matrix of norm 1, with room: it must not be normalised to 1."""
    return 16 * torch.finfo(unit.dtype).eps


def _check_eps(eps_mode: str, **options: float | str) -> None:
    if eps_mode not in EPS_MODES:
        raise ConfigError(f"eps_mode={eps_mode!r}; {nearest(eps_mode, EPS_MODES)}")
    for name in ("stale_eps", "polar_eps"):
        if not options.get(name, 0.0) >= 0.0:  # type: ignore[operator]
            raise ConfigError(f"{name}={options[name]}: must not be negative")


def _stale(unit: Tensor, norm: Tensor, stale_eps: float, eps_mode: EpsMode) -> Tensor:
    """What is added to the norms of rows of M / norm: (batch, 1, 1)."""
    if eps_mode == "relative":
        return stale_eps * frobenius_norm(unit) / unit.shape[1] ** 0.5
    return stale_eps / norm.clamp(min=torch.finfo(norm.dtype).tiny)


def _damping(unit: Tensor, norm: Tensor, polar_eps: float, eps_mode: EpsMode) -> Tensor | None:
    """What is added to the Gram matrix of M / norm, (batch, 1, 1), relative to the short side's mean eigenvalue."""
    if polar_eps == 0:
        return None
    if eps_mode == "relative":
        return polar_eps * unit.square().sum((1, 2), keepdim=True) / min(unit.shape[1:])
    # A gradient so small against it that the quotient would overflow gets a root of nearly zero, as zeros do.
    return (polar_eps / norm.clamp(min=_SMALLEST_NORM) / norm.clamp(min=_SMALLEST_NORM)).clamp(max=_LARGEST_DAMPING)


def _rows_moved(unit: Tensor, rows: int) -> Tensor:
    """The energy of unit rows, stale ones counted too, so that they do not lengthen the others: (batch,)."""
    return unit.ne(0).any(2).any(1).to(unit.dtype) * rows


def _unit_rows_stage(
    blocks: Tensor, step: Step, stale_eps: float, eps_mode: EpsMode, center: bool = False, columns: bool = False
) -> Tensor:
    unit, norm = measured_unit(blocks.mT if columns else blocks)
    step.normalised = unit.mT if columns else unit
    if center:
        unit = centered(unit)
    eps = _stale(unit, norm, stale_eps, eps_mode) + (rounding(unit) if center else 0.0)
    rows = unit_rows(unit, eps)
    rows = centered(rows) if center else rows
    step.energy = _rows_moved(rows, rows.shape[1])
    return rows.mT if columns else rows


@stage(check=_check_eps)
def row_norm(blocks: Tensor, step: Step, *, stale_eps: float = 1e-3, eps_mode: EpsMode = "relative") -> Tensor:
    """Divide every row by its norm: token by token, neuron by neuron. Equivariant under S_rows x O(cols).

    The norm cancels what momentum has forgotten: a token that the batches no longer have keeps moving at full speed in
    the direction of its last gradient until its momentum is below eps. So eps is `stale_eps` times the root mean square
    of the row norms, and a row fades out once it is a thousandth of the others (135 steps at momentum 0.95). The
    paper's own is absolute (`eps_mode="absolute", stale_eps=1e-8`), which gradients of 1e-6 feel, and pre-training's do
    not.
    """
    return _unit_rows_stage(blocks, step, stale_eps, eps_mode)


@stage(check=_check_eps)
def centered_row_norm(blocks: Tensor, step: Step, *, stale_eps: float = 1e-3, eps_mode: EpsMode = "relative") -> Tensor:
    """`row_norm` of rows whose mean is taken out, before and after: columns sum to zero exactly, row norms are near 1.

    For untied output layers and routers, whose softmax does not see a shift of all rows; not for a matrix that is also
    the input embedding, which has no such symmetry.
    """
    return _unit_rows_stage(blocks, step, stale_eps, eps_mode, center=True)


@stage(check=_check_eps)
def column_norm(blocks: Tensor, step: Step, *, stale_eps: float = 1e-3, eps_mode: EpsMode = "relative") -> Tensor:
    """`row_norm` of the transpose: for matrices whose columns are neurons, such as SwiGLU's down projection."""
    return _unit_rows_stage(blocks, step, stale_eps, eps_mode, columns=True)


def _with_nuclear_norm(direction: Tensor, unit: Tensor, norm: Tensor, exponent: float, adjust_lr: str) -> Tensor:
    """Times ||M||_*^exponent = (norm <direction, unit>)^exponent, unless the length is matched to AdamW's."""
    if adjust_lr in MATCHED or exponent == 0:
        return direction
    nuclear = (direction * unit).sum((1, 2), keepdim=True).clamp(min=0) * norm
    return direction * nuclear**exponent


def _polar_stage(
    blocks: Tensor, step: Step, side: Side, options: tuple[float, EpsMode, float, str], center: bool = False
) -> Tensor:
    polar_eps, eps_mode, exponent, adjust_lr = options
    unit, norm = measured_unit(blocks)
    step.normalised = unit
    if center:
        unit, share = measured_unit(centered(unit))
        unit, norm = torch.where(share > rounding(unit), unit, 0.0), norm * share
    damping = _damping(unit, norm, polar_eps, eps_mode)
    direction = one_sided_polar(unit, side, damping, step.compute_dtype)
    if center:
        direction = centered(direction)
    step.energy = direction.square().sum((1, 2))
    return _with_nuclear_norm(direction, unit, norm, exponent, adjust_lr)


@stage(check=_check_eps, bounded=True)
def right_polar(
    blocks: Tensor,
    step: Step,
    *,
    adjust_lr: str,
    polar_eps: float = 0.0,
    eps_mode: EpsMode = "relative",
    nuclear_exponent: float = 1.0,
) -> Tensor:
    """`||M||_*^nuclear_exponent M (M^T M + eps I)^{-1/2}`: PolarGrad, with the Gram matrix of columns.

    Muon's direction, converged, if eps is 0. eps is `polar_eps` times the mean eigenvalue of the Gram matrix, or
    absolute (the paper's is 1e-8).
    """
    return _polar_stage(blocks, step, "right", (polar_eps, eps_mode, nuclear_exponent, adjust_lr))


@stage(check=_check_eps, bounded=True)
def left_polar(
    blocks: Tensor,
    step: Step,
    *,
    adjust_lr: str,
    polar_eps: float = 0.0,
    eps_mode: EpsMode = "relative",
    nuclear_exponent: float = 1.0,
) -> Tensor:
    """`||M||_*^nuclear_exponent (M M^T + eps I)^{-1/2} M`: `right_polar` of the transpose, for wide matrices."""
    return _polar_stage(blocks, step, "left", (polar_eps, eps_mode, nuclear_exponent, adjust_lr))


@stage(check=_check_eps, bounded=True)
def centered_left_polar(
    blocks: Tensor,
    step: Step,
    *,
    adjust_lr: str,
    polar_eps: float = 0.0,
    eps_mode: EpsMode = "relative",
    nuclear_exponent: float = 1.0,
) -> Tensor:
    """`left_polar` of rows whose mean is taken out: for routers, few rows that a softmax compares."""
    return _polar_stage(blocks, step, "left", (polar_eps, eps_mode, nuclear_exponent, adjust_lr), center=True)


@stage(check=_check_eps, bounded=True)
def row_then_polar(
    blocks: Tensor,
    step: Step,
    *,
    adjust_lr: str,
    stale_eps: float = 1e-3,
    polar_eps: float = 0.0,
    eps_mode: EpsMode = "relative",
    nuclear_exponent: float = 1.0,
) -> Tensor:
    """Rows to norm 1, then their polar factor: every token counts alike, and every direction.

    `u = <r, u_0>^nuclear_exponent u_0`, `u_0 = r (r^T r + eps I)^{-1/2}`, r = row_norm(M): the nuclear norm of r, which
    does not depend on the gradient's size. The Gram matrix is taken on the side with fewer rows.
    """
    unit, norm = measured_unit(blocks)
    step.normalised = unit
    rows = unit_rows(unit, _stale(unit, norm, stale_eps, eps_mode))
    side: Side = "right" if rows.shape[1] >= rows.shape[2] else "left"
    unit, norm = measured_unit(rows)
    direction = one_sided_polar(unit, side, _damping(unit, norm, polar_eps, eps_mode), step.compute_dtype)
    step.energy = direction.square().sum((1, 2))
    return _with_nuclear_norm(direction, unit, norm, nuclear_exponent, adjust_lr)


@stage(check=_check_eps, bounded=True)
def column_then_polar(
    blocks: Tensor,
    step: Step,
    *,
    adjust_lr: str,
    stale_eps: float = 1e-3,
    polar_eps: float = 0.0,
    eps_mode: EpsMode = "relative",
    nuclear_exponent: float = 1.0,
) -> Tensor:
    """`row_then_polar` of the transpose: for matrices whose columns are neurons, such as SwiGLU's down projection."""
    options = {"stale_eps": stale_eps, "polar_eps": polar_eps, "nuclear_exponent": nuclear_exponent}
    rows = row_then_polar.function(blocks.mT, step, adjust_lr=adjust_lr, eps_mode=eps_mode, **options)
    step.normalised = step.normalised.mT if step.normalised is not None else None
    return rows.mT


@stage(check=_check_eps)
def polar_then_row(
    blocks: Tensor, step: Step, *, stale_eps: float = 1e-3, polar_eps: float = 0.0, eps_mode: EpsMode = "relative"
) -> Tensor:
    """The polar factor, then its rows to norm 1: `row_norm` of a whitened matrix; the nuclear norm cancels."""
    unit, norm = measured_unit(blocks)
    step.normalised = unit
    side: Side = "right" if unit.shape[1] >= unit.shape[2] else "left"
    direction = one_sided_polar(unit, side, _damping(unit, norm, polar_eps, eps_mode), step.compute_dtype)
    rows = unit_rows(direction, _stale(direction, torch.ones_like(norm), stale_eps, eps_mode))
    step.energy = _rows_moved(rows, rows.shape[1])
    return rows
