"""What goes through a rule together, and that no more of it is in memory at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from rlspec.optim import SpectralOptimizer
from rlspec.optim.engine.batches import batches

SIZE = 64
BYTES = 4 * SIZE * SIZE


def optimizer_of(count: int, dtype: torch.dtype, **settings: Any) -> SpectralOptimizer:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(SIZE, SIZE).to(dtype)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn_like(param)
    return SpectralOptimizer(params, lr=1e-3, **settings)


def extra_memory(optimizer: SpectralOptimizer) -> int:
    """Bytes above what was there before, at the worst moment of a step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer.step()
    now, peak = 0, 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["muon", "row_norm", "adamw"])
def test_a_step_takes_memory_for_one_batch_and_not_for_all_gradients(
    rule: str, dtype: torch.dtype, deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if deferred:  # as on CUDA
        monkeypatch.setattr(SpectralOptimizer, "_defers", lambda self, param: True)
    few, many = (optimizer_of(count, dtype, rule=rule, workspace_bytes=2 * BYTES) for count in (2, 40))
    for optimizer in (few, many):
        optimizer.step()
    assert extra_memory(many) <= extra_memory(few) + BYTES / 2


@pytest.mark.parametrize(("workspace", "lengths"), [(0, [1] * 5), (2 * BYTES, [2, 2, 1]), (100 * BYTES, [5])])
def test_batches_stay_within_the_workspace_and_hold_one_parameter_at_least(workspace: int, lengths: list[int]) -> None:
    optimizer = optimizer_of(5, torch.float32, rule="muon")
    found = list(batches(optimizer.param_groups[0], 7, [True] * 5, optimizer.state, workspace))
    assert [len(entries) for entries in found] == lengths
    assert [entry.index for entries in found for entry in entries] == [7, 8, 9, 10, 11]


@pytest.mark.parametrize(("rule", "lengths"), [("muon", [2, 2, 1]), ("adamw", [5])])
def test_on_the_cpu_batches_of_matrices_end_where_its_cache_does(
    rule: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlspec.optim.engine.batches.CPU_BATCH_BYTES", 2 * BYTES)
    optimizer = optimizer_of(5, torch.float32, rule=rule)
    found = list(batches(optimizer.param_groups[0], 0, [True] * 5, optimizer.state, 100 * BYTES))
    assert [len(entries) for entries in found] == lengths


def test_what_is_left_alone_gets_no_state() -> None:
    optimizer = optimizer_of(3, torch.float32, rule="muon")
    ((entry,),) = batches(optimizer.param_groups[0], 0, [None, True, None], optimizer.state, BYTES)
    first, second, third = optimizer.param_groups[0]["params"]
    assert entry.param is second
    assert optimizer.state[second] and not optimizer.state[first] and not optimizer.state[third]


def test_only_cuda_decides_on_the_device_what_is_finite() -> None:
    # AdamW without a fused kernel, as on other devices, cannot be told to skip.
    optimizer = optimizer_of(1, torch.float32)
    assert not optimizer._defers(torch.empty(1, device="meta"))
