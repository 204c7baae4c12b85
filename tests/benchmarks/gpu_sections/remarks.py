"""A thousand small matrices, torch.compile of a step, and its capture in a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_sections.part import Part, Setup, one_line
from gpu_sections.synchronisations import counted
from gpu_sections.timing import measure_step, synchronise
from torch import nn

from rlspec.optim import SpectralOptimizer

Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
BUILDS: dict[str, Build] = {
    "torch Muon": lambda params: torch.optim.Muon(params, lr=1e-6),
    "muon": lambda params: SpectralOptimizer(params, rule="muon", lr=1e-6),
    "muon, check_finite=False": lambda params: SpectralOptimizer(params, rule="muon", lr=1e-6, check_finite=False),
    "pion": lambda params: SpectralOptimizer(params, rule="pion", lr=1e-6, promotion_steps="auto"),
    "torch AdamW, fused": lambda params: torch.optim.AdamW(params, lr=1e-6, fused=True),
    "adamw": lambda params: SpectralOptimizer(params, rule="adamw", lr=1e-6),
}


def run(part: Part, setup: Setup) -> None:
    count = 20 if setup.dry_run else 1000
    for name, build in BUILDS.items():
        optimizer = build(_parameters(count, setup.device))
        row = measure_step(optimizer.step, setup.device, seconds=0.5) | counted(optimizer.step, setup.device)
        part.add("small_matrices", {"name": name, "count": count} | row)
        part.say(f"  {count} x 16 x 16, {name:26} {1000 * row['seconds']:8.2f} ms, {row['launches']} launches")
    if setup.device != "cuda":
        part.say("torch.compile and CUDA graphs: on CUDA only")
        return
    for name in ("adamw", "muon"):
        if setup.left > 25:
            _try(part, f"torch.compile, {name}", lambda name=name: _compiled(BUILDS[name], setup.device))
    for name in ("adamw", "muon, check_finite=False", "muon", "pion"):
        _try(part, f"CUDA graph, {name}", lambda name=name: _captured(BUILDS[name], setup.device))


def _parameters(count: int, device: str, shape: tuple[int, int] = (16, 16)) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(shape, device=device)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def _try(part: Part, name: str, attempt: Callable[[], dict[str, Any]]) -> None:
    try:
        row = attempt()
    except Exception as error:
        row = {"error": one_line(error)}
    part.add("attempts", {"name": name} | row)
    part.say(f"  {name}: {row}")


def _compiled(build: Build, device: str) -> dict[str, Any]:
    optimizer = build(_parameters(8, device, (256, 512)))
    optimizer.step()
    compiled, started = torch.compile(optimizer.step), time.perf_counter()
    compiled()
    synchronise(device)
    return {"compile_seconds": time.perf_counter() - started} | measure_step(compiled, device, seconds=0.2)


def _captured(build: Build, device: str) -> dict[str, Any]:
    """Whether a replayed step moves the weights as an ordinary one does."""
    plain, graphed = (_parameters(1, device, (256, 512)) for _ in range(2))
    with torch.no_grad():
        graphed[0].copy_(plain[0])
        graphed[0].grad.copy_(plain[0].grad)  # type: ignore[union-attr]
    ordinary, optimizer = build(plain), build(graphed)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    graph.replay()
    for _ in range(4):
        ordinary.step()
    synchronise(device)
    return {"largest_difference": (plain[0] - graphed[0]).abs().max().item()}
