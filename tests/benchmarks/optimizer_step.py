"""Time of one optimizer step on the matrices of Qwen3, against torch's own and others', interleaved in one run.

    python tests/benchmarks/optimizer_step.py --device cpu --layers 2
    python tests/benchmarks/optimizer_step.py --device cuda --size 4b
    python tests/benchmarks/optimizer_step.py --scaling --output checkpoints/scaling

Columns: median time, ratio to the row's baseline (torch.optim.Muon in the same arithmetic type, or fused torch AdamW),
bytes of optimizer state, peak bytes beyond what lay there before the step (CUDA), and the share of the measured matrix
rate: multiply-adds that the row's algorithm needs, times two (without those that measure k_p where it is automatic),
over its time and the rate of a square product. A row whose arithmetic type is so slow on this device that one step
would exceed `--limit` seconds is left out, with the prediction.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlspec.optim import SpectralOptimizer
from rlspec.optim.engine.updates import AUTO_DTYPES
from rlspec.optim.kernels.gram import cuts, multiply_adds, restart_steps
from rlspec.optim.kernels.newton_schulz import choose_method
from rlspec.optim.kernels.schedules import high_pass_schedule, keller

# hidden size, query heads, key/value heads, head size, feed-forward size, layers; as in the models' config.json
SIZES = {
    "tiny": (64, 4, 2, 16, 192, 2),
    "512": (512, 8, 8, 64, 1536, 1),  # no model's: its matrices lie in a processor's cache
    "0.6b": (1024, 16, 8, 128, 3072, 28),
    "1.7b": (2048, 16, 8, 128, 6144, 28),
    "4b": (2560, 32, 8, 128, 9728, 36),
}
NO_FLOPS = "elementwise"


@dataclass
class Matrix:
    """A parameter and how a rule per head cuts it."""

    param: torch.nn.Parameter
    num_heads: int = 1
    head_axis: int = 0


def model(shape: tuple[int, ...], layers: int, device: str, dtype: torch.dtype) -> list[Matrix]:
    """The matrices of that many layers with random values and gradients."""
    d, heads, kv_heads, head, wide, _ = shape
    matrices = []
    for _ in range(layers):
        for rows, cols, count, axis in (
            (heads * head, d, heads, 0),
            (kv_heads * head, d, kv_heads, 0),
            (kv_heads * head, d, kv_heads, 0),
            (d, heads * head, heads, 1),
            (wide, d, 1, 0),
            (wide, d, 1, 0),
            (d, wide, 1, 0),
        ):
            param = torch.nn.Parameter(torch.randn(rows, cols, device=device).mul_(0.02).to(dtype))
            param.grad = torch.randn(rows, cols, device=device).mul_(1e-4).to(dtype)
            matrices.append(Matrix(param, count, axis))
    return matrices


@dataclass
class Row:
    """One contender."""

    name: str
    build: Callable[[list[Matrix]], torch.optim.Optimizer]
    arithmetic: torch.dtype
    baseline: str
    operations: Callable[[list[Matrix]], float] | None = None
    step: Callable[[torch.optim.Optimizer], Any] = field(default=lambda optimizer: optimizer.step())


def float32_newton_schulz(grad: Tensor, ns_coefficients: tuple[float, ...], ns_steps: int, eps: float) -> Tensor:
    """What torch.optim.Muon does, in float32 where it takes bfloat16."""
    a, b, c = ns_coefficients
    x = grad.float()
    x = x.T if grad.size(0) > grad.size(1) else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


def step_in_float32(optimizer: torch.optim.Optimizer) -> None:
    """A step of torch.optim.Muon with nothing but its arithmetic type changed."""
    module: Any = importlib.import_module("torch.optim._muon")
    original = module._zeropower_via_newtonschulz
    module._zeropower_via_newtonschulz = float32_newton_schulz
    try:
        optimizer.step()
    finally:
        module._zeropower_via_newtonschulz = original


def spectral(rule: str, per_head: bool, **settings: Any) -> Callable[[list[Matrix]], torch.optim.Optimizer]:
    def build(matrices: list[Matrix]) -> torch.optim.Optimizer:
        groups: dict[tuple[int, int], dict[str, Any]] = {}
        for matrix in matrices:
            cut = (matrix.num_heads, matrix.head_axis) if per_head else (1, 0)
            group = groups.setdefault(cut, {"params": [], "num_heads": cut[0], "head_axis": cut[1]})
            group["params"].append(matrix.param)
        return SpectralOptimizer(list(groups.values()), lr=1e-6, rule=rule, weight_decay=0.1, **settings)

    return build


def operations(per_head: bool, schedule: tuple | None, dtype: torch.dtype) -> Callable[[list[Matrix]], float]:
    """Floating-point operations of a step; schedule None is torch.optim.Muon, every product whole."""

    def count(matrices: list[Matrix]) -> float:
        total = 0.0
        for matrix in matrices:
            heads = matrix.num_heads if per_head else 1
            rows, cols = matrix.param.shape
            rows, cols = (rows, cols // heads) if matrix.head_axis else (rows // heads, cols)
            block = torch.empty(1, rows, cols, dtype=dtype, device="meta")
            if schedule is None:
                needed = multiply_adds(rows, cols, 5, "standard", cut=False)
            else:
                restarts = len(restart_steps(schedule, dtype))
                method = choose_method(block, schedule)
                needed = multiply_adds(rows, cols, len(schedule), method, restarts, cut=cuts(block))
            total += 2.0 * heads * needed
        return total

    return count


def plain(make: Callable[..., torch.optim.Optimizer], **settings: Any) -> Callable[[list[Matrix]], Any]:
    return lambda matrices: make([matrix.param for matrix in matrices], **settings)


def contenders(device: str, arithmetic: torch.dtype | None = None) -> list[Row]:
    """All rows, ours in that arithmetic type (None: by default); a peer that is not installed is left out."""
    f32, bf16 = torch.float32, torch.bfloat16
    ours = arithmetic or AUTO_DTYPES.get(device, f32)
    own = {"compute_dtype": str(ours).removeprefix("torch.")}
    equal = "torch Muon, float32" if ours == f32 else "torch Muon, as it is"
    muon, open_gate, shut_gate = keller(), high_pass_schedule(5), high_pass_schedule(0)
    adam = {"lr": 1e-6, "weight_decay": 0.1}
    rows = [
        Row(
            "torch Muon, float32",
            plain(torch.optim.Muon, lr=1e-6),
            f32,
            "",
            operations(False, None, f32),
            step_in_float32,
        ),
        Row("torch Muon, as it is", plain(torch.optim.Muon, lr=1e-6), bf16, "", operations(False, None, bf16)),
        Row("muon", spectral("muon", False, **own), ours, equal, operations(False, muon, ours)),
        Row("muon per head", spectral("muon", True, **own), ours, equal, operations(True, muon, ours)),
        Row(
            "pion per head, k_p=0",
            spectral("pion", True, promotion_steps=0, **own),
            ours,
            equal,
            operations(True, shut_gate, ours),
        ),
        Row(
            "pion per head, auto",
            spectral("pion", True, promotion_steps="auto", **own),
            ours,
            equal,
            operations(True, open_gate, ours),
        ),
        Row("torch AdamW, fused", plain(torch.optim.AdamW, fused=True, **adam), f32, ""),
        Row("adamw", spectral("adamw", False), f32, "torch AdamW, fused"),
        Row("adamw, check_finite=False", spectral("adamw", False, check_finite=False), f32, "torch AdamW, fused"),
    ]
    rows += peers(operations(False, None, bf16))
    return rows


def peers(whole: Callable[[list[Matrix]], float]) -> Iterable[Row]:
    """Other libraries' Muon where they are installed; they compute in bfloat16."""

    def build_pytorch_optimizer(matrices: list[Matrix]) -> torch.optim.Optimizer:
        group = {"params": [matrix.param for matrix in matrices], "use_muon": True, "lr": 1e-6}
        return importlib.import_module("pytorch_optimizer").Muon([group])

    def build_heavyball(matrices: list[Matrix]) -> torch.optim.Optimizer:
        return importlib.import_module("heavyball").Muon([matrix.param for matrix in matrices], lr=1e-6)

    for module, build in (("pytorch_optimizer", build_pytorch_optimizer), ("heavyball", build_heavyball)):
        if importlib.util.find_spec(module) is not None:
            yield Row(f"{module} Muon", build, torch.bfloat16, "torch Muon, as it is", whole)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
