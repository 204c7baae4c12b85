"""Updates of a LoRA pair together: what W does is decided, not what the factors do.

`W = W_0 + s B A` does not change under the gauge `(B, A) -> (B T^-1, T A)`, T in GL(rank); an optimizer's step on W
should not either. With `S_A = A A^T`, `S_B = B^T B` and L_B any matrix with `L_B L_B^T = S_B^-1`, the columns of
`B L_B` are orthonormal and `L_B^T g_A` is the gradient in them. A filter F of singular values, applied there, gives

    dA = L_B F(L_B^T m_A) / 2 s,        dB = F(m_B L_A) L_A^T / 2 s,

so that each of the changes `s B dA` and `s dB A` of W has the singular values F / 2, whatever the gauge: a step of
`lr` moves W by at most `lr` in the spectral norm, to first order (LoRA-Muon, arXiv 2606.12921; with a radius of lr for
each factor and without momentum it is iMuon, arXiv 2605.09238). L is the inverse of a Cholesky factor: F commutes with
rotations, so the symmetric root gives the same update for more work.

Momenta are averaged in the coordinates of the factors, as the paper does: they follow the gauge when it is fixed, and
between steps B and A move little. Lengths: `adjust_lr` is that of the whole (out, in) matrix, so a LoRA pair and the
full matrix under Muon have the same spectral radius; the root mean square of the pair's step is smaller, by
sqrt(rank / 2 min(out, in)) where everything passes.

**B = 0.** LoRA starts there, and S_B is singular. What must stay bounded is the part of the step that no first order
sees, `s dB dA`; it does if singular values of s B A below `product_floor` times the step lr count as that:
`L_B L_B^T = (S_B + d^2 S_A^-1)^-1`, `d = product_floor lr / s`, then `|s dB dA| <= lr / (4 product_floor)`. It is the
one damping of S_B that the gauge leaves alone, it needs no scale to be guessed, and it vanishes once s B A has outgrown
a single step. In the first step B moves and A does not.

Rounding: Gram matrices are taken and factored in float64 (rank x rank, so this is cheap, and TF32 cannot spoil it);
singular values of a factor below sqrt(8 eps) of its Frobenius norm, eps of the factors' dtype, are damped. A factor of
zeros gives its partner no step. The rank must not exceed min(out, in): beyond, a factor's Gram matrix is singular.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Buffer, Pair, PairStage, Settings, Step
from rlspec.optim.filters import high_pass, pass_energy, polar
from rlspec.optim.newton_schulz import NORMALISERS
from rlspec.optim.roots import inverse_sqrt

Filter = Callable[[Tensor], Tensor]
"""Normalised blocks (batch, rank, n) -> blocks with the same singular vectors."""


def inverse_factor(gram: Tensor, eps: float) -> Tensor:
    """L with `L L^T = (gram + 8 eps tr(gram) I)^-1`, upper triangular, without host synchronisation.

    Args:
        gram: (batch, rank, rank), symmetric positive semi-definite, float64.
        eps: of the dtype in which the factors were rounded.

    Returns:
        (batch, rank, rank); zeros for a matrix of zeros.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    empty = trace <= 0
    damped = torch.where(empty, identity, gram + 8 * eps * trace * identity)
    lower = torch.linalg.cholesky_ex(damped).L
    inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    return torch.where(empty, 0.0, inverse.mT)


def pair_factors(pair: Pair, floor: float) -> tuple[Tensor, Tensor]:
    """L_B and L_A (batch, rank, rank) in float64, with singular values of B A below `floor` damped in L_B."""
    a, b = pair.a.double(), pair.b.double()
    eps = torch.finfo(torch.promote_types(pair.a.dtype, torch.float32)).eps
    factor_a = inverse_factor(torch.bmm(a, a.mT), eps)
    damping = torch.bmm(factor_a, factor_a.mT) * floor**2
    return inverse_factor(torch.bmm(b.mT, b) + damping, eps), factor_a


def _filtered_pair(
    pair: Pair, step: Step, normalise: str, product_floor: float, weight_decay: float, spectral_filter: Filter
) -> tuple[Tensor, Tensor]:
    """Both halves of the step; leaves the mean number of directions that passed in `step.energy`."""
    factor_b, factor_a = pair_factors(pair, product_floor * step.lr * step.length / pair.scaling)
    half_a, energy_a, _ = _half(pair.direction_a, factor_b, normalise, step, spectral_filter)
    half_b, energy_b, step.normalised = _half(pair.direction_b.mT, factor_a, normalise, step, spectral_filter)
    step.energy = (energy_a + energy_b) / 2
    # The optimizer shrinks both factors by k: one of them, times the partner's update over k, is the update as it was.
    shrink = math.sqrt(max(0.0, 1 - step.lr * weight_decay)) or 1.0
    size = 0.5 / (pair.scaling * shrink)
    return half_a * size, half_b.mT * size


