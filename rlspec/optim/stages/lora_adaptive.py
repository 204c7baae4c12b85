"""Adam's relatives on a LoRA pair: second moments in coordinates in which the gauge is gone.

Both rules work in the bases of `stages.lora`, `B L_B` and `L_A^T A`, with its damping at B = 0 and its float64
for everything of the size of a factor. Their updates have AdamW's length, `adjust_lr` on top of it unless that
matches AdamW's, and are not halved.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Buffer, Pair, PairStage, Settings, Step
from rlspec.optim.kernels.roots import inverse_sqrt
from rlspec.optim.stages.lora import check_product_floor, pair_factors, rounding


def _floor(pair: Pair, step: Step, product_floor: float) -> float:
    """For updates whose entries are of order 1, and whose spectral norms are about sqrt(in) and sqrt(out)."""
    radius = step.lr * step.length * (math.sqrt(pair.a.shape[2]) + math.sqrt(pair.b.shape[1]))
    return product_floor * radius / pair.scaling


def _bias_corrected(beta: float, count: int) -> float:
    """The weight of the past in an average that starts from nothing: 0 in the first step, then up to beta."""
    return beta * (1 - beta ** (count - 1)) / (1 - beta**count)


def _rite_buffers(factor: str) -> Callable[[int, int, Settings], dict[str, Buffer]]:
    """Buffers kept with a factor of shape (rows, cols): its moments, and the basis that its partner's moments use.

    Moments and bases have the rank first: those of B are (rank, out).
    """

    def buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
        rank, length = (rows, cols) if factor == "a" else (cols, rows)
        return {
            f"rite_exp_avg_{factor}": Buffer((rank, length)),
            f"rite_second_{factor}": Buffer((rank, rank)),
            f"rite_size_{factor}": Buffer(()),
            f"rite_escaped_{factor}": Buffer(()),
            f"rite_basis_{factor}": Buffer((rank, length)),
        }

    return buffers


def _check_rite(rite_damping: float, product_floor: float, **_: object) -> None:
    if not 0 <= rite_damping < 1:
        raise ConfigError(f"rite_damping={rite_damping}: must lie in [0, 1), relative to the mean eigenvalue")
    check_product_floor(product_floor)


def _rite(
    pair: Pair,
    step: Step,
    *,
    betas: tuple[float, float],
    rite_escape: bool = True,
    rite_damping: float = 1e-6,
    product_floor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """LoRA-RITE (arXiv 2410.20625): Adam with a matrix for a second moment, in the partner's orthonormal basis.

    With the basis `U = B L_B` and `g = L_B^T g_A`, A's moments follow the basis by `P = U_t^T U_{t-1}`:

        V <- beta2 P V P^T + (1 - beta2) g g^T / n
        M <- beta1 P M + (1 - beta1) (V + rho I)^-1/2 g
        dA = L_B M / s

    with bias-corrected betas; B likewise. Entries of M are of order 1, so the change `s B dA` of W has Frobenius norm
    sqrt(rank n) lr. Weight decay is the optimizer's. Left out of the paper's implementation: the clipping of gradients
    at norm 1 and the skipping of large ones, which are not scale invariant, and its absolute epsilon of 1e-6.

    Args:
        pair: the factors and their gradients.
        step: of the optimizer; gradients come without momentum.
        betas: of the moments.
        rite_escape: whether to add rho, the second moment that has left the basis. The paper takes the smaller of two
            bounds; this is the second, the loss of trace, which needs no eigenvalues.
        rite_damping: added to V, relative to its mean eigenvalue.
        product_floor: see the module's docstring; the step's radius is lr (sqrt(in) + sqrt(out)) here.
    """
    factor_b, factor_a = pair_factors(pair.a, pair.b, _floor(pair, step, product_floor), rounding(pair))
    basis_b, basis_a = torch.bmm(factor_b.mT, pair.b.double().mT), torch.bmm(factor_a.mT, pair.a.double())
    options = (betas, rite_escape, rite_damping)
    moved_a = _rite_half("a", torch.bmm(factor_b.mT, pair.gradient_a.double()), basis_b, "b", step, *options)
    moved_b = _rite_half("b", torch.bmm(factor_a.mT, pair.gradient_b.double().mT), basis_a, "a", step, *options)
    for name, basis in (("rite_basis_b", basis_b), ("rite_basis_a", basis_a)):
        step.state[name] = basis.to(step.state[name].dtype)
    update_a, update_b = torch.bmm(factor_b, moved_a) / pair.scaling, torch.bmm(factor_a, moved_b) / pair.scaling
    return update_a.to(pair.a.dtype), update_b.mT.to(pair.b.dtype)


def _rite_half(
    own: str,
    gradient: Tensor,
    basis: Tensor,
    partner: str,
    step: Step,
    betas: tuple[float, float],
    escape: bool,
    damping: float,
) -> Tensor:
    """First moment (batch, rank, n) of one factor in `basis` (batch, rank, .); all in float64."""
    state = step.state
    beta1, beta2 = (_bias_corrected(beta, step.count) for beta in betas)
    projection = torch.bmm(basis, state[f"rite_basis_{partner}"].double().mT)
    # V is stored relative to its size: squares of gradients do not fit float32.
    size = state[f"rite_size_{own}"].double().square()[:, None, None]
    before = state[f"rite_second_{own}"].double()
    moved = torch.bmm(torch.bmm(projection, before), projection.mT)
    lost = (_trace(before) - _trace(moved)).clamp(min=0) * size
    second = torch.lerp(torch.bmm(gradient, gradient.mT) / gradient.shape[2], moved * size, beta2)
    escaped = beta2 * (state[f"rite_escaped_{own}"].double().square()[:, None, None] + lost) * escape
    shift = escaped + damping * _trace(second) / gradient.shape[1]
    preconditioned = torch.bmm(inverse_sqrt(second, shift), gradient)
    average = torch.lerp(preconditioned, torch.bmm(projection, state[f"rite_exp_avg_{own}"].double()), beta1)
    trace = _trace(second)
    kept = {
        "exp_avg": average,
        "second": second / torch.where(trace > 0, trace, 1.0),
        "size": trace.sqrt().flatten(),
        "escaped": escaped.sqrt().flatten(),
    }
    for name, value in kept.items():
        state[f"rite_{name}_{own}"] = value.to(state[f"rite_{name}_{own}"].dtype)
    return average


def _trace(matrices: Tensor) -> Tensor:
    """(batch, 1, 1)."""
    return matrices.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]


def _check_adapre(adapre_damping: float, product_floor: float, **_: object) -> None:
    if not 0 <= adapre_damping < 1:
        raise ConfigError(f"adapre_damping={adapre_damping}: must lie in [0, 1), relative to the mean square")
    check_product_floor(product_floor)


def _adapre(
    pair: Pair,
    step: Step,
    *,
    betas: tuple[float, float],
    adapre_damping: float = 1e-6,
    product_floor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """AdaPreLoRA (arXiv 2605.08734): the step of W is Adafactor's, projected to what the factors can reach.

    With L and R diagonal, `V_ij = L_i R_j` Adafactor's second moment of W's gradient G, and
    `P = B (B^T L^1/2 B)^-1 B^T L^1/2`, `Q = R^1/2 A^T (A R^1/2 A^T)^-1 A`:

        dA = (B^T L^1/2 B)^-1 m_A R^-1/2 (I - Q / 2) / s,   dB = (I - P / 2) L^-1/2 m_B (A R^1/2 A^T)^-1 / s

    so that `s (B dA + dB A) = P X + X Q - P X Q` for `X = G / sqrt(V)`. The paper takes L and R from G, which LoRA
    never computes, and gives no constants. Chosen here: the part of G that the factors see. L_i is the mean square of
    row i of `g_B L_A`, R_j that of column j of `L_B^T g_A` (exact at full rank, and the same in every gauge), averaged
    with beta2; the momentum is the optimizer's. While B = 0, R is taken as flat.

    Args:
        pair: the factors, their momenta and gradients.
        step: of the optimizer.
        betas: the second is that of L and R.
        adapre_damping: added to L and R, relative to their means.
        product_floor: see `rlspec.optim.stages.lora`; the step's radius is lr (sqrt(in) + sqrt(out)) here.
    """
    floor = _floor(pair, step, product_floor)
    weight_a, weight_b, size = _adafactor(pair, step, floor, betas[1], adapre_damping)
    a, b = pair.a.double(), pair.b.double()
    factor_b, factor_a = pair_factors(a * weight_a.sqrt(), b * weight_b.sqrt(), floor, rounding(pair))
    inverse_b, inverse_a = torch.bmm(factor_b, factor_b.mT), torch.bmm(factor_a, factor_a.mT)
    d_a = torch.bmm(inverse_b, pair.direction_a.double() / weight_a)
    d_b = torch.bmm(pair.direction_b.double() / weight_b, inverse_a)
    d_a = d_a - torch.bmm(torch.bmm(torch.bmm(d_a * weight_a, a.mT), inverse_a), a) / 2
    d_b = d_b - torch.bmm(b, torch.bmm(inverse_b, torch.bmm(b.mT, d_b * weight_b))) / 2
    scale = torch.where(size > 0, 1 / torch.where(size > 0, size * pair.scaling, 1.0), 0.0)
    return (d_a * scale).to(pair.a.dtype), (d_b * scale).to(pair.b.dtype)


def _adafactor(pair: Pair, step: Step, floor: float, beta2: float, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """R^1/2 (batch, 1, in) and L^1/2 (batch, out, 1) of unit mean square, and sqrt(V)'s size (batch, 1, 1)."""
    factor_b, factor_a = pair_factors(pair.a, pair.b, floor, rounding(pair))
    seen_a = torch.bmm(factor_b.mT, pair.gradient_a.double()).square().mean(1, keepdim=True)
    seen_b = torch.bmm(pair.gradient_b.double(), factor_a).square().mean(2, keepdim=True)
    roots = []
    for name, seen in (("adapre_cols_a", seen_a), ("adapre_rows_b", seen_b)):
        before = step.state[name].double().view_as(seen).square()
        average = torch.lerp(seen, before, _bias_corrected(beta2, step.count))
        # Stored as a root: squares of gradients do not fit float32.
        step.state[name] = average.sqrt().flatten(1).to(step.state[name].dtype)
        roots.append((average + damping * average.mean((1, 2), keepdim=True)).sqrt())
    sizes = [root.square().mean((1, 2), keepdim=True).sqrt() for root in roots]
    weights = [
        torch.where(size > 0, root / torch.where(size > 0, size, 1.0), 1.0)
        for root, size in zip(roots, sizes, strict=True)
    ]
    size_a, size_b = (torch.where(own > 0, own, other) for own, other in (sizes, sizes[::-1]))
    return weights[0], weights[1], size_a.sqrt() * size_b.sqrt()


def _buffers_a(rank: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    return {"adapre_cols_a": Buffer((cols,))}


def _buffers_b(rows: int, rank: int, settings: Settings) -> dict[str, Buffer]:
    return {"adapre_rows_b": Buffer((rows,))}


LORA_RITE = PairStage(_rite, _rite_buffers("a"), _rite_buffers("b"), _check_rite)
ADAPRE_LORA = PairStage(_adapre, _buffers_a, _buffers_b, _check_adapre)