clock = CLOCKS["wall"]


def seconds(function: Callable[[], Any], device: str) -> float:
    synchronise(device)
    start = clock()
    function()
    synchronise(device)
    return clock() - start


def matrix_rate(device: str, dtype: torch.dtype, largest: int) -> float:
    """Floating-point operations per second of a square product as large as the matrices, the best of five."""
    # On CPUs without units for bfloat16 a larger product takes minutes.
    slow = device == "cpu" and dtype != torch.float32 and not torch.cpu._is_amx_tile_supported()
    size = min(largest, 256 if slow else 2048)
    a = torch.randn(size, size, device=device).to(dtype)
    torch.mm(a[:64], a)
    return 2.0 * size**3 / min(seconds(lambda: torch.mm(a, a), device) for _ in range(5))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def measure(rows: list[Row], matrices: list[Matrix], device: str, repeats: int, limit: float) -> list[dict[str, Any]]:
    """Interleaved steps of all rows: one to warm up, then the median of `repeats`."""
    largest = max(max(matrix.param.shape) for matrix in matrices)
    rates = {dtype: matrix_rate(device, dtype, largest) for dtype in {row.arithmetic for row in rows}}
    results, running = [], []
    for row in rows:
        result: dict[str, Any] = {"name": row.name, "arithmetic": str(row.arithmetic).removeprefix("torch.")}
        results.append(result)
        needed = row.operations(matrices) if row.operations else 0.0
        result |= {"operations": needed, "baseline": row.baseline}
        if needed / rates[row.arithmetic] > limit:
            result["predicted_seconds"] = needed / rates[row.arithmetic]
            continue
        optimizer = row.build(matrices)
        row.step(optimizer)
        running.append((row, optimizer, result, []))
    for _ in range(repeats):
        for dtype in {row.arithmetic for row, *_ in running}:  # the same moments as the steps, where others compute too
            rates[dtype] = max(rates[dtype], matrix_rate(device, dtype, largest))
        for row, optimizer, result, times in running:
            before = torch.cuda.memory_allocated() if device == "cuda" else 0
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times.append(seconds(lambda row=row, optimizer=optimizer: row.step(optimizer), device))
            result["peak_extra_bytes"] = torch.cuda.max_memory_allocated() - before if device == "cuda" else None
    for row, optimizer, result, times in running:
        result |= {"seconds": statistics.median(times), "state_bytes": state_bytes(optimizer)}
        result["rate"] = rates[row.arithmetic]
        result["rate_share"] = result["operations"] / result["seconds"] / result["rate"] if row.operations else None
    medians = {result["name"]: result.get("seconds") for result in results}
    for result in results:
        baseline = medians.get(result["baseline"])
        result["ratio"] = result["seconds"] / baseline if baseline and "seconds" in result else None
    return results


