"""Newton-Schulz iterations on the short side of a matrix, with symmetric products computed once.

The square matrices of an iteration `X <- (a I + b R + c R R) X`, `R = X X^T`, are polynomials in the first `R`: they
are symmetric and commute, so every product of two of them is symmetric too. `symmetric_product` computes the upper
triangle of such a product in strips and mirrors it. The Gram iteration follows `R` and the product `Q` of the
polynomials, both of the short side, and touches X only at its start and end, which saves work the more rectangular X
is (the idea of https://github.com/Dao-AILab/gram-newton-schulz; see `multiply_adds` for the counts).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from rlspec.optim.kernels.blocks import flush_, like, multiplies_slowly, wide

Coefficient = float | Tensor
AnyCoefficients = tuple[Coefficient, Coefficient, Coefficient]
"""a, b, c of a step; tensors are (batch, 1, 1), one value for each block."""

_SMALLEST_SYMMETRIC = 256
"""Short side from which a triangle costs less than the whole product, measured on AVX2 and AVX-512."""
_PADDING = 16
"""Unused values at the end of each row: with rows a power of two apart, what is mirrored falls on a few cache lines."""


def strip_rows(size: int) -> int:
    """Rows of a strip of a symmetric product of that size; `size` computes it whole.

    Smaller strips multiply less but slower: these were the fastest on AVX-512, from 256 to 2048.
    """
    if size < _SMALLEST_SYMMETRIC:
        return size
    rows = max(min(size // 4, 128), size // 8)
    return -(-rows // 16) * 16


def symmetric_share(size: int) -> float:
    """Share of the operations of a whole product that a cut one does: above 1/2 by half of a strip's share."""
    rows = max(strip_rows(size), 1)
    strips = [(min(rows, size - start), size - start) for start in range(0, size, rows)]
    return sum(height * width for height, width in strips) / max(size * size, 1)


def cuts(blocks: Tensor) -> bool:
    """Whether symmetric products of such a tensor are cut at all: those in half precision are not.

    They run on matrix units so fast that the copies would cost what they save (on CUDA a guess, not measured).
    """
    return blocks.dtype in (torch.float32, torch.float64)


def symmetric_product(left: Tensor, right: Tensor, rounding: torch.dtype | None = None) -> Tensor:
    """`left right`, where that product is known to be symmetric.

    Args:
        left: (batch, rows, inner), of any strides.
        right: (batch, inner, rows): the transpose of `left`; or both are symmetric and commute.
        rounding: see `rounded_`.

    Returns:
        (batch, rows, rows), a new tensor, whose rows need not lie next to each other.
    """
    if multiplies_slowly(left):
        return symmetric_product(left.float(), right.float(), left.dtype).to(left.dtype)
    batch, size, _ = left.shape
    rows = strip_rows(size) if cuts(left) else size
    if rows >= size:
        return rounded_(torch.bmm(left, right), rounding)
    out = left.new_empty(batch, size, size + _PADDING)[:, :, :size]
    for start in range(0, size, rows):
        stop = start + rows
        strip = out[:, start:stop, start:]
        torch.bmm(left[:, start:stop], right[:, :, start:], out=strip)
        if stop < size:
            out[:, stop:, start:stop].copy_(strip[:, :, rows:].mT)
    return rounded_(out, rounding)


def rounded_(product: Tensor, rounding: torch.dtype | None) -> Tensor:
    """In place: without what is too small (`flush_`), and rounded to a narrower type in whose arithmetic it stands."""
    return flush_(product if rounding is None else product.copy_(product.to(rounding)))


def gram_iteration(
    blocks: Tensor,
    schedule: Sequence[AnyCoefficients],
    restarts: Collection[int] = (),
    gram: Tensor | None = None,
    rounding: torch.dtype | None = None,
) -> Tensor:
    """Run a schedule through the Gram matrix of the short side.

    Args:
        blocks: (batch, rows, cols), normalised.
        schedule: coefficients per step.
        restarts: numbers of steps after which X is formed and its Gram matrix computed anew, see `restart_steps`.
        gram: `short_gram(blocks)`, if it is known already.
        rounding: of every product, see `rounded_`.

    Returns:
        (batch, rows, cols).
    """
    gram = short_gram(blocks, rounding) if gram is None else gram
    total: Tensor | None = None
    for number, (a, b, c) in enumerate(schedule, start=1):
        polynomial = _polynomial(gram, a, b, c, rounding)
        total = polynomial if total is None else symmetric_product(total, polynomial, rounding)
        if number == len(schedule):
            break
        if number in restarts:
            blocks = _apply(total, blocks, rounding)
            gram, total = short_gram(blocks, rounding), None
        else:
            gram = symmetric_product(symmetric_product(gram, polynomial, rounding), polynomial, rounding)
    return blocks if total is None else _apply(total, blocks, rounding)


def short_gram(blocks: Tensor, rounding: torch.dtype | None = None) -> Tensor:
    """X X^T or X^T X, whichever is smaller: (batch, rows, cols) -> (batch, short, short)."""
    x = wide(blocks)
    return symmetric_product(x, x.mT, rounding)


