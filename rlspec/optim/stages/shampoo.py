"""Shampoo and SOAP: rules that precondition both sides of a gradient by its own covariances.

    L <- beta L + (1 - beta) G G^T,  R <- beta R + (1 - beta) G^T G
    shampoo: L^{-1/4} M R^{-1/4}, as long as Adam's step                     (arXiv 1802.09568, 2002.11803, 2309.06497)
    soap: Adam's ratio in the eigenvectors of L and R                                                 (arXiv 2409.11321)

L and R are kept in units of the average gradient, whose root mean square has a buffer of its own: the recurrences are
the papers', and squares of gradients from 1e-20 to 1e20 stay in range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Buffer, Settings, Step, stage
from rlspec.optim.kernels.blocks import nonzero, norm, widened
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.stages.bases import BASIS_EPS, check_eps
from rlspec.optim.stages.scale import check_whole, nearest
from rlspec.optim.stages.second_moments import averaged_root, divide, root_mean_square

LARGEST_SIDE = 10000
"""Default of `max_precondition_dim`, SOAP's: a longer side, such as a vocabulary, is left as it is."""
GRAFTS = ("adam", "sgd", "none")


def _sides(rows: int, cols: int, limit: int) -> tuple[str, ...]:
    """Which sides are preconditioned."""
    return tuple(name for name, size in (("row", rows), ("column", cols)) if size <= limit)


def _side_buffers(rows: int, cols: int, settings: Settings, kept: str) -> dict[str, Buffer]:
    found = {"gradient_rms": Buffer((1, 1)), "exp_avg": Buffer((rows, cols))}
    for name in _sides(rows, cols, settings.get("max_precondition_dim", LARGEST_SIDE)):
        size = rows if name == "row" else cols
        found[f"{name}_covariance"] = Buffer((size, size))
        found[f"{name}_{kept}"] = Buffer((size, size), "eye")
    return found


def _average_covariances(blocks: Tensor, step: Step, beta: float, sides: tuple[str, ...]) -> None:
    """Average G G^T / cols and G^T G / rows, in units of `gradient_rms` squared; beta 1 adds them up."""
    fresh = 1.0 if beta == 1 else 1 - beta
    before = step.state["gradient_rms"]
    scale = torch.hypot(math.sqrt(beta) * before, math.sqrt(fresh) * root_mean_square(blocks))
    unit, kept = divide(blocks, scale), beta * divide(before, scale).square()
    for name in sides:
        side = unit if name == "row" else unit.mT
        old = step.state[f"{name}_covariance"]
        step.state[f"{name}_covariance"] = torch.baddbmm(old * kept, side, side.mT, alpha=fresh / side.shape[2])
    step.state["gradient_rms"] = scale


def _between(row: Tensor | None, blocks: Tensor, column: Tensor | None) -> Tensor:
    """`row blocks column`, where None is the identity."""
    work = blocks if row is None else torch.bmm(row, blocks)
    return work if column is None else torch.bmm(work, column)


def _check_beta(shampoo_beta: float | None) -> None:
    if shampoo_beta is not None and not 0 <= shampoo_beta <= 1:
        raise ConfigError(f"shampoo_beta={shampoo_beta!r}: must be from 0 to 1 (1: a sum), or None for betas[1]")


def _check_shampoo(
    *,
    shampoo_beta: float | None,
    shampoo_exponent: float | None,
    shampoo_period: int,
    shampoo_graft: str,
    shampoo_eps: float,
    max_precondition_dim: int,
    **_: object,
) -> None:
    _check_beta(shampoo_beta)
    check_whole("shampoo_period", shampoo_period)
    check_whole("max_precondition_dim", max_precondition_dim)
    if shampoo_graft not in GRAFTS:
        raise ConfigError(f"shampoo_graft={shampoo_graft!r}; {nearest(shampoo_graft, GRAFTS)}")
    if shampoo_exponent is not None and not 0 < shampoo_exponent <= 1:
        raise ConfigError(f"shampoo_exponent={shampoo_exponent!r}: must be above 0 and at most 1, or None")
    if not 0 <= shampoo_eps < 1:
        raise ConfigError(f"shampoo_eps={shampoo_eps!r}: must be from 0 to below 1; it is relative")


def _shampoo_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    adam = {"exp_avg_rms": Buffer((rows, cols))} if settings.get("shampoo_graft", "adam") == "adam" else {}
    return _side_buffers(rows, cols, settings, "root") | adam


