"""Time and memory of repeated steps, by CUDA events on a GPU and the wall clock on a CPU."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

MIB = 2**20


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Give memory of the device back that nothing holds any more."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def intervals(step: Callable[[], Any], repeats: int, device: str) -> tuple[list[float], float]:
    """Seconds of steps issued one after the other, and those that the host needs to issue the first."""
    host = 0.0
    synchronise(device)
    if device != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return times, times[0]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for number in range(repeats):
        start = time.perf_counter()
        step()
        host = host or time.perf_counter() - start
        events[number + 1].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in zip(events[:-1], events[1:], strict=True)], host


def peak_extra(step: Callable[[], Any], device: str) -> int | None:
    """Most bytes during a step beyond those there before it; None on a CPU."""
    if device != "cuda":
        step()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_step(step: Callable[[], Any], device: str, *, seconds: float = 1.0, most: int = 20) -> dict[str, Any]:
    """Warm up by two steps, then repeat for about so many seconds, five times at least."""
    step()
    extra = peak_extra(step, device)
    (once,), _ = intervals(step, 1, device)
    repeats = 2 if device != "cuda" else min(most, max(5, math.ceil(seconds / max(once, 1e-6))))
    times, host = intervals(step, repeats, device)
    return {
        "seconds": statistics.median(times),
        "fastest": min(times),
        "slowest": max(times),
        "host_seconds": host,
        "repeats": repeats,
        "peak_extra_bytes": extra,
    }


def product_rate(device: str, dtype: torch.dtype, size: int, *, tf32: bool = False) -> float:
    """Floating-point operations per second of a square matrix product on random values, the best of ten."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.fp32_precision
    if tf32:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        intervals(lambda: torch.mm(a, b), 3, device)
        times, _ = intervals(lambda: torch.mm(a, b), 10, device)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    return 2.0 * size**3 / min(times)


def rates(device: str) -> dict[str, float]:
    """Arithmetic type -> rate of a large square product."""
    if device != "cuda":
        return {
            "float32": product_rate(device, torch.float32, 256),
            "bfloat16": product_rate(device, torch.bfloat16, 64),
        }
    return {
        "bfloat16": product_rate(device, torch.bfloat16, 8192),
        "float32": product_rate(device, torch.float32, 8192),
        "tf32": product_rate(device, torch.float32, 8192, tf32=True),
    }
