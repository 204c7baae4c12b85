"""Optimizer steps on all matrices of Qwen3, against torch.optim.Muon and fused AdamW."""

from __future__ import annotations

from typing import Any

import torch
from gpu_sections.part import Part, Setup, one_line
from gpu_sections.timing import MIB, measure_step, rates, release
from optimizer_step import SIZES, Matrix, Row, contenders, model, operations, spectral, state_bytes

from rlspec.optim.kernels.schedules import high_pass_schedule, keller

BASELINE = "torch Muon, as it is"
LIMIT = 0.5
"""Seconds that one step may take by prediction: float32 products take fifteen times as long as those in bfloat16."""


def run(part: Part, setup: Setup) -> None:
    measured = rates(setup.device)
    part.put("matrix_rates", measured)
    for size in ("tiny",) if setup.dry_run else ("1.7b", "4b", "0.6b"):
        for dtype in (torch.bfloat16, torch.float32):
            matrices = model(SIZES[size], SIZES[size][-1], setup.device, dtype)
            _one_model(part, setup, matrices, {"size": size, "weights": _word(dtype)}, measured)
            del matrices
            release(setup.device)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rows(device: str) -> list[Row]:
    """Those of the benchmark for one device, ours in float32 too, and the baseline once more to show the drift."""
    rows, f32, peer = contenders(device), torch.float32, "torch Muon, float32"
    if device == "cuda":
        whole, gate = operations(False, keller(), f32), operations(True, high_pass_schedule(0), f32)
        rows += [
            Row("muon, float32", spectral("muon", False, compute_dtype="float32"), f32, peer, whole),
            Row("pion per head, k_p=0, float32", spectral("pion", True, compute_dtype="float32"), f32, peer, gate),
        ]
    again = next(row for row in rows if row.name == BASELINE)
    return [again, *(row for row in rows if row.name != BASELINE), Row(f"{BASELINE}, again", *_parts(again))]


def _parts(row: Row) -> tuple[Any, ...]:
    return row.build, row.arithmetic, row.baseline, row.operations, row.step


def _one_model(
    part: Part, setup: Setup, matrices: list[Matrix], label: dict[str, str], measured: dict[str, float]
) -> None:
    part.say(f"Qwen3 {label['size']}, {len(matrices)} matrices, weights {label['weights']}")
    times: dict[str, float] = {}
    for row in _rows(setup.device):
        rate = measured[_word(row.arithmetic)]
        needed = row.operations(matrices) if row.operations else 0.0
        result: dict[str, Any] = label | {"name": row.name, "arithmetic": _word(row.arithmetic), "operations": needed}
        if needed / rate > LIMIT or setup.left < 5:
            reason = f"predicted {needed / rate:.1f} s a step" if needed / rate > LIMIT else "no time left"
            part.add("rows", result | {"left_out": reason})
            continue
        try:
            result |= _measure(row, matrices, setup)
        except RuntimeError as error:  # out of memory among them
            part.add("rows", result | {"error": one_line(error)})
            part.say(f"  {row.name:30} {one_line(error, 70)}")
            continue
        times[row.name] = result["seconds"]
        base = times.get(row.baseline)
        result["rate_share"] = needed / result["seconds"] / rate if needed else None
        result["ratio_to_torch_muon"] = result["seconds"] / times[BASELINE] if BASELINE in times else None
        result["ratio_to_baseline"] = result["seconds"] / base if base else None
        part.add("rows", result)
        part.say(_line(result))


def _measure(row: Row, matrices: list[Matrix], setup: Setup) -> dict[str, Any]:
    optimizer = row.build(matrices)
    try:
        result = measure_step(lambda: row.step(optimizer), setup.device)
        return result | {"state_bytes": state_bytes(optimizer)}
    finally:
        optimizer.state.clear()
        release(setup.device)


def _line(result: dict[str, Any]) -> str:
    ratio = result["ratio_to_torch_muon"]
    text = f"  {result['name']:30} {1000 * result['seconds']:8.2f} ms"
    text += f"  x{ratio:.2f} of Muon" if ratio else ""
    if result["rate_share"]:
        rate = result["operations"] / result["seconds"] / 1e12
        text += f"  {rate:.3g} TFLOP/s {result['rate_share']:.0%}"
    if result["ratio_to_baseline"] and result["name"].startswith("adamw"):
        text += f"  x{result['ratio_to_baseline']:.2f} of fused AdamW"
    extra = result["peak_extra_bytes"]
    text += f"  host {1000 * result['host_seconds']:.1f} ms  state {result['state_bytes'] / MIB:.0f} MiB"
    return text + (f"  extra {extra / MIB:.0f} MiB" if extra is not None else "")
