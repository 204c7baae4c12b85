"""Memory of a step beyond weights, gradients and state: of every rule, and against `workspace_bytes`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from gpu_sections.inputs import is_pair
from gpu_sections.part import Part, Setup, one_line
from gpu_sections.timing import MIB, intervals, peak_extra, release
from optimizer_step import SIZES, Matrix, model, spectral, state_bytes
from torch import nn

from rlspec.optim import RULES

SLOW = 3.0
"""Seconds of a step beyond which it is not repeated."""


def run(part: Part, setup: Setup) -> None:
    size, layers = ("tiny", 1) if setup.dry_run else ("0.6b", 2)
    part.say(f"every rule on {layers} layers of Qwen3 {size}, float32 weights; extra memory in largest batches")
    for rule in list(RULES)[:: 7 if setup.dry_run else 1]:
        if setup.left < 12:
            part.add("rules", {"rule": rule, "left_out": "no time left"})
            continue
        row = _measured(rule, _matrices(rule, size, layers, setup.device), setup.device, 1 << 28)
        part.add("rules", row)
        part.say(_line(rule, row))
    _sweep(part, setup)


def _matrices(rule: str, size: str, layers: int, device: str) -> list[Matrix]:
    matrices = model(SIZES[size], layers, device, torch.float32)
    if not is_pair(rule):
        return matrices
    pairs = []
    for rows, cols in (matrix.param.shape for matrix in matrices):
        for shape in ((16, cols), (rows, 16)):
            param = nn.Parameter(torch.randn(shape, device=device) * 0.02)
            param.grad = torch.randn(shape, device=device) * 1e-4
            pairs.append(Matrix(param))
    return pairs


def _largest_batch(matrices: list[Matrix], bound: int) -> int:
    """Bytes in float32 of the largest batch: matrices of one shape and one cut, up to the bound."""
    sizes = Counter[Any]()
    for matrix in matrices:
        sizes[matrix.param.shape, matrix.num_heads, matrix.head_axis] += 4 * matrix.param.numel()
    return max(4 * max(matrix.param.numel() for matrix in matrices), min(bound, max(sizes.values())))


def _measured(rule: str, matrices: list[Matrix], device: str, workspace: int, **settings: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"rule": rule, "workspace_bytes": workspace}
    try:
        per_head = not is_pair(rule) and RULES[rule].spectral
        optimizer = spectral(rule, per_head, promotion_steps="auto", workspace_bytes=workspace, **settings)(matrices)
        (first,), _ = intervals(optimizer.step, 1, device)
        extra = peak_extra(optimizer.step, device)
        times = [first] if first > SLOW else intervals(optimizer.step, 3, device)[0]
        largest = _largest_batch(matrices, workspace)
        row |= {"seconds": min(times), "peak_extra_bytes": extra, "largest_batch_bytes": largest}
        row |= {"batches": None if extra is None else extra / largest, "state_bytes": state_bytes(optimizer)}
        optimizer.state.clear()
    except Exception as error:
        row["error"] = one_line(error)
    release(device)
    return row


def _line(name: str, row: dict[str, Any]) -> str:
    if "error" in row:
        return f"  {name:34} {row['error'][:80]}"
    extra = row["peak_extra_bytes"]
    memory = "" if extra is None else f"  extra {extra / MIB:7.0f} MiB = {row['batches']:.1f} batches"
    return f"  {name:34} {1000 * row['seconds']:8.2f} ms{memory}"


def _sweep(part: Part, setup: Setup) -> None:
    """What a larger workspace buys in time."""
    size = "tiny" if setup.dry_run else "1.7b"
    matrices = model(SIZES[size], SIZES[size][-1], setup.device, torch.bfloat16)
    for rule in ("muon", "pion"):
        for workspace in (1 << 26, 1 << 28, 1 << 30, 1 << 32):
            if setup.left < 4:
                return
            row = _measured(rule, matrices, setup.device, workspace) | {"size": size, "weights": "bfloat16"}
            part.add("sweep", row)
            part.say(_line(f"{size} bfloat16 {rule} {workspace / MIB:g} MiB", row))
