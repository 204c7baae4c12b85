"""Bounds on the singular values of the weights themselves (Lipschitz networks, arXiv 2507.13338), after every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlspec.errors import ConfigError, nearest
from rlspec.optim.kernels.blocks import like, nonzero, norm, per_block, tall, wide, widened
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.kernels.roots import root_schedule

POLAR_STEPS = {torch.float32: 10, torch.float64: 12}
"""Polar factor to rounding for singular values above 1e-3 (float32) and 3e-5 (float64) of the norm."""
SOFT_REACH = 1.3
"""In units of cap: from there on the soft cap's polynomial would fold singular values."""
SQUARINGS = 6
"""Of the Gram matrix: 64 power iterations."""


def constrain(weight_blocks: Tensor, cap: float, method: str = "hard") -> Tensor:
    """Bound the singular values of weights.

    Args:
        weight_blocks: (batch, rows, cols), finite; never mutated.
        cap: the bound, positive.
        method: `hard`: every singular value s becomes min(s, cap). `normalise`: a matrix whose largest is above cap is
            scaled down as a whole. `soft`: the largest becomes cap, and those near it shrink too, smoothly and with no
            polar factor. `hammer`: only the largest one is set to cap, which is cheapest, and enough when
            applied in every step.

    Returns:
        (batch, rows, cols) in the dtype of the weights; weights within the bound come back as they were (up to
        rounding under `normalise`, `soft` and `hammer`, whose largest singular value is measured).

    Raises:
        ConfigError: on an unknown method or a cap that is not positive.
    """
    if method not in METHODS:
        raise ConfigError(f"cap_method={method!r}; {nearest(method, METHODS)}")
    if not cap > 0:
        raise ConfigError(f"spectral_cap={cap}: must be positive")
    return METHODS[method](weight_blocks, cap)


def hard_cap(weight_blocks: Tensor, cap: float) -> Tensor:
    """Every singular value s becomes min(s, cap), without a decomposition.

    `W - (W - cap O) (I - msign(cap I - O^T W)) / 2`, O = msign(W), which is W where s < cap (there msign is I) and
    cap O where s > cap. Neither polar factor needs to converge on singular values far below cap, or on those so near
    it that the difference does not matter: the error is below 1e-3 of the distance to cap in float32.
    A correction below 1e-6 of the weights' norm is rounding and left out, so weights within the bound stay bit for bit.
    """
    work = widened(weight_blocks)
    if not work.numel():
        return weight_blocks
    w = tall(work)
    direction = msign(w)
    identity = torch.eye(w.shape[2], dtype=w.dtype, device=w.device)
    sign = msign(cap * identity - torch.bmm(direction.mT, w))
    correction = torch.bmm(w - cap * direction, identity - sign) / 2
    matters = norm(correction) > 1e-6 * norm(w)
    capped = w - torch.where(matters, correction, 0.0)
    return like(capped, work).to(weight_blocks.dtype)


def spectral_normalise(weight_blocks: Tensor, cap: float) -> Tensor:
    """Scale matrices down whose largest singular value is above cap; the others stay bit for bit."""
    work = widened(weight_blocks)
    if not work.numel():
        return weight_blocks
    top = top_triple(work)[1]
    return (work * (cap / torch.maximum(top, per_block(cap, top)))).to(weight_blocks.dtype)


def hammer(weight_blocks: Tensor, cap: float) -> Tensor:
    """Set the largest singular value to cap where it is above; the others stay."""
    work = widened(weight_blocks)
    if not work.numel():
        return weight_blocks
    left, top, right = top_triple(work)
    return (work - (top - cap).clamp(min=0) * torch.bmm(left, right.mT)).to(weight_blocks.dtype)


def soft_cap(weight_blocks: Tensor, cap: float) -> Tensor:
    """Every singular value s becomes `p(s)`, an odd polynomial near s that takes the largest one to cap.

    `x = s - a s^3, p(s) = x + a x^3`, the soft cap of arXiv 2507.13338. There `a` follows from lr and weight decay,
    which bound the largest singular value k beforehand; here k is measured, so that any rule may take the step, and `a`
    is the same root of p(k) = cap: with t = a k^2, `1 - 3 t^2 + 3 t^3 - t^4 = cap / k`. p rises on [0, k] up to
    k = 1.3 cap; matrices further out, which one step does not make, are scaled down to that first.
    """
    work = widened(weight_blocks)
    if not work.numel():
        return weight_blocks
    top = top_triple(work)[1]
    near = torch.minimum(top, per_block(SOFT_REACH * cap, top))
    x = wide(work * (near / nonzero(top)))
    ratio = (cap / nonzero(near)).clamp(max=1.0)
    t = ((1 - ratio) / 3).sqrt()
    for _ in range(8):  # Newton's method from below; the function falls on [0, 1] and its slope is 0 only at 0
        error = 1 - 3 * t**2 + 3 * t**3 - t**4 - ratio
        t = t + error / nonzero(6 * t - 9 * t**2 + 4 * t**3)
    strength = t / nonzero(near).square()
    once = x - strength * torch.bmm(torch.bmm(x, x.mT), x)
    twice = once + strength * torch.bmm(torch.bmm(once, once.mT), once)
    return like(torch.where(top > cap, twice, wide(work)), work).to(weight_blocks.dtype)


METHODS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "hard": hard_cap,
    "soft": soft_cap,
    "normalise": spectral_normalise,
    "hammer": hammer,
}
"""Name -> function(weight_blocks, cap)."""


def msign(blocks: Tensor) -> Tensor:
    """Polar factor by `root_schedule` (Polar Express, extended), see `POLAR_STEPS` for how far it converges."""
    return newton_schulz(frobenius(blocks, blocks.dtype), root_schedule(POLAR_STEPS[blocks.dtype]))


def top_triple(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular value and its vectors, by `SQUARINGS` squarings of the Gram matrix of the short side.

    The value is never overestimated beyond rounding. When the second is as large, the vectors are a mixture of both.

    Returns:
        (batch, rows, 1), (batch, 1, 1), (batch, cols, 1); zeros for a matrix of zeros.
    """
    x = wide(blocks)
    unit = frobenius(x, x.dtype)
    gram = power = torch.bmm(unit, unit.mT)
    for _ in range(SQUARINGS):
        power = torch.bmm(power, power)
        power = power / nonzero(norm(power))
    column = power.diagonal(dim1=1, dim2=2).argmax(1)
    vector = power.gather(2, column[:, None, None].expand(-1, power.shape[1], 1))
    vector = torch.bmm(gram, vector / nonzero(norm(vector)))
    near = vector / nonzero(norm(vector))
    other = torch.bmm(x.mT, near)
    top = norm(other)
    far = other / nonzero(top)
    return (near, top, far) if x.shape == blocks.shape else (far, top, near)
