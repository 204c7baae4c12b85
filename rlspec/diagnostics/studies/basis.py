"""`what=basis`: a learned spectral basis of hidden states: on how many smooth functions the model's states live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlspec.diagnostics.measures.learned_basis import captured, draw_probes, learn_basis
from rlspec.diagnostics.measures.ranks import effective_rank
from rlspec.diagnostics.measures.representation import median_distance
from rlspec.diagnostics.result import StudyResult, Table
from rlspec.diagnostics.studies.geometry import collect
from rlspec.diagnostics.subject import Subject
from rlspec.errors import ConfigError

FUNCTIONS, AXES, POINTS = 12, 16, 1024
"""Basis functions; principal axes that states are reduced to; states."""


def study(subject: Subject) -> StudyResult:
    """Learnt from three quarters of the states, judged on the rest."""
    states, labels, _ = collect(subject)
    if len(states) < 8 * FUNCTIONS:
        raise ConfigError(f"basis: {len(states)} states are too few for {FUNCTIONS} functions; give parts=N or size=N")
    points = principal(states[:POINTS].float().cpu(), AXES)
    split = 3 * len(points) // 4
    sigma = median_distance(points) / 2
    subject.display.line(f"learning a basis from {split} states")
    basis = learn_basis(points[:split], FUNCTIONS, sigma)
    probes = draw_probes(points[split:], 2048, sigma, torch.Generator().manual_seed(1))
    learnt = captured(basis(points[split:]), probes)
    linear = torch.cat([torch.ones(len(points) - split, 1), points[split:, : FUNCTIONS - 1]], 1)
    plain = captured(linear, probes)
    rows = [
        {
            "functions": k + 1,
            "eigenvalue": float(basis.eigenvalues[k]),
            "captured": float(learnt[k]),
            "linear": float(plain[min(k, len(plain) - 1)]),
        }
        for k in range(FUNCTIONS)
    ]
    notes = [
        f"captured: share of smooth random functions on {len(points) - split} unseen states that the first functions "
        "hold; linear: a constant and as many principal axes. What learnt ones hold beyond is how the states bend",
        f"the eigenvalues count for {float(effective_rank(basis.eigenvalues)):.1f} functions (effective rank); probes "
        f"vary over {sigma:.2f}, half the median distance",
    ]
    return StudyResult(
        [Table("learned spectral basis of the states before the output layer", rows)], notes, {"basis": rows},
        _drawing(rows, basis(points), labels[:POINTS].cpu()), (11.0, 4.4),
    )  # fmt: skip


def principal(states: Tensor, axes: int) -> Tensor:
    """Centred states on their first principal axes, of unit mean square length: (N, width) -> (N, at most axes)."""
    centred = states - states.mean(0)
    _, _, vh = torch.linalg.svd(centred, full_matrices=False)
    reduced = centred @ vh[:axes].T
    return reduced / reduced.square().sum(1).mean().sqrt().clamp(min=1e-12)


def _drawing(rows: list[dict[str, Any]], values: Tensor, labels: Tensor) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        count = [row["functions"] for row in rows]
        left.plot(count, [row["captured"] for row in rows], marker="o", label="learnt")
        left.plot(count, [row["linear"] for row in rows], marker="o", ls="--", label="linear")
        left.set(xlabel="functions", ylabel="energy of smooth functions, unseen states", ylim=(0, 1))
        left.grid(alpha=0.3)
        left.legend(fontsize=8)
        kinds, number = labels.unique(return_inverse=True)
        right.scatter(values[:, 1].numpy(), values[:, 2].numpy(), c=(number % 20).numpy(), cmap="tab20", s=6)
        right.set(xlabel="second function", ylabel="third function")
        right.set_title(f"states by label ({len(kinds)} tokens or tasks)", fontsize=10)

    return draw
