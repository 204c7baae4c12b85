"""Where a step makes the host wait for the device: torch's debug mode, with the line, and the profiler's count."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_sections.inputs import give_gradients, optimizer_of, parameters
from gpu_sections.part import Part, Setup, one_line
from torch.profiler import ProfilerActivity, profile

from rlspec.optim import RULES

MESSAGE = "called a synchronizing CUDA operation"
WAITS = ("Synchronize", "Memcpy DtoH", "cudaMemcpy", "cudaMalloc", "cudaFree")
WARM_STEPS = 3
CASES: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    **{rule: (rule, torch.float32, {}) for rule in RULES},
    "muon, bfloat16 weights": ("muon", torch.bfloat16, {}),
    "pion, bfloat16 weights": ("pion", torch.bfloat16, {}),
    "adamw, bfloat16 weights": ("adamw", torch.bfloat16, {}),
    "muon, bfloat16 state": ("muon", torch.float32, {"state_dtype": "bfloat16"}),
    "muon, telemetry": ("muon", torch.float32, {"telemetry_every": 1}),
    "muon, gradient_clip, update_clip": ("muon", torch.float32, {"gradient_clip": 1e-6, "update_clip": 0.5}),
    "muon, spectral_cap": ("muon", torch.float32, {"spectral_cap": 1.0}),
    "muon, hammer": ("muon", torch.float32, {"spectral_cap": 1.0, "cap_method": "hammer"}),
}
"""Name -> rule, dtype of the weights, settings."""


def run(part: Part, setup: Setup) -> None:
    part.put("empty_profile", counted(lambda: None, setup.device))
    waiting = 0
    cases = dict(list(CASES.items())[:: 7 if setup.dry_run else 1])
    for name, (rule, dtype, settings) in cases.items():
        row: dict[str, Any] = {"case": name}
        try:
            row |= _one_case(rule, dtype, settings, setup.device)
        except Exception as error:
            row["error"] = one_line(error)
        part.add("cases", row)
        if row.get("warm") or "error" in row:
            waiting += 1
            part.say(f"  {name}: {row.get('error') or '; '.join(f'{k} x{v}' for k, v in row['warm'].items())}")
    part.say(f"{len(cases) - waiting} of {len(cases)} cases wait for nothing in three warm steps")


def _one_case(rule: str, dtype: torch.dtype, settings: dict[str, Any], device: str) -> dict[str, Any]:
    params = parameters(rule, device, dtype, shape=(256, 512))
    optimizer = optimizer_of(rule, params, **settings)
    give_gradients(params, seed=1)
    with watched(device) as first:
        optimizer.step()
    with watched(device) as warm:
        for _ in range(WARM_STEPS):
            optimizer.step()
    return {"first": dict(first), "warm": dict(warm), "profile": counted(optimizer.step, device)}


@contextmanager
def watched(device: str) -> Iterator[Counter[str]]:
    """Count torch's warnings of synchronising operations by the line of rlspec that called them."""
    found: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show = warnings.showwarning

        def count(message: Warning | str, *rest: Any) -> None:
            if MESSAGE in str(message):
                found[_place()] += 1
            else:
                show(message, *rest)  # type: ignore[arg-type]

        _debug(device, "warn")
        warnings.showwarning = count  # type: ignore[assignment]
        try:
            yield found
        finally:
            _debug(device, "default")


def _debug(device: str, mode: str) -> None:
    if device == "cuda":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it is a prototype
            torch.cuda.set_sync_debug_mode(mode)


def _place() -> str:
    """The innermost line of rlspec, and what it called in torch."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename not in (__file__, warnings.__file__)]
    ours = [frame for frame in frames if "rlspec" in Path(frame.filename).parts]
    frame = ours[-1] if ours else frames[-1]
    parts = Path(frame.filename).parts
    start = len(parts) - 1 - parts[::-1].index("rlspec") if "rlspec" in parts else len(parts) - 1
    below = f" -> {frames[-1].name}" if frames[-1] is not frame else ""
    return f"{'/'.join(parts[start:])}:{frame.lineno} {(frame.line or '')[:80]}{below}"


def counted(step: Callable[[], Any], device: str) -> dict[str, int]:
    """How often a step calls what may wait, by the profiler; its own calls are in `empty_profile`."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as recorded:
        step()
    names = Counter(event.name for event in recorded.events() or [])
    chosen = {name: count for name, count in names.items() if any(word in name for word in WAITS)}
    return chosen | {"launches": sum(count for name, count in names.items() if "LaunchKernel" in name)}
