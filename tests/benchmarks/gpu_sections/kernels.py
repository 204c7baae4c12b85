"""Choices inside Newton-Schulz that were made on CPUs: which method, and whether symmetric products are cut."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from gpu_sections.part import Part, Setup, one_line
from gpu_sections.timing import intervals, release
from torch import Tensor

from rlspec.optim.kernels import gram
from rlspec.optim.kernels.newton_schulz import choose_method, newton_schulz
from rlspec.optim.kernels.schedules import high_pass_schedule, keller

CASES = {
    "gate of 1.7B": (8, 6144, 2048),
    "gate of 4B": (4, 9728, 2560),
    "q of 4B, whole": (8, 4096, 2560),
    "heads of 4B's q": (256, 128, 2560),
    "heads of 0.6B's q": (448, 128, 1024),
    "small": (1000, 16, 16),
}
DRY = {"small": (8, 16, 16), "oblong": (2, 256, 300)}
SCHEDULES = {"muon": keller(), "pion k_p=0": high_pass_schedule(0), "pion k_p=5": high_pass_schedule(5)}


def run(part: Part, setup: Setup) -> None:
    for name, shape in (DRY if setup.dry_run else CASES).items():
        for dtype in (torch.bfloat16, torch.float32):
            if setup.left < 4:
                part.say(f"{name}: left out, no time left")
                continue
            blocks = torch.randn(shape, device=setup.device)
            blocks = (blocks / torch.linalg.vector_norm(blocks, dim=(1, 2), keepdim=True)).to(dtype)
            label = {"case": name, "shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
            for variant, function in _variants(blocks).items():
                row: dict[str, Any] = label | {"variant": variant}
                try:
                    row["seconds"] = _median(function, setup.device)
                except RuntimeError as error:
                    row["error"] = one_line(error)
                part.add("rows", row)
                took = f"{1000 * row['seconds']:.3f} ms" if "seconds" in row else row["error"]
                part.say(f"  {name:18} {label['dtype']:9} {variant:34} {took}")
            del blocks
        release(setup.device)


def _median(function: Callable[[], Any], device: str) -> float:
    intervals(function, 2, device)
    return statistics.median(intervals(function, 2 if device == "cpu" else 7, device)[0])


def _variants(blocks: Tensor) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {}
    for name, schedule in SCHEDULES.items():
        for method in ("standard", "gram"):
            chosen = " (chosen)" if choose_method(blocks, schedule) == method else ""
            found[f"{name}, {method}{chosen}"] = lambda s=schedule, m=method: newton_schulz(blocks, s, method=m)
    usual = gram.cuts(blocks)
    for cut in (True, False):
        label = f"short gram, {'cut' if cut else 'whole'}{' (chosen)' if cut == usual else ''}"
        found[label] = lambda cut=cut: _short_gram(blocks, cut)
    x = gram.wide(blocks)
    found["short gram, torch.bmm"] = lambda: torch.bmm(x, x.mT)
    found["short gram, torch.mm in a loop"] = lambda: torch.stack([torch.mm(each, each.T) for each in x[:32]])
    return found


def _short_gram(blocks: Tensor, cut: bool) -> Tensor:
    usual, gram.cuts = gram.cuts, lambda _: cut
    try:
        return gram.short_gram(blocks)
    finally:
        gram.cuts = usual
