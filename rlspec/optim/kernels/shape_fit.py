"""A quintic for blocks of one shape, as ROOT fits it (arXiv 2511.20626); its authors print those of four shapes.

The singular values of a Gaussian block over its Frobenius norm lie where Marchenko and Pastur's law says: near
[1 - r, 1 + r] / sqrt(rows) with r = sqrt(rows / cols). A quintic for those alone may do anything to a block of low
rank, so half of the weight lies on all of [0.01, 1].
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from rlspec.optim.kernels.schedules import KELLER, Coefficients, transfer

_POINTS = 200
_STARTS: tuple[Coefficients, ...] = (KELLER, (3.2, -4.0, 1.7), (2.9, -3.6, 1.6), (2.6, -3.0, 1.4))
_FLOOR = 0.01
_ROUNDS = 200


def gaussian_singular_values(short: int, long: int, points: int = _POINTS) -> Tensor:
    """Quantiles of the singular values of Gaussian blocks over their Frobenius norm, ascending: (points,), float64."""
    r = math.sqrt(short / long)
    low, high = (1 - r) ** 2, (1 + r) ** 2
    angle = (torch.arange(4000, dtype=torch.float64) + 0.5) * (math.pi / 2 / 4000)
    square = low + (high - low) * angle.sin() ** 2
    # The density's square roots at both ends are smooth in the angle.
    mass = ((angle.sin() * angle.cos()) ** 2 / square).cumsum(0)
    wanted = (torch.arange(points, dtype=torch.float64) + 0.5) / points * mass[-1]
    return (square[torch.searchsorted(mass, wanted)].sqrt() / math.sqrt(short)).clamp(max=1.0)


@cache
def fit_quintic(short: int, long: int, steps: int) -> Coefficients:
    """Coefficients whose `steps` steps bring a block's singular values closest to 1, in mean square.

    Takes about a tenth of a second. Never worse than Keller Jordan's, from which it starts.
    """
    spread = torch.logspace(math.log10(_FLOOR), 0, _POINTS, dtype=torch.float64)
    values = torch.cat([gaussian_singular_values(short, long), spread])
    fits = [_levenberg_marquardt(values, start, steps) for start in _STARTS]
    a, b, c = min(fits, key=lambda fit: _loss(values, fit, steps)).tolist()
    return a, b, c


def _loss(values: Tensor, coefficients: Tensor, steps: int) -> float:
    a, b, c = coefficients.tolist()
    loss = float((transfer(values, ((a, b, c),) * steps) - 1).square().mean())
    return loss if math.isfinite(loss) else math.inf


def _levenberg_marquardt(values: Tensor, start: Coefficients, steps: int) -> Tensor:
    """Least squares in three unknowns. A step that diverges is a worse one, and is not taken."""
    found, damping = torch.tensor(start, dtype=torch.float64), 1e-3
    loss = _loss(values, found, steps)
    for _ in range(_ROUNDS):
        residual, jacobian = _linearised(values, found, steps)
        normal = jacobian.mT @ jacobian
        damped = normal + damping * normal.diagonal().diag()
        trial = found - torch.linalg.solve(damped, jacobian.mT @ residual)
        trial_loss = _loss(values, trial, steps)
        if trial_loss < loss:
            settled = loss - trial_loss < 1e-10 * loss
            found, loss, damping = trial, trial_loss, damping / 3
            if settled:
                break
        else:
            damping *= 4
            if damping > 1e12:
                break
    return found


def _linearised(values: Tensor, coefficients: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Residuals (points,) and their derivatives by the coefficients (points, 3)."""
    a, b, c = coefficients
    x, slope = values, torch.zeros(len(values), 3, dtype=torch.float64)
    for _ in range(steps):
        powers = torch.stack([x, x**3, x**5], dim=1)
        slope = powers + (a + 3 * b * x**2 + 5 * c * x**4)[:, None] * slope
        x = powers @ coefficients
    return x - 1, slope
