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
from rlspec.optim.composition import Pair, PairStage, Step
from rlspec.optim.kernels.blocks import nonzero
from rlspec.optim.kernels.normalisers import NORMALISERS
from rlspec.optim.stages.filters import high_pass, pass_energy, polar
from rlspec.optim.stages.scale import check_whole

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


def pair_factors(a: Tensor, b: Tensor, floor: float, eps: float) -> tuple[Tensor, Tensor]:
    """L_B and L_A (batch, rank, rank) in float64, with singular values of B A below `floor` damped in L_B.

    Args:
        a: (batch, rank, in).
        b: (batch, out, rank).
        floor: at least 0.
        eps: see `inverse_factor`.
    """
    a, b = a.double(), b.double()
    factor_a = inverse_factor(torch.bmm(a, a.mT), eps)
    damping = torch.bmm(factor_a, factor_a.mT) * floor**2
    return inverse_factor(torch.bmm(b.mT, b) + damping, eps), factor_a


def rounding(pair: Pair) -> float:
    """Relative spacing of the numbers that the factors are kept in: their dtype's eps, float32's at least."""
    return torch.finfo(torch.promote_types(pair.a.dtype, torch.float32)).eps


def _filtered_pair(
    pair: Pair, step: Step, normalise: str, product_floor: float, weight_decay: float, spectral_filter: Filter
) -> tuple[Tensor, Tensor]:
    """Both halves of the step; leaves the mean number of directions that passed in `step.energy`."""
    factor_b, factor_a = pair_factors(
        pair.a, pair.b, product_floor * step.lr * step.length / pair.scaling, rounding(pair)
    )
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
    relative = (factor / nonzero(size)).to(dtype)
    normalised = NORMALISERS[normalise](torch.bmm(relative.mT, direction.to(dtype)), step.compute_dtype)
    filtered = spectral_filter(normalised)
    return torch.bmm(relative, filtered.to(dtype)) * size.to(dtype), pass_energy(filtered), normalised


def check_product_floor(product_floor: float) -> None:
    """Raises ConfigError on a floor that is none."""
    if not product_floor >= 0:
        raise ConfigError(f"product_floor={product_floor}: must be at least 0, in units of one step; 1 is usual")


def _check_muon(schedule: str, ns_steps: int, extra_ns_steps: int, product_floor: float, **_: object) -> None:
    check_whole("extra_ns_steps", extra_ns_steps, least=0)
    assert polar.check is not None
    polar.check(schedule=schedule, ns_steps=ns_steps + extra_ns_steps)
    check_product_floor(product_floor)


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
    check_product_floor(product_floor)


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


LORA_MUON = PairStage(_muon, check=_check_muon)
LORA_PION = PairStage(_pion, check=_check_pion)
