"""Which gradients are finite, and whether any is not 0: asked of the host where that is free, else on the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Flag = Tensor | Literal[True] | None
"""Whether a parameter is updated in a step: True or None (left alone), or a device's scalar that is 1.0 or 0.0."""


def finite_on_host(gradients: Sequence[Tensor]) -> list[bool]:
    """Which have neither NaN nor Inf. Waits for the device once per device and dtype."""
    finite = [gradient.numel() == 0 for gradient in gradients]
    for positions in _by_kind(gradients):
        norms = torch.stack(torch._foreach_norm([gradients[k] for k in positions])).isfinite().tolist()
        for position, good in zip(positions, norms, strict=True):  # the norm of a finite gradient may overflow
            finite[position] = good or bool(gradients[position].isfinite().all())
    return finite


def any_nonzero(gradients: Sequence[Tensor]) -> bool:
    """Whether one of them is not exactly 0 everywhere. Waits for the device; mostly the first row of one answers."""
    rows = (gradient[:1] for gradient in gradients if gradient.ndim)
    return any(bool(part.any()) for part in (*rows, *sorted(gradients, key=Tensor.numel)))


def finite_on_device(gradients: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """For each two scalars on its device: 1.0 or 0.0 for finite or not; its largest magnitude. Waits for nothing."""
    flags = [gradient.new_ones((), dtype=torch.float32) for gradient in gradients]
    peaks = [gradient.new_zeros((), dtype=torch.float32) for gradient in gradients]
    for positions in _by_kind(gradients):
        # The largest magnitude is finite exactly if all are; a norm could overflow, and vanish.
        largest = torch.stack(torch._foreach_norm([gradients[k] for k in positions], float("inf"))).to(torch.float32)
        for position, flag, peak in zip(
            positions, largest.isfinite().to(torch.float32).unbind(), largest.unbind(), strict=True
        ):
            flags[position], peaks[position] = flag, peak
    return flags, peaks


def _by_kind(gradients: Sequence[Tensor]) -> list[list[int]]:
    """Positions of the gradients of each device and dtype; not of empty ones, as parts of sharded ones may be."""
    kinds: dict[Any, list[int]] = defaultdict(list)
    for position, gradient in enumerate(gradients):
        if gradient.numel():
            kinds[gradient.device, gradient.dtype].append(position)
    return list(kinds.values())
