"""`what=curvature`: the Hessian's trace, bulk and outliers, and how sharp the loss is along the steps of the rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlspec.diagnostics.measures.lanczos import Ritz, bulk_edges, density, lanczos, pooled, probe, trace
from rlspec.diagnostics.result import StudyResult, Table, watched
from rlspec.diagnostics.subject import Part, Subject, load_weights
from rlspec.errors import ConfigError
from rlspec.optim import build_optimizer

STEPS, PROBES, PARTS = 20, 2, 4
"""Lanczos steps for each of the probes, and the parts of the loss that are looked at."""

RULES = {"adamw": {}, "muon": {}, "pion": {"promotion_steps": "auto"}, "sgd": {}}
_MEMORY = 2**31  # bytes of the Lanczos basis


def study(subject: Subject) -> StudyResult:
    """Of the loss on the first parts, with respect to the matrices that are looked at and all vectors."""
    hessian = Hessian(subject, subject.parts[:PARTS])
    steps = min(STEPS, _MEMORY // (4 * hessian.size))
    if steps < 5:
        raise ConfigError(f"curvature: {hessian.size:,} parameters leave no room for Lanczos vectors; give role=NAME")
    generator = torch.Generator().manual_seed(0)
    starts = [probe(hessian.size, generator, hessian.flat) for _ in range(PROBES)]
    found = [lanczos(hessian.product, start, steps) for start in starts]
    ritz = pooled(found)
    low, high = bulk_edges(ritz)
    total, error = trace(found, hessian.size)
    above, below = ([each for each in ritz.values.tolist() if test(each)] for test in (high.__lt__, low.__gt__))
    summary = {
        "parameters": hessian.size, "trace": total, "+-": error, "largest": float(ritz.values.max()),
        "smallest": float(ritz.values.min()), "bulk from": low, "bulk to": high,
        "outliers above": len(above), "below": len(below),
    }  # fmt: skip
    rows = _along_steps(subject, hessian)
    tables = [
        Table(f"Hessian of the loss on {len(hessian.parts)} {subject.unit}", [summary]),
        Table("along the step of each rule (its state fresh), and along the gradient", rows),
    ]
    notes = [
        f"bulk: median -+ 5 median absolute deviations of the density, from {PROBES} probes of {steps} Lanczos steps; "
        "outliers: Ritz values beyond, of all probes",
        "sharpness: d H d / d d along the step d. largest rate: at which the second-order loss along d is lowest, "
        "-g d / d H d; - where it falls without end. A policy gradient's surrogate has no lowest point: "
        "negative curvature is usual there",
    ]
    numbers = {"ritz": ritz.values.tolist(), "weights": ritz.weights.tolist(), "steps": rows, "summary": summary}
    return StudyResult(tables, notes, numbers, _drawing(ritz, (low, high), rows), (13.0, 4.4))


@dataclass
class Hessian:
    """Products with the Hessian of the mean loss of some parts."""

    subject: Subject
    parts: Sequence[Part]

    def __post_init__(self) -> None:
        chosen = self.subject.parameters()
        if self.subject.role is not None:
            names = {spec.name for spec in self.subject.specs()}
            chosen = {name: value for name, value in chosen.items() if name in names}
        self.params = chosen
        self.size = sum(value.numel() for value in chosen.values())
        self.flat = self.gradient()

    def product(self, vector: Tensor) -> Tensor:
        """`H v` for a vector (n,), by two backward passes of each part."""
        total = torch.zeros_like(vector)
        for part in watched(self.parts, self.subject.display, "curvature: products"):
            first = self._gradient(part, graph=True)
            if first.requires_grad:
                total += self._flat(self._derivative(first @ vector)).detach()
        return total / len(self.parts)

    def gradient(self) -> Tensor:
        """The mean loss's, (n,).

        Raises:
            CheckpointError: A part's is not finite.
            DataError: All are zero.
        """
        found = [self._gradient(part, graph=False).detach() for part in self.parts]
        for part, each in zip(self.parts, found, strict=True):
            self.subject.check_finite("the loss", each, part)
        if not any(bool(each.any()) for each in found):
            raise self.subject.no_gradient()
        return torch.stack(found).mean(0)

    def _gradient(self, part: Part, *, graph: bool) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            return self._flat(self._derivative(self.subject.loss(part.batch), graph=graph))

    def _derivative(self, value: Tensor, *, graph: bool = False) -> Sequence[Tensor | None]:
        params = list(self.params.values())
        found: Sequence[Tensor | None] = torch.autograd.grad(value, params, create_graph=graph, allow_unused=True)
        return found

    def _flat(self, values: Sequence[Tensor | None]) -> Tensor:
        pairs = zip(self.params.values(), values, strict=True)
        return torch.cat([(torch.zeros_like(param) if value is None else value).flatten() for param, value in pairs])


def _along_steps(subject: Subject, hessian: Hessian) -> list[dict[str, Any]]:
    builders: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {"the recipe's": subject.optimizer}
    builders |= {name: partial(build_optimizer, rule=name, lr=1.0, **options) for name, options in RULES.items()}  # type: ignore[arg-type]
    directions = {name: step_of(hessian, build, subject.model) for name, build in builders.items()}
    directions = {name: value for name, value in directions.items() if name == "the recipe's" or bool(value.any())}
    if (moved := _movement(subject, hessian)) is not None:
        directions["the run's last"] = moved
    return [
        _sharpness(name, direction, hessian)
        for name, direction in watched(list(directions.items()), subject.display, "curvature: steps")
    ]


def step_of(hessian: Hessian, build: Callable[[nn.Module], torch.optim.Optimizer], model: nn.Module) -> Tensor:
    """What one step of an optimizer with fresh state adds to the parameters per unit of learning rate, (n,)."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = build(model)
    rate = max(float(group["lr"]) for group in optimizer.param_groups)
    start = 0
    for param in hessian.params.values():
        param.grad = hessian.flat[start : start + param.numel()].view_as(param).clone()
        start += param.numel()
    try:
        optimizer.step()
        return torch.cat([(value.detach() - before[name]).flatten() / rate for name, value in hessian.params.items()])
    finally:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(before[name])
                value.grad = None


