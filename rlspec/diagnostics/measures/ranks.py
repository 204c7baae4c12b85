"""How many directions a matrix has, by its singular values: four answers to one question.

All take singular values (..., n) >= 0 in any order and are unchanged by a common factor. A partial isometry of rank r
has rank r by each of them; a spectrum of zeros has rank 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_EXACT = 1 << 21
"""Values of a block up to which its singular values are computed exactly; of larger ones from the Gram matrix."""


def singular_values(blocks: Tensor) -> Tensor:
    """Singular values in float64, descending: (..., rows, cols) -> (..., min(rows, cols)).

    Of a block above `LARGEST_EXACT` values by the eigenvalues of its short side's Gram matrix: exact to 1e-8 of the
    largest one, which ranks do not feel.
    """
    rows, cols = blocks.shape[-2:]
    if rows * cols <= LARGEST_EXACT:
        return torch.linalg.svdvals(blocks.double())
    wide = blocks.double()
    gram = wide @ wide.mT if rows <= cols else wide.mT @ wide
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(-1)


def stable_rank(values: Tensor) -> Tensor:
    """`||A||_F^2 / s_1^2`, at least 1: how often the largest direction's energy fits into all."""
    top = values.amax(-1)
    return torch.where(top > 0, (values / _nonzero(top)[..., None]).square().sum(-1), 0.0)


def effective_rank(values: Tensor) -> Tensor:
    """`exp(-sum p log p)`, p = s_i / sum s (Roy and Vetterli 2007)."""
    return _perplexity(values)


def energy_rank(values: Tensor) -> Tensor:
    """The same with p = s_i^2 / sum s^2: small directions count by their energy alone."""
    return _perplexity(values.square())


def participation_ratio(energies: Tensor) -> Tensor:
    """`(sum l)^2 / sum l^2` of eigenvalues l >= 0: (..., n) -> (...)."""
    scaled = energies / _nonzero(energies.amax(-1))[..., None]
    return torch.where(energies.amax(-1) > 0, scaled.sum(-1).square() / _nonzero(scaled.square().sum(-1)), 0.0)


def utilisation(energies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of a space of n dimensions that variances l >= 0 along its principal axes make use of, in [0, 1].

    From "Spectral Scaling Laws in Language Models" (arXiv 2510.00537), there of the hidden layer of feed-forward parts.

    Args:
        energies: (..., n), eigenvalues of the covariance.

    Returns:
        hard (participation ratio over n), soft (perplexity over n), and their harmonic mean.
    """
    size = energies.shape[-1]
    hard, soft = participation_ratio(energies) / size, _perplexity(energies) / size
    return hard, soft, 2 * hard * soft / _nonzero(hard + soft)


def _perplexity(weights: Tensor) -> Tensor:
    total = weights.sum(-1, keepdim=True)
    share = weights / _nonzero(total)
    return torch.where(total[..., 0] > 0, torch.special.entr(share).sum(-1).exp(), 0.0)


def _nonzero(value: Tensor) -> Tensor:
    return torch.where(value > 0, value, 1.0)
