"""Bytes, and time, of an optimizer step on Qwen3's matrices under FSDP2, against the number of processes.

    python tests/benchmarks/distributed.py --layers 2 --ranks 2 4 8 --output tests/benchmarks/results/distributed.json
    python tests/benchmarks/distributed.py --layers 1 --ranks 1 2 --time --output FILE

Bytes are counted where the collectives are called, by their tensors: every rank in turn takes a step among peers that
do not exist (torch's fake process group), with one iteration where the number of iterations sends nothing, and
torch.optim.Muon on tensors without values. They are those that a rank sends, as a ring would (all-gather and
reduce-scatter (W - 1) / W of the whole, all-reduce twice that, all-to-all what is not its own); the mean over ranks.
With --time, instead, real processes of one thread step by gloo, all methods by turns, so that what else runs on the
machine meets all alike; seconds are the processor's in the busiest rank, their median over rounds. Methods:

    muon per head, muon whole   ours; per head q, k and v stay where they are
    torch.optim.Muon            on DTensors, whole matrices: in bfloat16 as it is, its time in float32
    naive all-gather            every rank gathers every direction and updates every matrix, whole
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from optimizer_step import SIZES, Matrix, model, step_in_float32
from torch import Tensor, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from rlspec.optim import SpectralOptimizer
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.kernels.schedules import keller
from rlspec.runtime.planner import DEVICES, GIB, SHAPES, Workload, optimizer_operations, plan

METHODS = ("muon per head", "pion per head", "muon whole", "torch.optim.Muon", "naive all-gather", "adamw")


def tensors_in(values: Any) -> list[Tensor]:
    """Of nested lists, in order."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in tensors_in(value)] if isinstance(values, list | tuple) else []


class CountedBytes(TorchDispatchMode):
    """Adds up what this rank sends to others by every collective of torch."""

    def __init__(self, world: int, rank: int) -> None:
        super().__init__()
        self.world, self.rank, self.sent, self.calls = world, rank, 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # it comes again, with local tensors and collectives
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            self.count(func._schema.name.partition("::")[2], args, result)
        return result

    def count(self, name: str, args: Any, result: Any) -> None:
        share = (self.world - 1) / self.world
        first = tensors_in(args[0])
        size = sum(tensor.nbytes for tensor in first)
        if name.startswith(("wait_tensor", "barrier", "_wrap_tensor")):
            return
        self.calls += 1
        if "all_gather_into_tensor" in name or name.startswith(("_allgather_base", "allgather")):
            whole = size * self.world if name.startswith("all_gather_into") else size
            self.sent += whole * share
        elif "reduce_scatter" in name:
            self.sent += size * share
        elif name.startswith(("all_reduce", "allreduce")):
            self.sent += 2 * size * share
        elif "alltoall" in name or "all_to_all" in name:
            outgoing, sizes = (tensors_in(args[1])[0], args[-2]) if "alltoall" in name else (first[0], args[2])
            numbers = [each for each in args if isinstance(each, list) and each and isinstance(each[0], int)]
            own = numbers[-1][self.rank] if numbers else sizes[self.rank]
            self.sent += (outgoing.numel() - own) * outgoing.element_size()
        else:
            raise ValueError(f"how many bytes does {name} send?")