def _polynomial(
    gram: Tensor, a: Coefficient, b: Coefficient, c: Coefficient, rounding: torch.dtype | None = None
) -> Tensor:
    """`a I + b R + c R R`, as `a I + R (b I + c R)`, for which nothing is copied but R."""
    return _add_identity(symmetric_product(gram, _add_identity(gram * c, b), rounding), a)


def _add_identity(square: Tensor, factor: Coefficient) -> Tensor:
    """In place."""
    square.diagonal(dim1=1, dim2=2).add_(factor.squeeze(-1) if isinstance(factor, Tensor) else factor)
    return square


def _apply(square: Tensor, blocks: Tensor, rounding: torch.dtype | None = None) -> Tensor:
    """Multiply by a symmetric matrix on the short side."""
    tall = blocks.shape[-2] > blocks.shape[-1]
    return rounded_(torch.bmm(blocks, square) if tall else torch.bmm(square, blocks), rounding)


def standard_iteration(
    blocks: Tensor,
    schedule: Sequence[AnyCoefficients],
    gram: Tensor | None = None,
    rounding: torch.dtype | None = None,
) -> Tensor:
    """The same through X in every step; in half precision these are exactly torch.optim.Muon's operations."""
    x = wide(blocks)
    for a, b, c in schedule:
        if cuts(x) or isinstance(a, Tensor) or isinstance(b, Tensor) or isinstance(c, Tensor):
            gram = short_gram(x, rounding) if gram is None else gram
            x = rounded_(torch.bmm(_polynomial(gram, a, b, c, rounding), x), rounding)
        else:
            gram = torch.bmm(x, x.mT) if gram is None else gram
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        gram = None
    return like(x, blocks)


_LIMITS = {torch.float64: 16.0, torch.float32: 160.0, torch.float16: 16.0, torch.bfloat16: 2.0}


def restart_steps(schedule: Sequence[AnyCoefficients], dtype: torch.dtype) -> tuple[int, ...]:
    """After which steps the Gram iteration must form X anew to stay accurate.

    R is known to eps ||R||, and a step multiplies its small eigenvalues by a^2, their errors too. So the product of the
    a^2 of the steps between two restarts (the last of them updates no R) is the amplification of rounding; it is kept
    below 16 in float64 and float16, 160 in float32, 2 in bfloat16. Steps between restarts are counted from the end, so
    that the first are few: small singular values suffer most before they have been lifted. For five steps: Keller and
    Polar Express after steps 1 and 3, in float32 after 2; Pion never in float32, whatever k_p, in bfloat16 after every
    promotion.

    Largest error in spectral norm against a float64 SVD, measured on log-uniform spectra down to 1e-7 (the hardest
    found), 64 x 256, five steps, as standard iteration | Gram iteration:

        float64    Keller 5e-14 | 5e-14   Polar Express 8e-14 | 8e-14   Pion k_p=5 3e-15 | 3e-15
        float32    Keller 2e-5  | 4e-5    Polar Express 2e-5  | 6e-5    Pion k_p=5 1e-6  | 3e-6
        float16    Keller .03   | .03     Polar Express .04   | .04     Pion k_p=5 2e-3  | 2e-3
        bfloat16   Keller .2    | -       Polar Express .3    | -       Pion k_p=3 2e-3  | 5e-3

    (-: Gram saves nothing and is not chosen.) At 256 x 512 the Gram iteration in float32 has 2e-4 and 3e-4, without its
    restart 3e-3 and 2e-2. What keeps it so close is that every product is one with `a I + b R + c R R` as a whole: with
    a times its other factor added afterwards instead, small singular values cancel, and errors are up to 20 times that.
    """
    limit, restarts, product = _LIMITS[dtype], [], 1.0
    for step in range(len(schedule) - 1, 0, -1):
        a = schedule[step - 1][0]
        # Coefficients that differ between blocks are Pion's, of which the promotion's is the largest.
        product *= 3.52 if isinstance(a, Tensor) else max(a * a, 1.0)
        if product > limit:
            restarts.append(step)
            product = 1.0
    return tuple(reversed(restarts))


def multiply_adds(rows: int, cols: int, steps: int, method: str, restarts: int = 0, *, cut: bool = True) -> float:
    """Multiply-adds of an iteration on one block.

    With m the short side, n the long one and s the share of a symmetric product that is computed (`symmetric_share`;
    1 without `cut`), the standard iteration takes steps (s m^2 n + s m^3 + m^2 n) and the Gram iteration
    (4 steps - 3 - 3 restarts) s m^3 + (1 + restarts)(1 + s) m^2 n. Five steps with s = 1 and no restart: 10 m^2 n +
    5 m^3 against 2 m^2 n + 17 m^3.
    """
    m, n = sorted((rows, cols))
    share = symmetric_share(m) if cut else 1.0
    if method == "standard":
        return steps * (share * m * m * n + share * m**3 + m * m * n)
    return (4 * steps - 3 - 3 * restarts) * share * m**3 + (1 + restarts) * (1 + share) * m * m * n