def _half(
    direction: Tensor, factor: Tensor, normalise: str, step: Step, spectral_filter: Filter
) -> tuple[Tensor, Tensor, Tensor]:
    """`L F(L^T m)` for m (batch, rank, n), the energy that passed (batch,), and what the filter saw."""
    dtype = torch.promote_types(direction.dtype, torch.float32)
    # Entries of at most 1, so that float32 holds factors of any scale.
    size = factor.abs().amax((1, 2), keepdim=True)
    relative = (factor / torch.where(size > 0, size, 1.0)).to(dtype)
    normalised = NORMALISERS[normalise](torch.bmm(relative.mT, direction.to(dtype)), step.compute_dtype)
    filtered = spectral_filter(normalised)
    return torch.bmm(relative, filtered.to(dtype)) * size.to(dtype), pass_energy(filtered), normalised


def _check_product_floor(product_floor: float) -> None:
    if not product_floor >= 0:
        raise ConfigError(f"product_floor={product_floor}: must be at least 0, in units of one step; 1 is usual")


def _check_muon(schedule: str, ns_steps: int, extra_ns_steps: int, product_floor: float, **_: object) -> None:
    if isinstance(extra_ns_steps, bool) or not isinstance(extra_ns_steps, int) or extra_ns_steps < 0:
        raise ConfigError(f"extra_ns_steps={extra_ns_steps!r}: must be an integer of at least 0")
    assert polar.check is not None
    polar.check(schedule=schedule, ns_steps=ns_steps + extra_ns_steps)
    _check_product_floor(product_floor)


def _muon(
    pair: Pair,
    step: Step,
    *,
    normalise: str,
    ns_steps: int,
    weight_decay: float,
    schedule: str = "polar_express",
    extra_ns_steps: int = 3,
    product_floor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """LoRA-Muon: F sends every singular value to 1.

    Args:
        pair: the factors and their momenta.
        step: of the optimizer.
        normalise: name in `NORMALISERS`.
        ns_steps: see `extra_ns_steps`.
        weight_decay: of W.
        schedule: name in `SCHEDULES`; the paper's is Polar Express.
        extra_ns_steps: iterations beyond ns_steps. The paper runs 8 in all, which puts singular values from 1e-3 of the
            Frobenius norm on within 1e-9 of 1; on rank x n matrices they cost little.
        product_floor: see the module's docstring.
    """

    def to_one(blocks: Tensor) -> Tensor:
        return polar.function(blocks, step, ns_steps=ns_steps + extra_ns_steps, schedule=schedule)

    return _filtered_pair(pair, step, normalise, product_floor, weight_decay, to_one)


def _check_pion(promotion_steps: float | str, ns_steps: int, product_floor: float, **_: object) -> None:
    assert high_pass.check is not None
    high_pass.check(promotion_steps=promotion_steps, ns_steps=ns_steps)
    _check_product_floor(product_floor)


def _pion(
    pair: Pair,
    step: Step,
    *,
    normalise: str,
    ns_steps: int,
    promotion_steps: float | str,
    weight_decay: float,
    product_floor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """LoRA-Pion: F is Pion's gate, in coordinates in which the gauge is gone.

    A half of the step has at most `rank` directions, so its stable rank is small and k_p of 0 to 2 really selects: a
    half whose stable rank exceeds 1 / `gate_threshold(k_p)`^2 gets no step.
    """

    def gate(blocks: Tensor) -> Tensor:
        return high_pass.function(blocks, step, promotion_steps=promotion_steps, ns_steps=ns_steps)

    return _filtered_pair(pair, step, normalise, product_floor, weight_decay, gate)


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
    _check_product_floor(product_floor)


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

    with bias-corrected betas; B likewise. A half of the step is AdamW's in length: entries of M are of order 1, so the
    change `s B dA` of W has Frobenius norm sqrt(rank n) lr, with `adjust_lr` on top of it unless that is
    match_rms_adamw. Weight decay is the optimizer's. Left out of the paper's implementation: the clipping of gradients
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
    radius = step.lr * step.length * (math.sqrt(pair.a.shape[2]) + math.sqrt(pair.b.shape[1]))
    factor_b, factor_a = pair_factors(pair, product_floor * radius / pair.scaling)
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
    beta1, beta2 = (beta * (1 - beta ** (step.count - 1)) / (1 - beta**step.count) for beta in betas)
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


LORA_MUON = PairStage(_muon, check=_check_muon)
LORA_PION = PairStage(_pion, check=_check_pion)
LORA_RITE = PairStage(_rite, _rite_buffers("a"), _rite_buffers("b"), _check_rite)