def table(results: list[dict[str, Any]]) -> str:
    def megabytes(value: float | None) -> str:
        return "-" if value is None else f"{value / 2**20:.0f} MiB"

    lines = [
        "| optimizer | arithmetic | time | ratio | baseline | state | peak extra | of matrix rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in results:
        cells = [each["name"], each["arithmetic"]]
        if "seconds" in each:
            share = "-" if each["rate_share"] is None else f"{each['rate_share']:.0%}"
            ratio = "-" if each["ratio"] is None else f"{each['ratio']:.2f}"
            extra = megabytes(each["peak_extra_bytes"])
            time_taken = f"{1000 * each['seconds']:.1f} ms"
            cells += [time_taken, ratio, each["baseline"], megabytes(each["state_bytes"]), extra, share]
        else:
            cells += [f"left out, about {each['predicted_seconds']:.0f} s", *["-"] * 5]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scaling(device: str, dtype: torch.dtype, repeats: int, budget: float, largest: int) -> list[dict[str, Any]]:
    """Times over width (one layer) and over depth (width 512), until a series' next point would pass the budget."""
    peer = "torch Muon, float32" if device == "cpu" else "torch Muon, as it is"
    names = (peer, "muon", "muon per head", "pion per head, k_p=0")
    rows = [row for row in contenders(device) if row.name in names]
    points = []
    widths = [(w, 1) for w in (256, 512, 1024, 2048, 4096, 8192) if w <= largest]
    depths = [(min(512, largest), layers) for layers in (1, 2, 4, 8, 16, 32, 64)]
    for series, sizes, growth in (("width", widths, 8.0), ("depth", depths, 2.0)):
        for width, layers in sizes:
            shape = (width, width // 64, max(width // 128, 1), 128, 3 * width, layers)
            results = measure(rows, model(shape, layers, device, dtype), device, repeats, float("inf"))
            points += [each | {"series": series, "width": width, "layers": layers} for each in results]
            if growth * (repeats + 1) * sum(each["seconds"] for each in results) > budget:
                break
    return points


def plot(points: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, (series, key) in zip(axes, (("width", "width"), ("depth", "layers")), strict=True):
        for name in dict.fromkeys(point["name"] for point in points):
            line = [point for point in points if point["series"] == series and point["name"] == name]
            axis.loglog([point[key] for point in line], [point["seconds"] for point in line], marker="o", label=name)
        axis.set(xlabel=series, ylabel="seconds per step", title="one layer" if series == "width" else "width 512")
        axis.minorticks_off()
        sizes = sorted({point[key] for point in points if point["series"] == series})
        axis.set_xticks(sizes, labels=[str(size) for size in sizes])
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes[0].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", default="0.6b", choices=SIZES)
    parser.add_argument("--layers", type=int, help="default: all on CUDA, 2 on the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    parser.add_argument("--arithmetic", choices=("float32", "bfloat16"), help="of our iterations; default: automatic")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that one step may take")
    parser.add_argument(
        "--clock", default="wall", choices=CLOCKS, help="process: CPU time, on a machine that is shared"
    )
    parser.add_argument("--scaling", action="store_true", help="time over width and depth instead")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for one point of --scaling")
    parser.add_argument("--largest", type=int, default=8192, help="width at which --scaling ends")
    parser.add_argument("--output", type=Path, help="file name, without its ending, for JSON (and PNG)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    global clock
    options = parse(arguments)
    clock = CLOCKS[options.clock]
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    header = f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, {options.device}"
    header += f", {options.clock} clock"
    if options.scaling:
        results = scaling(options.device, dtype, options.repeats, options.budget, options.largest)
        for each in results:
            size = f"{each['series']} width={each['width']} layers={each['layers']}"
            print(f"{size} {each['name']}: {each['seconds']:.4f} s")
        if options.output:
            plot(results, options.output.with_suffix(".png"))
    else:
        shape = SIZES[options.size]
        layers = options.layers or (shape[-1] if options.device == "cuda" else 2)
        arithmetic = getattr(torch, options.arithmetic) if options.arithmetic else None
        rows = [row for row in contenders(options.device, arithmetic) if not options.only or row.name in options.only]
        matrices = model(shape, layers, options.device, dtype)
        results = measure(rows, matrices, options.device, options.repeats, options.limit)
        print(f"Qwen3 {options.size}, {layers} layers, weights {options.dtype}, {header}\n")
        print(table(results))
    if options.output:
        options.output.with_suffix(".json").write_text(json.dumps({"machine": header, "results": results}, indent=1))


if __name__ == "__main__":
    main()