def _movement(subject: Subject, hessian: Hessian) -> Tensor | None:
    """From the checkpoint before the newest to the newest; None where there are not two."""
    folders = list(subject.checkpoints.values())[-2:]
    if len(folders) < 2:
        return None
    before = {name: value.detach().clone() for name, value in subject.model.named_parameters()}
    ends = []
    for folder in folders:
        load_weights(subject.model, folder)
        ends.append(torch.cat([value.detach().flatten() for value in hessian.params.values()]))
    with torch.no_grad():
        for name, value in subject.model.named_parameters():
            value.copy_(before[name])
    return ends[1] - ends[0]


def _sharpness(name: str, direction: Tensor, hessian: Hessian) -> dict[str, Any]:
    length, slope = float(direction.norm()), float(hessian.flat @ direction)
    if length == 0:
        return {
            "step": f"{name}: none",
            "rms": 0.0,
            "cosine to -g": math.nan,
            "sharpness": math.nan,
            "largest rate": math.nan,
        }
    unit = direction / length
    bend = float(unit @ hessian.product(unit))
    cosine = -slope / (length * float(hessian.flat.norm()) or math.nan)
    best = -slope / (bend * length**2) if bend > 0 and slope < 0 else math.nan
    return {
        "step": name, "rms": length / direction.numel() ** 0.5, "cosine to -g": cosine, "sharpness": bend,
        "largest rate": best,
    }  # fmt: skip


def _drawing(ritz: Ritz, edges: tuple[float, float], rows: Sequence[Mapping[str, Any]]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        spread = float(ritz.values.max() - ritz.values.min()) or 1.0
        points = torch.linspace(
            float(ritz.values.min()) - 0.05 * spread, float(ritz.values.max()) + 0.05 * spread, 1000
        )
        left.semilogy(points.numpy(), density(ritz, points.double(), 0.01 * spread).clamp(min=1e-12).numpy())
        left.plot(ritz.values.numpy(), [2e-12] * len(ritz.values), "|", color="k", ms=8, label="Ritz values")
        for edge in edges:
            left.axvline(edge, color="0.4", lw=0.8, ls=":")
        left.set(xlabel="eigenvalue", ylabel="density", ylim=(1e-12, None))
        left.set_title("spectrum of the Hessian; dotted: the ends of the bulk", fontsize=10)
        left.legend(fontsize=7)
        known = [row for row in rows if not math.isnan(row["sharpness"])]
        right.barh([row["step"] for row in known], [row["sharpness"] for row in known], color="C0")
        right.invert_yaxis()
        right.set_title("sharpness along steps, d H d / d d", fontsize=10)
        right.axvline(0, color="0.3", lw=0.8)
        for axis in (left, right):
            axis.grid(alpha=0.3)

    return draw
