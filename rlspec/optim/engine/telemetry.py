"""What an optimizer step did, by role: how far weights moved, and how much of the momentum passed the filter.

Numbers are computed only in steps for which they were asked; the one thing recorded in every step, without waiting for
the device, is whether any block of a role passed.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlspec.optim.kernels.krylov import top_singular, top_stable_rank
from rlspec.optim.kernels.layout import split_blocks
from rlspec.optim.stages.filters import pass_energy

GATED_ENERGY = 1e-4
"""A block whose pass energy is below this gets no update: its norm is under 1% of one passing direction's."""

Counts = Callable[[dict[str, Tensor]], dict[str, Tensor]]
Totals = Callable[[dict[str, dict[str, float]]], dict[str, dict[str, float]]]

LARGEST_MEASURED = 1 << 24
"""Values of a matrix up to which that of an elementwise rule is measured: embeddings are as large as all others."""


def _row_norms(values: Tensor) -> Tensor:
    """Of each row, in float32 or wider; more axes than two are columns, and less than two are one row.

    A float64 reduction of float32 values takes a CPU ten to thirty times longer.
    """
    rows = values.flatten(1) if values.ndim > 1 else values.reshape(1, -1)
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.promote_types(values.dtype, torch.float32))


class Recorder:
    """Accumulates a step's telemetry and the counts that outlive a step."""

    def __init__(self) -> None:
        self.collecting = False
        self._parts = False
        self.skipped: dict[str, int] = defaultdict(int)
        self._latest: dict[str, dict[str, float]] = {}
        self._sums: dict[str, dict[str, float]] = {}
        self._idle_steps: dict[str, Tensor] = {}
        self._passed: dict[str, Tensor] = {}
        self._warned = False
        self._zero_steps = 0
        self._still = False
        self._pending: list[tuple[Callable[[list[float]], None], Tensor, torch.cuda.Event | None]] = []

    def begin(self, collect: bool, spectral_roles: set[str]) -> None:
        """Start a step. `spectral_roles` are those whose inactivity is watched."""
        self._count_pending(wait=False)
        self.collecting, self._still = collect, False
        self._sums = defaultdict(lambda: defaultdict(float))
        self._passed = {}
        for role in spectral_roles - self._idle_steps.keys():
            self._idle_steps[role] = torch.zeros((), dtype=torch.int64)

    def end(self, least: Counts | None = None, totals: Totals | None = None) -> bool:
        """Close the step: count idle roles, publish what was collected, and say whether anything was.

        Args:
            least: counts of idle steps -> the least of all processes that share the parameters.
            totals: sums by role -> those of all processes.
        """
        for role, idle in () if self._still else self._idle_steps.items():
            passed = self._passed.get(role)
            self._idle_steps[role] = idle + 1 if passed is None else torch.where(passed, 0, idle.to(passed.device) + 1)
        if least is not None:
            self._idle_steps = least(self._idle_steps)
        if self.collecting:
            self._sums = self._sums if totals is None else totals(self._sums)
            self._latest = {role: self._summary(role, sums) for role, sums in self._sums.items()}
        collected, self.collecting = self.collecting, False
        return collected

    @contextmanager
    def of_parts(self, parts: bool, counted: bool) -> Iterator[None]:
        """Say that what comes are parts of parameters, whose spectra say nothing; or leave them uncounted."""
        collecting, self._parts = self.collecting, parts
        self.collecting = collecting and counted
        yield
        self.collecting, self._parts = collecting, False

    def skip(self, role: str, name: str) -> None:
        """Count a matrix that was left alone because its gradient is not finite; warn the first time."""
        self.skipped[role] += 1
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the gradient of {name} has NaN or Inf: the parameter and its state were left unchanged in this step. "
                "Further skips are counted in telemetry()[role]['skipped'] without a warning",
                RuntimeWarning,
                stacklevel=2,
            )

    def skip_later(self, known: list[tuple[str, str]], alive: list[Tensor]) -> None:
        """Count what a device masked, once it has come over without anybody having waited for it.

        Args:
            known: role and name of each parameter.
            alive: scalars on one device, 0.0 where the parameter was left alone.
        """
        if alive:
            self._later(torch.stack([flag.to(alive[0].device) for flag in alive]), partial(self._skip_masked, known))

    def zero(self, zero: Tensor | bool) -> None:
        """Count a step in which every gradient is 0 (1.0 on a device): no gate was asked, so that no role is idle."""
        if isinstance(zero, Tensor):
            self._later(zero.reshape(1), self._count_zero)
        elif zero:
            self._still = True
            self._zero_steps += 1

    def zero_steps(self) -> int:
        """Steps in which every gradient was 0. Waits for the device."""
        self._count_pending(wait=True)
        return self._zero_steps

    def _later(self, flags: Tensor, count: Callable[[list[float]], None]) -> None:
        event = None
        if flags.is_cuda:
            flags = flags.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((count, flags, event))

    def _count_pending(self, wait: bool) -> None:
        while self._pending:
            count, flags, event = self._pending[0]
            if event is not None and wait:
                event.synchronize()
            if event is not None and not event.query():
                return
            self._pending.pop(0)
            count(flags.tolist())

    def _skip_masked(self, known: list[tuple[str, str]], alive: list[float]) -> None:
        for (role, name), flag in zip(known, alive, strict=True):
            if not flag:
                self.skip(role, name)

    def _count_zero(self, zero: list[float]) -> None:
        self._zero_steps += int(zero[0])

    @contextmanager
    def measure(
        self, role: str, lr: float, targets: list[Tensor], layout: Sequence[Any] | None = None
    ) -> Iterator[None]:
        """Compare the weights after the body with those before; copies them, so pass a bounded number.

        Args:
            role: of their group.
            lr: learning rate.
            targets: what moves.
            layout: how a rule of matrices cuts them, see `engine.updates.layout`; None: an elementwise rule.
        """
        if not self.collecting:
            yield
            return
        before = [target.clone() for target in targets]
        yield
        sums = self._sums[role]
        for old, new in zip(before, targets, strict=True):
            moved = old.neg_().add_(new)
            change, rows = _energy(_row_norms(moved)), _row_norms(new)
            sums["change"] += change
            sums["update"] += change / lr**2 if lr else 0.0
            sums["weight"] += _energy(rows)
            sums["values"] += new.numel()
            if new.ndim > 1 and new.numel():
                # Of the output layer, what Scion's best rates share at every scale (arXiv 2510.03871).
                sums["rms_to_inf"] = max(sums["rms_to_inf"], float(rows.max()) * (new.numel() / len(new)) ** 0.5)
                if lr and (layout is not None or (moved.numel() <= LARGEST_MEASURED and not self._parts)):
                    top = top_singular(split_blocks(moved, *(layout or ())))
                    sums["spectral"] = max(sums["spectral"], float(top.max()) / lr)

    def blocks(self, role: str, seen: Tensor, filtered: Tensor, energy: Tensor | None) -> None:
        """Record what a rule did to a batch of blocks.

        Args:
            role: of their group.
            seen: (batch, rows, cols), what the filter saw, or the momentum.
            filtered: (batch, rows, cols), after all stages, without the scale.
            energy: (batch,), directions that passed; None where no stage measured it.
        """
        if energy is not None:
            passed = (energy > GATED_ENERGY).any()
            known = self._passed.get(role)
            self._passed[role] = passed if known is None else known | passed.to(known.device)
        elif role not in self._passed:
            self._passed[role] = torch.ones((), dtype=torch.bool)
        if self.collecting and len(seen):
            measured = pass_energy(filtered) if energy is None else energy
            self._add_blocks(role, top_stable_rank(seen), measured)

    def elementwise(self, role: str, momenta: list[Tensor]) -> None:
        """Record the same of an elementwise rule, whose every matrix passes with as many directions as it has."""
        for momentum in momenta if self.collecting and not self._parts else []:
            if momentum.ndim > 1 and 0 < momentum.numel() <= LARGEST_MEASURED:
                ranks = top_stable_rank(momentum.reshape(1, momentum.shape[0], -1))
                self._add_blocks(role, ranks, ranks)

    def _add_blocks(self, role: str, ranks: Tensor, energy: Tensor) -> None:
        sums = self._sums[role]
        sums["blocks"] += energy.numel()
        sums["energy"] += float(energy.sum())
        sums["gated"] += float((energy <= GATED_ENERGY).sum())
        sums["stable_rank"] += float(ranks.sum())

    def latest(self) -> dict[str, dict[str, float]]:
        """The newest collected numbers by role, with the skip counts as they are now."""
        self._count_pending(wait=True)
        result = {role: {**numbers, "skipped": float(self.skipped[role])} for role, numbers in self._latest.items()}
        for role, count in self.skipped.items():
            result.setdefault(role, {"skipped": float(count)})
        return result

    def idle_steps(self) -> dict[str, int]:
        """Steps in a row in which no block of a spectral role passed its filter, by role. Waits for the device."""
        return {role: int(count) for role, count in self._idle_steps.items()}

    @staticmethod
    def _summary(role: str, sums: dict[str, float]) -> dict[str, float]:
        values = max(sums["values"], 1.0)
        summary = {
            "update_rms": (sums["update"] / values) ** 0.5,
            "change_rms": (sums["change"] / values) ** 0.5,
            "weight_rms": (sums["weight"] / values) ** 0.5,
        }
        if "rms_to_inf" in sums:
            summary["weight_rms_to_inf"] = sums["rms_to_inf"]
        if "spectral" in sums:
            summary["update_spectral"] = sums["spectral"]
        if sums["blocks"]:
            summary["stable_rank"] = sums["stable_rank"] / sums["blocks"]
            summary["pass_energy"] = sums["energy"] / sums["blocks"]
            summary["gated_share"] = sums["gated"] / sums["blocks"]
        return summary


def _energy(norms: Tensor) -> float:
    return float(norms.double().square().sum())
