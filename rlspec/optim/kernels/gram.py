"""Newton-Schulz iterations on the short side of a matrix, with symmetric products computed once.

The square matrices of an iteration `X <- (a I + b R + c R R) X`, `R = X X^T`, are polynomials in the first `R`: they
are symmetric and commute, so every product of two of them is symmetric too. `symmetric_product` computes the upper
triangle of such a product in blocks and mirrors it. The Gram iteration follows `R` and the product `Q` of the
polynomials, both of the short side, and touches X only at its start and end, which saves work the more rectangular X
is (the idea of https://github.com/Dao-AILab/gram-newton-schulz; see `multiply_adds` for the counts).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from rlspec.optim.kernels.blocks import flushed, like, wide

Coefficient = float | Tensor
AnyCoefficients = tuple[Coefficient, Coefficient, Coefficient]
"""a, b, c of a step; tensors are (batch, 1, 1), one value for each block."""

_SMALLEST_SYMMETRIC = 256
"""Short side from which a triangle costs less than the whole product, measured on AVX2 with one and two threads."""


def triangle_levels(size: int) -> int:
    """How often a symmetric product of that size is halved: 0 computes it whole.

    Blocks stay at 64 rows or more (128 below a size of 512), and a size that is not even is not cut.
    """
    if size < _SMALLEST_SYMMETRIC:
        return 0
    smallest, levels = 64 if size >= 512 else 128, 0
    while size % 2 == 0 and size // 2 >= smallest:
        size, levels = size // 2, levels + 1
    return levels


def symmetric_share(size: int) -> float:
    """Share of the operations of a whole product that a cut one does: 1/2 + 1/2^(levels + 1)."""
    return 0.5 + 0.5 ** (triangle_levels(size) + 1)


def cuts(blocks: Tensor) -> bool:
    """Whether symmetric products of such a tensor are cut at all: those in half precision are not.

    They run on matrix units so fast that the copies would cost what they save (on CUDA a guess, not measured).
    """
    return blocks.dtype in (torch.float32, torch.float64)


def symmetric_product(
    left: Tensor, right: Tensor, base: Tensor | None = None, beta: Coefficient = 1.0, alpha: Coefficient = 1.0
) -> Tensor:
    """`beta base + alpha left right^T`, where that product is known to be symmetric.

    Args:
        left: (batch, rows, inner), of any strides.
        right: like `left`; the same tensor, or a symmetric one that commutes with it.
        base: (batch, rows, rows), symmetric.
        beta: its factor; 0 leaves it out.
        alpha: the product's factor.

    Returns:
        (batch, rows, rows), a new tensor.
    """
    batch, rows, _ = left.shape
    levels = triangle_levels(rows) if cuts(left) else 0
    if base is not None and isinstance(beta, float) and beta == 0.0:
        base = None
    if levels == 0:
        return flushed(_product(left, right, base, beta, alpha))
    out, size = left.new_empty(batch, rows, rows), rows
    for _ in range(levels):
        # The blocks above the diagonal that this halving leaves, for all pairs in one batch.
        size //= 2
        upper = None if base is None else _as_batch(_off_diagonal(base, size, 0, 1))
        part = _block_products(left, right, upper, beta, alpha, size, (0, 1, 2))
        _off_diagonal(out, size, 0, 1).copy_(part)
        _off_diagonal(out, size, 1, 0).copy_(part.transpose(1, 2))
    middle = None if base is None else _as_batch(_diagonal(base, size))
    _diagonal(out, size).copy_(_block_products(left, right, middle, beta, alpha, size, (0, 0, 1)))
    return flushed(out)


def _block_products(
    left: Tensor,
    right: Tensor,
    base: Tensor | None,
    beta: Coefficient,
    alpha: Coefficient,
    size: int,
    which: tuple[int, int, int],
) -> Tensor:
    """Products of row blocks `which` = (first of left, first of right, step): (batch, size, size, blocks)."""
    first, second, step = which
    if left.is_contiguous() and right.is_contiguous():
        rows = [x.view(-1, step, size, x.shape[-1])[:, start] for x, start in ((left, first), (right, second))]
        part = _product(rows[0], rows[1], base, beta, alpha).view(len(left), -1, size, size)
        return part.permute(0, 2, 3, 1)
    # The Gram matrix of a tall block's transpose: a loop over views is cheaper than a transposed copy.
    assert base is None
    lefts, rights = left.split(size, 1)[first::step], right.split(size, 1)[second::step]
    return torch.stack([_product(a, b, None, 1.0, alpha) for a, b in zip(lefts, rights, strict=True)], -1)


def _product(left: Tensor, right: Tensor, base: Tensor | None, beta: Coefficient, alpha: Coefficient) -> Tensor:
    if isinstance(alpha, Tensor) or isinstance(beta, Tensor):
        product = torch.bmm(left, right.mT) * _per_item(alpha, len(left))
        return product if base is None else product.add_(base * _per_item(beta, len(left)))
    if base is not None:
        return torch.baddbmm(base, left, right.mT, beta=beta, alpha=alpha)
    product = torch.bmm(left, right.mT)
    return product if alpha == 1.0 else product.mul_(alpha)


def _per_item(coefficient: Coefficient, items: int) -> Coefficient:
    """A coefficient for each block, for each of the items that every block was cut into."""
    if not isinstance(coefficient, Tensor):
        return coefficient
    return coefficient.repeat_interleave(items // max(len(coefficient), 1), dim=0, output_size=items)


def _diagonal(square: Tensor, size: int) -> Tensor:
    """Blocks on the diagonal: view (batch, size, size, blocks)."""
    return square.unflatten(2, (-1, size)).unflatten(1, (-1, size)).diagonal(dim1=1, dim2=3)


def _off_diagonal(square: Tensor, size: int, row: int, col: int) -> Tensor:
    """Quarter (row, col) of each diagonal block of two times that size: view (batch, size, size, blocks)."""
    cut = square.unflatten(2, (-1, 2, size)).unflatten(1, (-1, 2, size))
    return cut[:, :, row, :, :, col].diagonal(dim1=1, dim2=3)


def _as_batch(blocks: Tensor) -> Tensor:
    """(batch, size, size, blocks) -> (batch blocks, size, size)."""
    return blocks.permute(0, 3, 1, 2).reshape(-1, *blocks.shape[1:3])


def gram_iteration(
    blocks: Tensor, schedule: Sequence[AnyCoefficients], restarts: Collection[int] = (), gram: Tensor | None = None
) -> Tensor:
    """Run a schedule through the Gram matrix of the short side.

    Args:
        blocks: (batch, rows, cols), normalised.
        schedule: coefficients per step.
        restarts: numbers of steps after which X is formed and its Gram matrix computed anew, see `restart_steps`.
        gram: `short_gram(blocks)`, if it is known already.

    Returns:
        (batch, rows, cols).
    """
    gram = short_gram(blocks) if gram is None else gram
    total: Tensor | None = None
    for number, (a, b, c) in enumerate(schedule, start=1):
        polynomial = symmetric_product(gram, gram, gram, b, c)
        total = _plus_identity(polynomial, a) if total is None else symmetric_product(total, polynomial, total, a)
        if number == len(schedule):
            break
        if number in restarts:
            blocks = _apply(total, blocks)
            gram, total = short_gram(blocks), None
        else:
            half = symmetric_product(gram, polynomial, gram, a)
            gram = symmetric_product(half, polynomial, half, a)
    return blocks if total is None else _apply(total, blocks)


def short_gram(blocks: Tensor) -> Tensor:
    """X X^T or X^T X, whichever is smaller: (batch, rows, cols) -> (batch, short, short)."""
    x = wide(blocks)
    return symmetric_product(x, x)


def _apply(square: Tensor, blocks: Tensor) -> Tensor:
    """Multiply by a symmetric matrix on the short side."""
    return flushed(torch.bmm(blocks, square) if blocks.shape[-2] > blocks.shape[-1] else torch.bmm(square, blocks))


def _plus_identity(square: Tensor, a: Coefficient) -> Tensor:
    if isinstance(a, float) and a == 0.0:
        return square
    shifted = square.clone()
    shifted.diagonal(dim1=1, dim2=2).add_(a.squeeze(-1) if isinstance(a, Tensor) else a)
    return shifted


def standard_iteration(blocks: Tensor, schedule: Sequence[AnyCoefficients], gram: Tensor | None = None) -> Tensor:
    """The same through X in every step; in half precision these are exactly torch.optim.Muon's operations."""
    x = wide(blocks)
    for a, b, c in schedule:
        gram = symmetric_product(x, x) if gram is None else gram
        polynomial = symmetric_product(gram, gram, gram, b, c)
        gram = None
        if isinstance(a, Tensor):
            x = torch.bmm(polynomial, x).add_(a * x)
        elif a == 0.0:
            x = flushed(torch.bmm(polynomial, x))
        else:
            x = torch.baddbmm(x, polynomial, x, beta=a)
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

        float64    Keller 5e-14 | 1e-13    Polar Express 8e-14 | 3e-13    Pion k_p=5 3e-15 | 3e-15
        float32    Keller 9e-6  | 1e-3     Polar Express 2e-5  | 2e-3     Pion k_p=5 4e-7  | 2e-5
        float16    Keller .03   | .03      Polar Express .04   | .09      Pion k_p=5 2e-3  | 4e-3
        bfloat16   Keller .2    | -        Polar Express .3    | -        Pion k_p=3 3e-3  | 6e-3

    (-: Gram saves nothing and is not chosen.) A 64 x 256 Gaussian matrix has 3e-5 in float32 for Keller and 5e-5
    for Polar Express.
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
