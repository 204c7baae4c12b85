"""How heavy the tail of a weight matrix's spectrum is: the exponent of a power law, free of the matrix's shape.

Trained layers have heavier tails (smaller exponents) than random ones. A plain fit to all eigenvalues also goes by the
aspect ratio; FARMS (fixed-aspect-ratio matrix subsampling, arXiv 2506.06280) fits those of submatrices of one shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TailFit:
    """A power law `x^-alpha` above `smallest`.

    Attributes:
        alpha: exponent of the density.
        smallest: where the tail begins, the median.
        distance: largest gap between the tail's distribution and the fit (Kolmogorov and Smirnov).
    """

    alpha: float
    smallest: float
    distance: float


_ROUNDING = 1e-9  # of the largest eigenvalue: below it, singular values of float32 weights are rounding


def hill(values: Tensor) -> TailFit:
    """Hill's estimate on the upper half of positive values (n,): `alpha = 1 + k / sum log(x_i / x_min)`."""
    ordered = values.double().flatten().sort().values
    tail = ordered[len(ordered) // 2 :]
    tail = tail[tail > _ROUNDING * tail[-1:].clamp(min=0)]
    if len(tail) < 2 or bool(tail[0] == tail[-1]):
        return TailFit(float("nan"), float("nan"), float("nan"))
    logs = (tail / tail[0]).log()
    alpha = 1 + len(tail) / float(logs.sum())
    fitted = 1 - (-(alpha - 1) * logs).exp()
    steps = torch.arange(len(tail) + 1, dtype=torch.float64, device=tail.device) / len(tail)
    distance = torch.maximum((steps[1:] - fitted).abs(), (fitted - steps[:-1]).abs()).max()
    return TailFit(alpha, float(tail[0]), float(distance))


def eigenvalues(matrix: Tensor) -> Tensor:
    """Of `W^T W`, those that need not be zero: (rows, cols) -> (min(rows, cols),)."""
    return torch.linalg.svdvals(matrix.double()).square()


def farms(matrix: Tensor, *, rows: int = 100, ratio: int = 2, windows: int = 10) -> TailFit:
    """The fit to the eigenvalues of all windows of shape (rows, ratio * rows) together.

    Args:
        matrix: (rows, cols); the long side becomes the columns.
        rows: of a window; fewer where the matrix has no room for them.
        ratio: columns of a window over its rows.
        windows: along each side, evenly spread, overlapping where they must.
    """
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    rows = min(rows, wide.shape[0], wide.shape[1] // ratio)
    if rows < 2:
        return hill(eigenvalues(wide))
    cols = ratio * rows
    tops, lefts = (_starts(whole - part, windows) for whole, part in ((wide.shape[0], rows), (wide.shape[1], cols)))
    pooled = [torch.linalg.svdvals(wide[top : top + rows, left : left + cols]) for top in tops for left in lefts]
    return hill(torch.cat(pooled).square())


def _starts(room: int, count: int) -> list[int]:
    return sorted({round(room * index / max(1, count - 1)) for index in range(count)})
