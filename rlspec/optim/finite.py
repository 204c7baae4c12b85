"""Which gradients are finite: asked of the host where that is free, left on the device where waiting would cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def finite_on_host(params: Iterable[Tensor]) -> set[Tensor]:
    """Parameters whose gradient has neither NaN nor Inf. Waits for the device once per device and dtype."""
    finite = set()
    for alike in _by_kind(params):
        gradients = [param.grad for param in alike if param.grad is not None]
        norms = torch.stack(list(torch._foreach_norm(gradients))).isfinite().tolist()
        for param, gradient, good in zip(alike, gradients, norms, strict=True):
            if good or bool(gradient.isfinite().all()):  # the norm of a finite gradient may overflow
                finite.add(param)
    return finite


def finite_on_device(params: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Per parameter a scalar of its gradient's device: 1.0 where it is finite, else 0.0. Waits for nothing."""
    flags: dict[Tensor, Tensor] = {}
    for alike in _by_kind(params):
        gradients = [param.grad for param in alike if param.grad is not None]
        # The largest magnitude is finite exactly if all are; a norm could overflow.
        peaks = torch.stack(list(torch._foreach_norm(gradients, float("inf"))))
        flags |= dict(zip(alike, peaks.isfinite().to(torch.float32).unbind(), strict=True))
    return flags


def _by_kind(params: Iterable[Tensor]) -> list[list[Tensor]]:
    kinds: dict[Any, list[Tensor]] = defaultdict(list)
    for param in params:
        if param.grad is not None and param.numel():
            kinds[param.grad.device, param.grad.dtype].append(param)
    return list(kinds.values())