class AllGather:
    """The naive way: momentum in parts, then every rank does all of Muon."""

    def __init__(self, params: list[Any], ns_steps: int) -> None:
        self.params, self.ns_steps = params, ns_steps
        self.buffers = [torch.zeros_like(param) for param in params]

    @torch.no_grad()
    def step(self) -> None:
        for param, buffer in zip(self.params, self.buffers, strict=True):
            buffer.lerp_(param.grad, 0.05)
            whole = buffer.full_tensor() if hasattr(buffer, "full_tensor") else buffer
            update = newton_schulz(frobenius(whole[None], torch.float32), keller(self.ns_steps))[0]
            if hasattr(param, "full_tensor"):
                rows = param.to_local().shape[0]
                mesh = param.device_mesh
                start = -(-param.shape[0] // mesh.size()) * mesh.get_local_rank()
                param.to_local().sub_(update[start : start + rows], alpha=1e-3)
            else:
                param.sub_(update, alpha=1e-3)


def optimizer_of(method: str, matrices: list[Matrix], params: list[Any], ns_steps: int = 5) -> Any:
    if method == "torch.optim.Muon":
        return torch.optim.Muon(params, lr=1e-3)
    if method == "naive all-gather":
        return AllGather(params, ns_steps)
    rule, _, cut = method.partition(" ")
    heads = cut == "per head"
    groups = [
        {"params": [param], "num_heads": each.num_heads if heads else 1, "head_axis": each.head_axis if heads else 0}
        for each, param in zip(matrices, params, strict=True)
    ]
    return SpectralOptimizer(groups, rule=rule, lr=1e-3, ns_steps=ns_steps, promotion_steps=min(1, ns_steps))


@contextmanager
def as_on_gpus(counted: CountedBytes) -> Iterator[None]:
    """DTensor changes the axis of a cut by an all-to-all; for groups of CPUs it gathers everything, which is unfair."""
    from torch.distributed.tensor import placement_types

    original = placement_types.shard_dim_alltoall

    def all_to_all(part: Tensor, gather_dim: int, shard_dim: int, mesh: Any, mesh_dim: int) -> Tensor:
        counted.sent += part.nbytes * (counted.world - 1) / counted.world
        counted.calls += 1
        shape = list(part.shape)
        shape[gather_dim] *= counted.world
        shape[shard_dim] //= counted.world
        return part.new_empty(shape)

    placement_types.shard_dim_alltoall = all_to_all
    try:
        yield
    finally:
        placement_types.shard_dim_alltoall = original


def parts_of(size: str, layers: int, mesh: Any, device: str) -> tuple[list[Matrix], list[Any]]:
    """The matrices of that many layers as FSDP2 has them, with gradients."""
    matrices = model(SIZES[size], layers, device, torch.float32)
    bag = nn.Module()
    bag.weights = nn.ParameterList([each.param for each in matrices])
    params = list(fully_shard(bag, mesh=mesh).parameters())
    for param in params:
        param.grad = torch.full_like(param, 1e-4) + 1e-5 * param.detach()
    return matrices, params


def count(method: str, world: int, size: str, layers: int) -> dict[str, float]:
    """Bytes and collectives of a rank's step, in the mean over ranks."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    sent, calls, weights = 0.0, 0, 0
    for rank in range(world):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        mesh = init_device_mesh("cpu", (world,))
        matrices, params = parts_of(size, layers, mesh, "meta" if method == "torch.optim.Muon" else "cpu")
        weights = sum(param.numel() for param in params)
        optimizer = optimizer_of(method, matrices, params, ns_steps=1)
        with CountedBytes(world, rank) as counted, as_on_gpus(counted):
            optimizer.step()
        sent, calls = sent + counted.sent, calls + counted.calls
        dist.destroy_process_group()
    return {
        "bytes_per_rank": sent / world,
        "bytes_per_weight": sent / world / weights,
        "collectives": calls / world,
    }


def measure(rank: int, world: int, folder: str, options: dict[str, Any]) -> None:
    """One real process: the time of every method, round after round."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    made = {
        name: optimizer_of(name, *parts_of(options["size"], options["layers"], mesh, "cpu"))
        for name in options["methods"]
    }
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(options["steps"]):
        for name, optimizer in made.items():
            started = time.process_time()
            step_in_float32(optimizer) if name == "torch.optim.Muon" else optimizer.step()
            busiest = torch.tensor(time.process_time() - started, dtype=torch.float64)
            dist.all_reduce(busiest, dist.ReduceOp.MAX)
            seconds[name].append(float(busiest))
    rows = {name: {"seconds": statistics.median(values)} for name, values in seconds.items()}
    for name, row in rows.items():
        row |= planned(name, world, options, rate())
        row["held_gib"] = held(made[name]) / GIB
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    dist.destroy_process_group()


def rate() -> float:
    """Floating-point operations per second of this processor, of a product of 1024 x 1024 matrices."""
    matrix, seconds = torch.randn(1024, 1024), []
    for _ in range(4):
        started = time.process_time()
        matrix @ matrix
        seconds.append(time.process_time() - started)
    return 2 * 1024**3 / min(seconds)


def held(optimizer: Any) -> float:
    """Bytes of this rank's weights, gradients and state."""
    if isinstance(optimizer, AllGather):
        tensors = [*optimizer.params, *(param.grad for param in optimizer.params), *optimizer.buffers]
    else:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        tensors = [*params, *(param.grad for param in params), *states]
    return float(sum((each.to_local() if hasattr(each, "to_local") else each).nbytes for each in tensors))


def planned(method: str, world: int, options: dict[str, Any], rate: float) -> dict[str, float]:
    """What `rlspec.plan` says of one of ours, with this processor's rate for a device's."""
    if method not in ("muon per head", "muon whole"):
        return {}
    qwen = SHAPES["qwen3_" + options["size"]]
    shape = replace(qwen, layers=options["layers"], vocab=0)
    load = Workload(gpus=world, per_head=method == "muon per head")
    memory = plan(shape, load, DEVICES["h100_80gb"]).memory
    static = sum(memory[name] for name in ("weights", "gradients", "optimizer"))
    return {"planned_seconds": optimizer_operations(shape, load) / rate, "planned_gib": static / GIB}


def timed(world: int, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every method."""
    with tempfile.TemporaryDirectory() as folder:
        plain = {key: value for key, value in options.items() if key != "output"}
        multiprocessing.spawn(measure, (world, folder, plain), nprocs=world)
        found: dict[str, Any] = json.loads(Path(folder, "rows.json").read_text(encoding="utf-8"))
        return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.6b", choices=SIZES)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="of those that are timed")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--time", action="store_true", help="in real processes, instead")
    parser.add_argument("--output", type=Path)
    options = vars(parser.parse_args(argv))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    results: dict[str, dict[str, Any]] = {}
    for world in options["ranks"]:
        rows = results[str(world)] = {}
        if options["time"]:
            rows |= timed(world, options)
        for method in options["methods"]:
            if not options["time"]:
                rows[method] = count(method, world, options["size"], options["layers"])
            print(f"{world} ranks  {method:18} {rows[method]}", flush=True)
    if options["output"]:
        command = shlex.join(["python", "tests/benchmarks/distributed.py", *(sys.argv[1:] if argv is None else argv)])
        about = {"command": command, "machine": f"{os.cpu_count()} cores, gloo", "date": time.strftime("%F")}
        about |= {key: options[key] for key in ("size", "layers")} | {"torch": torch.__version__}
        options["output"].write_text(json.dumps({**about, "ranks": results}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
