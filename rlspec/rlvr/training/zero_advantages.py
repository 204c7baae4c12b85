"""Completions whose advantage is 0 take no part in the gradient: they need no forward and backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def informative_first(micro_batches: Sequence[dict[str, Any]], per_step: int) -> list[dict[str, Any]]:
    """The same rows, within each step those whose advantage is not 0 first.

    Args:
        micro_batches: of a block of rollouts, all of one size; values are tensors or lists of rows, scalars or None.
        per_step: micro-batches of one optimizer step.
    """
    arranged: list[dict[str, Any]] = []
    for start in range(0, len(micro_batches), per_step):
        step = micro_batches[start : start + per_step]
        advantages = torch.cat([each["advantages"] for each in step])
        order = advantages.eq(0).to(torch.int8).argsort(stable=True).tensor_split(len(step))
        whole = {name: _joined([each[name] for each in step]) for name in step[0]}
        arranged += [{name: _rows(values, rows) for name, values in whole.items()} for rows in order]
    return arranged


def nothing_to_learn(model: nn.Module) -> Tensor:
    """A loss of 0 that a trainer can differentiate, for next to nothing."""
    smallest = min((param for param in model.parameters() if param.requires_grad), key=Tensor.numel)
    return 0.0 * smallest.sum()


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and first.ndim:
        return torch.cat(values)
    return [row for part in values for row in part] if isinstance(first, list) else first


def _rows(values: Any, rows: Tensor) -> Any:
    if isinstance(values, list):
        return [values[row] for row in rows.tolist()]
    return values[rows] if isinstance(values, Tensor) and values.ndim else values
