"""What is looked at in every logged training step, of language models and of robots' policies alike.

A probe is a function of the model that is trained and of its optimizer, after the step. To add one, write it here and
name it in `PROBES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import nn

from rlspec.optim import SpectralOptimizer
from rlspec.optim.mixin import optimizer_numbers
from rlspec.optim.sharding.shards import full

GATE = "gating_factor"
_KINDS = ("attention", "mlp", "lora", "vision:", "connector:", "language:", "action:")  # of roles, or of modality:role


@dataclass(frozen=True)
class Reading:
    """What a probe found."""

    numbers: dict[str, float]  # by their keys in metrics.jsonl
    panel: str = ""  # what the line of the step says of them


Probe = Callable[[nn.Module, SpectralOptimizer], Reading]


def updates(model: nn.Module, optimizer: SpectralOptimizer) -> Reading:
    """How far the step moved the weights of each role, and how much of its momentum passed the filter.

    Of the last step for which the optimizer was asked to collect telemetry.
    """
    telemetry = optimizer.telemetry()
    sizes = {kind: _mean_over_roles(telemetry, kind, "update_rms") for kind in _KINDS}
    shown = [f"{kind.rstrip(':')} {value:.3f}" for kind, value in sizes.items() if value is not None]
    parts = ["update/lr " + " ".join(shown)] if shown else []
    if (gated := _mean_over_roles(telemetry, "", "gated_share")) is not None:
        parts.append(f"gated {gated:.0%}")
    if zero := optimizer.zero_steps():
        parts.append(f"steps without gradient skipped: {zero}")
    return Reading(optimizer_numbers(optimizer), "  ".join(parts))


def _mean_over_roles(telemetry: Mapping[str, Mapping[str, float]], kind: str, name: str) -> float | None:
    values = [numbers[name] for role, numbers in telemetry.items() if role.startswith(kind) and name in numbers]
    return fmean(values) if values else None


def gates(model: nn.Module, optimizer: SpectralOptimizer) -> Reading:
    """How far the gates of a gated action head are open, as the mean of tanh, in [-1, 1]."""
    found = {name: value.detach() for name, value in model.named_parameters() if name.endswith(GATE)}
    return Reading(
        {f"gate/{name.removesuffix('.' + GATE)}": float(full(gate).tanh().mean()) for name, gate in found.items()}
    )


PROBES: tuple[Probe, ...] = (gates, updates)


def read_probes(model: nn.Module, optimizer: SpectralOptimizer, probes: Sequence[Probe] = PROBES) -> Reading:
    """All readings as one."""
    readings = [probe(model, optimizer) for probe in probes]
    numbers = {key: value for reading in readings for key, value in reading.numbers.items()}
    return Reading(numbers, "  ".join(reading.panel for reading in readings if reading.panel))
