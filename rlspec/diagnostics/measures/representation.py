"""The geometry of hidden states: one number each for a cloud of points (N, width)."""

from __future__ import annotations

import torch
from torch import Tensor

_FLOOR = 1e-7  # RankMe's, added to every share


def rankme(states: Tensor) -> float:
    """`exp(-sum p log p)`, p = s_i / sum s + 1e-7 of the uncentred states (RankMe, arXiv 2210.02885)."""
    values = torch.linalg.svdvals(states.double())
    share = values / values.sum().clamp(min=1e-300) + _FLOOR
    return float((-(share * share.log()).sum()).exp())


def alpha_req(states: Tensor) -> float:
    """Exponent of the covariance's eigenvalues, `l_i ~ i^-alpha`, fitted on their middle four fifths (alpha-ReQ).

    About 1 is critical; larger ones mean that fewer directions matter. NaN where there are fewer than three eigenvalues
    to fit.
    """
    centred = states.double() - states.double().mean(0)
    values = torch.linalg.svdvals(centred).square()
    values = values[values > 1e-12 * values.max()] if len(values) else values
    first, last = max(1, round(0.1 * len(values))), round(0.9 * len(values))
    if last - first < 3:
        return float("nan")
    places = torch.arange(first + 1, last + 1, dtype=torch.float64, device=values.device).log()
    logs = values[first:last].log()
    slope = ((places - places.mean()) * (logs - logs.mean())).sum() / (places - places.mean()).square().sum()
    return -float(slope)


def diffusion_entropy(states: Tensor, sigma: float) -> float:
    """Entropy in bits of the diffusion operator's eigenvalues, in [0, log2(N - 1)] (arXiv 2312.04823).

    Gaussian affinities of standard deviation `sigma`, made anisotropic by their degrees; the largest eigenvalue, which
    is always there, is left out. Identical points have 0, points far apart log2(N - 1).
    """
    if len(states) < 2:
        return 0.0
    affinity = (-torch.cdist(states.double(), states.double()).square() / (2 * sigma**2)).exp()
    root = affinity.sum(1).rsqrt()
    values = torch.linalg.eigvalsh(affinity * root[:, None] * root).abs().sort(descending=True).values[1:]
    total = values.sum()
    if float(total) < 1e-9:
        return 0.0
    share = values / total + torch.finfo(torch.float64).eps
    return float(-(share * share.log2()).sum())


def diffusion_information(states: Tensor, labels: Tensor, sigma: float, *, seed: int = 0) -> float:
    """Bits that a label tells of the states: entropy of as many random states less that of the label's, by frequency.

    Subsets of one size, because the entropy grows with the number of points. NaN where no label has three states, or
    there is only one label.
    """
    kinds, counts = labels.unique(return_counts=True)
    chosen = [(kind, int(count)) for kind, count in zip(kinds, counts, strict=True) if count >= 3]
    if not chosen or len(kinds) < 2:
        return float("nan")
    generator = torch.Generator().manual_seed(seed)
    total = sum(count for _, count in chosen)
    found = 0.0
    for kind, count in chosen:
        others = torch.randperm(len(states), generator=generator)[:count].to(states.device)
        gap = diffusion_entropy(states[others], sigma) - diffusion_entropy(states[labels == kind], sigma)
        found += gap * count / total
    return found


def matrix_nuclear_norm(states: Tensor) -> float:
    """Sum of the largest min(N, width) column norms over N, of centred states of unit length (arXiv 2410.10672).

    It stands for the nuclear norm without a decomposition: large where states spread over many directions.
    """
    unit = torch.nn.functional.normalize(states.double() - states.double().mean(0), dim=1)
    norms = unit.norm(dim=0).sort(descending=True).values[: min(unit.shape)]
    return float(norms.sum()) / len(states)


def median_distance(states: Tensor) -> float:
    """Between two different points."""
    return float(torch.pdist(states.double()).median()) if len(states) > 1 else 1.0
