"""Subjects with known gradients: the loss of a part is linear in the weights, so its gradient is what was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlspec.diagnostics.subject import Part, Subject
from rlspec.display import Display
from rlspec.optim import build_optimizer, symmetry_map


def given_gradients(gradients: Sequence[Tensor], *, role: str | None = None) -> Subject:
    """One linear layer; part k has gradient `gradients[k]` (out, in)."""
    rows, cols = gradients[0].shape
    model = nn.Sequential(nn.Linear(cols, rows, bias=False)).double()
    return Subject(
        title="made up",
        model=model,
        mapping=symmetry_map(model, rule="muon"),
        parts=[Part(gradient.double(), f"part {number}") for number, gradient in enumerate(gradients)],
        unit="parts",
        step_parts=len(gradients) // 2,
        loss=lambda gradient: (model[0].weight * gradient).sum(),
        represent=lambda gradient: (gradient, torch.zeros(len(gradient), dtype=torch.long)),
        optimizer=lambda each: build_optimizer(each, rule="muon", lr=0.1),
        display=Display("plain", quiet=True),
        role=role,
    )


def noisy(signal: Tensor, noise: float, parts: int, seed: int = 0) -> list[Tensor]:
    """The signal with independent noise whose expected squared Frobenius norm is `noise`."""
    generator = torch.Generator().manual_seed(seed)
    scale = (noise / signal.numel()) ** 0.5
    return [signal + scale * torch.randn(signal.shape, generator=generator, dtype=torch.float64) for _ in range(parts)]


def with_spectrum(values: Sequence[float], rows: int, cols: int, seed: int = 0) -> Tensor:
    """A matrix with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator, dtype=torch.float64))[0]
        for size in (rows, cols)
    )
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T
