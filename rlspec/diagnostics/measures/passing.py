"""What each filter of the optimizers passes: of spectra by its transfer curve, of matrices by its iterations."""

from __future__ import annotations

import torch
from torch import Tensor

from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.kernels.schedules import Schedule, high_pass_schedule, keller, transfer
from rlspec.optim.stages.filters import auto_schedule, gate_threshold

NS_STEPS = 5
HIGH_PASS: tuple[Schedule, ...] = tuple(high_pass_schedule(steps, NS_STEPS) for steps in range(NS_STEPS + 1))
AUTO, ADAMW, MUON = "auto", "adamw", "muon"

SCHEDULES: dict[str, Schedule] = {
    "k_p=0": HIGH_PASS[0],
    "k_p=1": HIGH_PASS[1],
    "k_p=2": HIGH_PASS[2],
    "k_p=3": HIGH_PASS[3],
    MUON: keller(NS_STEPS),
}
"""Filter -> what happens to singular values over the Frobenius norm."""

SPECTRAL: tuple[str, ...] = ("k_p=0", "k_p=1", "k_p=2", "k_p=3", AUTO, MUON)
"""From the most closed to the most open; `auto` is one of the k_p for each block."""


def auto_steps(values: Tensor) -> Tensor:
    """Smallest k_p whose gate lets the largest of normalised singular values pass: (..., n) -> (...)."""
    top = values.amax(-1)
    return torch.stack([top <= gate_threshold(steps) for steps in range(NS_STEPS)]).sum(0)


def normalised(values: Tensor) -> Tensor:
    """Singular values over the Frobenius norm; zeros stay."""
    norm = values.norm(dim=-1, keepdim=True)
    return values / torch.where(norm > 0, norm, 1.0)


def pass_energy(values: Tensor, name: str) -> Tensor:
    """Directions that pass: the sum of squares of what a filter makes of singular values, (..., n) -> (...)."""
    unit = normalised(values)
    if name != AUTO:
        return transfer(unit, SCHEDULES[name]).square().sum(-1)
    every = torch.stack([transfer(unit, schedule).square().sum(-1) for schedule in HIGH_PASS])
    return every.gather(0, auto_steps(unit)[None])[0]


def filtered(blocks: Tensor, name: str) -> Tensor:
    """The direction of an update, without its length: (batch, rows, cols) -> the same, float32.

    AdamW's is that of its first step, the sign.
    """
    if name == ADAMW:
        return blocks.float().sign()
    unit = frobenius(blocks, torch.float32)
    return newton_schulz(unit, auto_schedule(unit, NS_STEPS) if name == AUTO else SCHEDULES[name])