@stage(buffers=_shampoo_buffers, check=_check_shampoo)
def shampoo(
    blocks: Tensor,
    step: Step,
    *,
    betas: tuple[float, float],
    eps: float,
    shampoo_beta: float | None = None,
    shampoo_exponent: float | None = None,
    shampoo_period: int = 1,
    shampoo_graft: str = "adam",
    shampoo_eps: float = 1e-12,
    max_precondition_dim: int = LARGEST_SIDE,
) -> Tensor:
    """`L^{-p} M R^{-p}`, M Adam's first moment, in the practical form of Distributed Shampoo (arXiv 2309.06497).

    L and R are averaged by `shampoo_beta` (None: betas[1]; 1: the sums of arXiv 1802.09568). p is 1 / 4, or 1 / 2 where
    only one side is within `max_precondition_dim`; `shampoo_exponent` overrides it (that code's guide advises 1 / 2 on
    both sides). Roots are computed in every step whose number `shampoo_period` divides, and until the first ones the
    step is the grafted method's. `shampoo_graft`: the update has the norm of Adam's step (`adam`), of M (`sgd`), or its
    own (`none`: bias-corrected L and R, roots from the first step on).

    Not as published: `shampoo_eps` is relative to the largest eigenvalue, and never below rounding; sides are whole,
    where that code cuts them at 1024. Its default period is 1, as here; its examples have 100.

    Symmetry: signed permutations, for Adam's norm is elementwise; rotations of both sides with `sgd` and `none`.
    """
    blocks = widened(blocks)
    beta = betas[1] if shampoo_beta is None else shampoo_beta
    sides = _sides(blocks.shape[1], blocks.shape[2], max_precondition_dim)
    exponent = 1 / (2 * max(1, len(sides))) if shampoo_exponent is None else shampoo_exponent
    _average_covariances(blocks, step, beta, sides)
    average = step.state["exp_avg"] = torch.lerp(step.state["exp_avg"], blocks, 1 - betas[0])
    direction = average / (1 - betas[0] ** step.count)
    grafted = _adam_step(blocks, direction, step, betas[1], eps) if shampoo_graft == "adam" else direction
    if step.count % shampoo_period == 0 or (step.count == 1 and shampoo_graft == "none"):
        corrected = 1.0 if beta == 1 else 1 - beta**step.count
        for name, other in zip(("row", "column"), reversed(blocks.shape[1:]), strict=True):
            if name in sides:  # back from a mean over the other side, in units of `gradient_rms`
                scale = nonzero(step.state["gradient_rms"]) ** (-2 * exponent) * (other / corrected) ** -exponent
                root = _inverse_power(step.state[f"{name}_covariance"], exponent, shampoo_eps)
                step.state[f"{name}_root"] = root * scale
    elif step.count < shampoo_period and shampoo_graft != "none":
        return grafted
    found = _between(step.state.get("row_root"), direction, step.state.get("column_root"))
    return found if shampoo_graft == "none" else frobenius(found, found.dtype) * norm(grafted)


def _adam_step(blocks: Tensor, direction: Tensor, step: Step, beta: float, eps: float) -> Tensor:
    root = step.state["exp_avg_rms"] = averaged_root(step.state["exp_avg_rms"], blocks.abs(), beta)
    return divide(direction, root / math.sqrt(1 - beta**step.count) + eps)


def _inverse_power(covariance: Tensor, exponent: float, eps: float) -> Tensor:
    """`(covariance + eps top)^{-exponent}` where there were gradients, 0 where eigenvalues are rounding. CUDA waits.

    So a root that is older than a gradient drops what it knows nothing of, instead of blowing it up.
    """
    values, vectors = torch.linalg.eigh(covariance)
    top = values[:, -1:]
    seen = values > 4 * math.sqrt(covariance.shape[1]) * torch.finfo(values.dtype).eps * top
    roots = torch.where(seen, values + eps * top, torch.inf) ** -exponent
    return torch.bmm(vectors * roots[:, None, :], vectors.mT)


def _soap_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    return _side_buffers(rows, cols, settings, "basis") | {"exp_avg_rms": Buffer((rows, cols))}


def _check_soap(
    *, shampoo_beta: float | None, soap_period: int, basis_eps: float, max_precondition_dim: int, **_: object
) -> None:
    _check_beta(shampoo_beta)
    check_whole("soap_period", soap_period)
    check_whole("max_precondition_dim", max_precondition_dim)
    check_eps(basis_eps)


