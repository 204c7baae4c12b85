"""Where the time of a step goes: kernels by device time, number of launches."""

from __future__ import annotations

from typing import Any

import torch
from gpu_sections.part import Part, Setup, one_line
from gpu_sections.timing import release, synchronise
from optimizer_step import SIZES, contenders, model
from torch.profiler import ProfilerActivity, profile

ROWS = ("torch Muon, as it is", "muon", "muon per head", "pion per head, k_p=0", "pion per head, auto", "adamw")
SHOWN = 12


def run(part: Part, setup: Setup) -> None:
    size = "tiny" if setup.dry_run else "1.7b"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if setup.device == "cuda" else [])
    for dtype in (torch.bfloat16, torch.float32):
        matrices = model(SIZES[size], SIZES[size][-1], setup.device, dtype)
        for row in contenders(setup.device):
            if row.name not in ROWS or setup.left < 5:
                continue
            label = {"name": row.name, "size": size, "weights": str(dtype).removeprefix("torch.")}
            try:
                optimizer = row.build(matrices)
                for _ in range(2):
                    row.step(optimizer)
                synchronise(setup.device)
                with profile(activities=activities) as recorded:
                    row.step(optimizer)
                    synchronise(setup.device)
                found = _kernels(recorded, setup.device)
                part.add("rows", label | found)
                top = ", ".join(f"{each['name'][:40]} {each['share']:.0%}" for each in found["kernels"][:4])
                part.say(
                    f"  {label['weights']:8} {row.name:22} {found['launches']} kernels, {found['ms']:.1f} ms: {top}"
                )
                optimizer.state.clear()
            except Exception as error:
                part.add("rows", label | {"error": one_line(error)})
        del matrices
        release(setup.device)


def _is_mark(kind: Any) -> bool:
    return bool(getattr(kind, "is_user_annotation", False)) or kind.key.startswith(("Optimizer.", "ProfilerStep"))


def _kernels(recorded: Any, device: str) -> dict[str, Any]:
    """The kernels by their device time; on a CPU, operators by their own time."""
    kinds = recorded.key_averages()
    if device == "cuda":
        # Marks of the host's ranges lie on the device's track too, over the kernels that they cover.
        kinds = [each for each in kinds if str(each.device_type).endswith("CUDA") and not _is_mark(each)]
    attribute = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    times = sorted(((getattr(each, attribute), each.count, each.key) for each in kinds), reverse=True)
    total = sum(time for time, *_ in times) or 1.0
    kernels = [
        {"name": name[:160], "ms": time / 1000, "count": count, "share": time / total} for time, count, name in times
    ]
    return {"ms": total / 1000, "launches": sum(count for _, count, _ in times), "kernels": kernels[:SHOWN]}