@stage(buffers=_soap_buffers, check=_check_soap)
def soap(
    blocks: Tensor,
    step: Step,
    *,
    betas: tuple[float, float],
    shampoo_beta: float | None = None,
    soap_period: int = 10,
    soap_skip_first: bool = False,
    max_precondition_dim: int = LARGEST_SIDE,
    basis_eps: float = BASIS_EPS,
) -> Tensor:
    """Adam on the gradient in the eigenvectors of Shampoo's covariances (SOAP, arXiv 2409.11321).

    `G' = Q_L^T G Q_R, M' = Q_L^T M Q_R`, update `Q_L (M' / sqrt(V)) Q_R^T`, bias-corrected, V the average of G'^2 and M
    kept in the original coordinates. The bases are the first gradient's singular vectors; every `soap_period` steps
    they follow L and R by one power iteration and a QR decomposition, after the step that sees them. `shampoo_beta`
    None is betas[1]; the paper has betas (0.95, 0.95).

    Not as published: the official code only initialises in the first step (`soap_skip_first=True`); here that step is
    taken, and it is the gradient's polar factor. `basis_eps` is relative to the largest entry of sqrt(V), where SOAP
    adds an absolute 1e-8. Directions in which there was no gradient yet get vectors that rounding does not decide.

    Symmetry: rotations of a side while its covariance has distinct, nonzero eigenvalues: of the shorter side from
    the start; until then only signs of the longer.
    """
    blocks = widened(blocks)
    sides = _sides(blocks.shape[1], blocks.shape[2], max_precondition_dim)
    beta = betas[1] if shampoo_beta is None else shampoo_beta
    if step.count == 1:
        _average_covariances(blocks, step, beta, sides)
        _first_bases(blocks, step, sides)
        if soap_skip_first:
            return torch.zeros_like(blocks)
    left, right = step.state.get("row_basis"), step.state.get("column_basis")
    back_left, back_right = (None if basis is None else basis.mT for basis in (left, right))
    average = step.state["exp_avg"] = torch.lerp(step.state["exp_avg"], blocks, 1 - betas[0])
    seen, mean = _between(back_left, blocks, right), _between(back_left, average, right)
    if step.count == 1 and len(sides) == 2:  # diagonal, but for rounding, whose ratios would be of size 1
        seen, mean = (
            entry * torch.eye(*entry.shape[1:], dtype=entry.dtype, device=entry.device) for entry in (seen, mean)
        )
    rms = step.state["exp_avg_rms"] = averaged_root(step.state["exp_avg_rms"], seen, betas[1])
    ratio = divide(mean, rms + basis_eps * _largest(rms))
    count = step.count - soap_skip_first
    correction = (1 - betas[1] ** count) ** 0.5 / (1 - betas[0] ** count)
    update = _between(left, ratio, back_right) * correction
    if step.count > 1:
        _average_covariances(blocks, step, beta, sides)
        if (step.count - 1) % soap_period == 0:
            _follow(step, sides)
    return update


def _largest(blocks: Tensor) -> Tensor:
    return blocks.amax((1, 2), keepdim=True) if blocks.numel() else blocks.sum((1, 2), keepdim=True)


def _first_bases(blocks: Tensor, step: Step, sides: tuple[str, ...]) -> None:
    """Singular vectors of the gradient, which are the eigenvectors of both covariances, without their squaring.

    Directions without a gradient are filled in by Householder's reflections, those of columns of zeros being
    identities: smoothly, where an SVD would let rounding decide.
    """
    unit = frobenius(blocks, blocks.dtype)
    left, values, right = torch.linalg.svd(unit, full_matrices=False)
    seen = values > max(blocks.shape[1:]) * torch.finfo(unit.dtype).eps  # of a matrix of norm 1
    for name, vectors in (("row", left), ("column", right.mT)):
        if name in sides:
            kept = torch.where(seen[:, None, :], vectors, 0.0)
            missing = kept.shape[1] - kept.shape[2]
            step.state[f"{name}_basis"] = torch.linalg.qr(torch.nn.functional.pad(kept, (0, missing))).Q


def _follow(step: Step, sides: tuple[str, ...]) -> None:
    """One power iteration of each basis, in the order of the eigenvalues, which V follows."""
    for name in sides:
        covariance, basis = step.state[f"{name}_covariance"], step.state[f"{name}_basis"]
        moved = torch.bmm(covariance, basis)
        values = (basis * moved).sum(1)
        order = values.argsort(dim=1, descending=True, stable=True)
        values = values.gather(1, order)
        seen = values > covariance.shape[1] * torch.finfo(values.dtype).eps * values[:, :1]
        pick = order[:, None, :].expand_as(basis)
        columns = torch.where(seen[:, None, :], moved.gather(2, pick), basis.gather(2, pick))
        step.state[f"{name}_basis"] = torch.linalg.qr(columns).Q
        rms = step.state["exp_avg_rms"]
        along = order[:, :, None] if name == "row" else order[:, None, :]
        step.state["exp_avg_rms"] = rms.gather(1 if name == "row" else 2, along.expand_as(rms))
