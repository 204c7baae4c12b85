"""What every process of a job checks; each function is called on all ranks, and compares with one process's result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rlspec.errors import CheckpointError, ConfigError
from rlspec.optim import RULES, SpectralOptimizer, build_optimizer
from rlspec.optim.sharding.state import whole, whole_state

CHECKS: dict[str, Callable[[Path], None]] = {}
SETTINGS: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "nesterov": True, "promotion_steps": "auto"}
LAYOUTS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((10, 6), {}),
    ((3, 7), {}),  # on four ranks the last has nothing
    ((1, 9), {}),  # all of it is one rank's
    ((12, 5), {"num_heads": 4}),  # whole heads on every rank
    ((18, 5), {"num_heads": 6}),  # on four ranks heads are cut in two
    ((5, 12), {"num_heads": 4, "head_axis": 1}),
    ((4, 6, 5), {"stacked": True}),
    ((3, 5, 6), {"stacked": True}),
]
"""Shapes and cuts of parameters, a group each."""


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHECKS[function.__name__] = function
    return function


class Bag(nn.Module):
    """Parameters without a forward pass."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        self.weights = nn.ParameterList([nn.Parameter(each) for each in drawn])


def gradient_of(step: int, position: int, shape: tuple[int, ...]) -> Tensor:
    """Of low stable rank, so that every gate lets something pass."""
    generator = torch.Generator().manual_seed(1000 * step + position)
    return torch.randn(shape, generator=generator) * 0.5 ** torch.arange(shape[-1])


def set_gradients(params: list[Any], step: int) -> None:
    for position, param in enumerate(params):
        gradient = gradient_of(step, position, tuple(param.shape)).to(param.dtype)
        if isinstance(param, DTensor):
            mesh = param.device_mesh
            axis = next(each.dim for each in param.placements if each.is_shard())
            rank, size = mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1)
            parts = list(gradient.chunk(size, axis))
            part = parts[rank] if rank < len(parts) else gradient.narrow(axis, 0, 0)
            gradient = DTensor.from_local(
                part.contiguous(), mesh, param.placements, run_check=False, shape=param.shape, stride=gradient.stride()
            )
        param.grad = gradient


def shapes_for(rule: str) -> tuple[list[tuple[int, ...]], list[dict[str, Any]], list[int]]:
    """Shapes, the groups' cuts, and how many parameters each group has."""
    if RULES[rule].kind == "pair":
        return [(3, 9), (6, 3), (3, 9), (6, 3), (2, 5), (7, 2)], [{}], [6]
    layouts = [*LAYOUTS, ((7,), {}), ((1,), {})] if RULES[rule].kind == "elementwise" else LAYOUTS
    return [shape for shape, _ in layouts], [cut for _, cut in layouts], [1] * len(layouts)


def optimizer_of(params: list[Any], rule: str, **settings: Any) -> SpectralOptimizer:
    _, cuts, counts = shapes_for(rule)
    left = iter(params)
    groups = [{"params": [next(left) for _ in range(count)], **cut} for cut, count in zip(cuts, counts, strict=True)]
    return SpectralOptimizer(groups, rule=rule, **(SETTINGS | settings))


def sharded(module: nn.Module, kind: str) -> nn.Module:
    """As FSDP2, HSDP or DDP have it."""
    if kind == "fsdp2":
        return fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    if kind == "hsdp":
        sizes = (2, dist.get_world_size() // 2)
        return fully_shard(module, mesh=init_device_mesh("cpu", sizes, mesh_dim_names=("copies", "parts")))
    return module


def run(rule: str, kind: str, steps: range = range(4), dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Parameters and optimizer after some steps; `kind` "" is one process."""
    bag = Bag(shapes_for(rule)[0], dtype)
    params = list(sharded(bag, kind).parameters())
    optimizer = optimizer_of(params, rule, **settings)
    if kind == "ddp":
        optimizer.process_group = dist.group.WORLD
    advance(params, optimizer, steps)
    return params, optimizer


def advance(params: list[Any], optimizer: SpectralOptimizer, steps: range) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def assert_same(params: list[Any], expected: list[Any], tolerance: float = 1e-6) -> None:
    for position, (param, other) in enumerate(zip(params, expected, strict=True)):
        torch.testing.assert_close(
            whole(param.detach()),
            other.detach(),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, n=position: f"{n}: {text}",
        )


def assert_same_state(optimizer: SpectralOptimizer, expected: SpectralOptimizer, tolerance: float = 1e-5) -> None:
    mine, theirs = whole_state(optimizer)["state"], expected.state_dict()["state"]
    assert mine.keys() == theirs.keys()
    for index, state in theirs.items():
        assert mine[index].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(
                mine[index][name],
                value,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, n=(index, name): f"{n}: {text}",
            )


def check_rule(rule: str, kind: str, folder: Path) -> None:
    expected, alone = run(rule, "")
    start = list(Bag(shapes_for(rule)[0]).parameters())
    assert all(not torch.equal(one, two) for one, two in zip(expected, start, strict=True))
    params, optimizer = run(rule, kind)
    assert_same(params, expected)
    assert_same_state(optimizer, alone)


KINDS = ("fsdp2", "ddp", "hsdp")
FOR_FOUR = {f"{rule}-hsdp" for rule in RULES} | {f"{rule}-ddp" for i, rule in enumerate(RULES) if i % 3}
"""Left to the slow job of four: HSDP, where of two ranks each would have everything, and DDP, which deals whole
matrices whatever the rule, of all but every third rule."""
for kind in KINDS:
    for rule in RULES:
        CHECKS[f"{rule}-{kind}"] = partial(check_rule, rule, kind)


@contextmanager
def counted(name: str = "all_to_all_single") -> Iterator[list[int]]:
    """Bytes that this rank sends to others by a collective, call by call."""
    sent: list[int] = []
    original = getattr(dist, name)

    def counting(
        received: Tensor, outgoing: Tensor, counts: list[int], sizes: list[int], group: Any, **kwargs: Any
    ) -> Any:
        sent.append((sum(sizes) - sizes[group.rank()]) * outgoing.element_size())
        return original(received, outgoing, counts, sizes, group, **kwargs)

    setattr(dist, name, counting)
    try:
        yield sent
    finally:
        setattr(dist, name, original)


def step_of(shape: tuple[int, ...], rule: str, kind: str = "fsdp2", **settings: Any) -> list[int]:
    params = list(sharded(Bag([shape, shape]), kind).parameters())
    optimizer = SpectralOptimizer(params, rule=rule, **(SETTINGS | settings))
    with counted() as sent:
        advance(params, optimizer, range(2))
    return sent


@check
def what_is_elementwise_or_has_whole_heads_never_travels(folder: Path) -> None:
    world = dist.get_world_size()
    assert not step_of((5, 6), "adamw")
    assert not step_of((5, 6), "ademamix")
    assert not step_of((2 * world, 6), "pion", num_heads=world)
    assert not step_of((2 * world, 6), "normuon", num_heads=2 * world, weight_decay=0.0)
    assert not step_of((world + 1, 4, 6), "muon", stacked=True)


@check
def a_matrix_travels_to_its_owner_and_back_once(folder: Path) -> None:
    world, rank = dist.get_world_size(), dist.get_rank()
    sent = step_of((8, 6), "muon", num_heads=3, head_axis=1)  # o: heads on columns
    whole_bytes = 8 * 6 * 4
    total = torch.tensor(sum(sent))
    dist.all_reduce(total)
    # Two steps, two matrices, there and back: every part but the owner's own.
    assert int(total) == 2 * 2 * 2 * whole_bytes * (world - 1) // world, (rank, sent)


@check
def updates_are_dealt_under_ddp_and_each_is_sent_to_the_others_once(folder: Path) -> None:
    params = list(Bag([(8, 6)] * 4).parameters())
    optimizer = SpectralOptimizer(params, rule="muon", process_group=dist.group.WORLD)
    with counted() as sent:
        advance(params, optimizer, range(1))
    world = dist.get_world_size()
    assert sum(sent) == (world - 1) * (4 // world) * 8 * 6 * 4


@check
def momentum_and_buffers_stay_cut(folder: Path) -> None:
    world = dist.get_world_size()
    for rule in ("muon", "adamuon", "soap", "adamw"):
        params = list(sharded(Bag([(8 * world, 16), (16, 8 * world)]), "fsdp2").parameters())
        optimizer = SpectralOptimizer(params, rule=rule)
        advance(params, optimizer, range(2))
        for param in params:
            for name, value in optimizer.state[param].items():
                if value.numel() >= 8 * world:
                    assert value.to_local().numel() == value.numel() // world, (rule, name)


def with_hole(kind: str, hole: Callable[[list[Any], int], None]) -> tuple[list[Any], SpectralOptimizer]:
    """Three steps, of which the second has a fault in the gradient of parameter 0 on the last rank."""
    params = list(sharded(Bag([(8, 6), (6, 8), (8,)]), kind).parameters())
    groups = [{"params": params[:2], "rule": "muon"}, {"params": params[2:], "rule": "adamw"}]
    process_group = dist.group.WORLD if kind == "ddp" else None
    optimizer = SpectralOptimizer(groups, process_group=process_group, **SETTINGS)
    for step in range(3):
        set_gradients(params, step)
        if step == 1:
            hole(params, dist.get_rank())
        optimizer.step()
    return params, optimizer


def without_second_step() -> list[Any]:
    params = list(Bag([(8, 6), (6, 8), (8,)]).parameters())
    groups = [{"params": params[:2], "rule": "muon"}, {"params": params[2:], "rule": "adamw"}]
    optimizer = SpectralOptimizer(groups, **SETTINGS)
    for step in range(3):
        set_gradients(params, step)
        if step == 1:
            params[0].grad = None
        optimizer.step()
    return params


def poison(params: list[Any], rank: int) -> None:
    if rank == dist.get_world_size() - 1:
        gradient = params[0].grad
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient)[0, 0] = math.nan


def remove(params: list[Any], rank: int) -> None:
    if rank == dist.get_world_size() - 1:
        params[0].grad = None


@check
def nan_on_one_rank_skips_the_matrix_on_all(folder: Path) -> None:
    for kind in ("fsdp2", "hsdp", "ddp"):
        params, optimizer = with_hole(kind, poison)
        assert_same(params, without_second_step())
        assert optimizer.telemetry()["all"]["skipped"] == 1


@check
def nan_on_one_rank_masks_the_matrix_on_all_where_nobody_waits_for_the_device(folder: Path) -> None:
    defers = SpectralOptimizer._defers
    SpectralOptimizer._defers = lambda self, param: True  # type: ignore[method-assign]
    try:
        for kind in ("fsdp2", "ddp"):
            params, optimizer = with_hole(kind, poison)
            assert_same(params, without_second_step())
            assert optimizer.telemetry()["all"]["skipped"] == 1
    finally:
        SpectralOptimizer._defers = defers  # type: ignore[method-assign]


def zero(params: list[Any], ranks: set[int]) -> None:
    for param in params if dist.get_rank() in ranks else []:
        (param.grad.to_local() if isinstance(param.grad, DTensor) else param.grad).zero_()


@check
def a_step_is_left_out_by_all_where_every_gradient_of_every_rank_is_zero_and_by_none_otherwise(folder: Path) -> None:
    defers = SpectralOptimizer._defers
    everyone = set(range(dist.get_world_size()))
    for kind, on_device in (("fsdp2", False), ("hsdp", True), ("fsdp2", True), ("ddp", False), ("ddp", True)):
        SpectralOptimizer._defers = (lambda self, param: True) if on_device else defers  # type: ignore[method-assign]
        for ranks in (everyone, everyone - {0}):
            params = list(sharded(Bag([(8, 6), (6, 8)]), kind).parameters())
            group = dist.group.WORLD if kind == "ddp" else None
            optimizer = SpectralOptimizer(params, process_group=group, skip_zero_gradients=True, **SETTINGS)
            set_gradients(params, 0)
            optimizer.step()
            before = [whole(param).clone() for param in params]
            set_gradients(params, 1)
            zero(params, ranks)
            optimizer.step()
            moved = [not torch.equal(old, whole(param)) for old, param in zip(before, params, strict=True)]
            assert any(moved) == (ranks != everyone), (kind, on_device, ranks)
            assert optimizer.zero_steps() == (ranks == everyone), (kind, on_device, ranks)
    SpectralOptimizer._defers = defers  # type: ignore[method-assign]


@check
def a_gradient_that_one_rank_lacks_is_left_out_by_all_with_a_warning(folder: Path) -> None:
    for kind in ("fsdp2", "ddp"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            params, _ = with_hole(kind, remove)
        assert_same(params, without_second_step())
        assert any("on some processes only" in str(each.message) for each in caught)


@check
def settings_that_need_whole_matrices_give_the_weights_of_one_process(folder: Path) -> None:
    for settings in (
        {"spectral_cap": 0.5},
        {"gradient_clip": 0.5},
        {"update_clip": 0.5},
        {"adjust_lr": "match_spectral_adamw"},
        {"weight_decay": 0.0},
    ):
        for rule in ("muon", "pion", "namo_d"):
            assert_same(run(rule, "fsdp2", **settings)[0], run(rule, "", **settings)[0])


@check
def other_dtypes_give_the_weights_of_one_process(folder: Path) -> None:
    for rule in ("muon", "adamw", "fismo", "lora_muon"):
        for dtype in (torch.bfloat16, torch.float64):
            for kind in ("fsdp2", "ddp"):
                params, optimizer = run(rule, kind, dtype=dtype)
                expected, alone = run(rule, "", dtype=dtype)
                assert_same(params, expected)
                assert_same_state(optimizer, alone)


@check
def what_others_keep_beside_the_state_stays_theirs(folder: Path) -> None:
    for kind in ("fsdp2", "ddp"):
        for rule, telemetry_every in (("normuon", 0), ("pion", 1), ("lora_rite", 0), ("adamw", 1)):
            params, optimizer = run(rule, kind, range(0), telemetry_every=telemetry_every)
            rank = float(dist.get_rank())
            for param in params:
                optimizer.state[param] |= {"word": "x", "rank": torch.full((3,), rank)}
            optimizer.state["calls"] = 3  # type: ignore[assignment,index]
            advance(params, optimizer, range(2))
            assert_same(params, run(rule, "", range(2))[0])
            assert whole_state(optimizer)["state"]["calls"] == 3
            kept = [optimizer.state[param] for param in params]
            assert all(state["word"] == "x" and (state["rank"] == rank).all() for state in kept)


@check
def a_tiny_workspace_gives_the_same_in_many_rounds(folder: Path) -> None:
    for kind in ("fsdp2", "ddp"):
        params = list(sharded(Bag([(8, 6)] * 9), kind).parameters())
        optimizer = SpectralOptimizer(params, rule="normuon", workspace_bytes=0, **SETTINGS)
        optimizer.process_group = dist.group.WORLD if kind == "ddp" else None
        expected = list(Bag([(8, 6)] * 9).parameters())
        with counted() as sent:
            advance(params, optimizer, range(1))
        assert len(sent) >= 9 // dist.get_world_size()
        advance(expected, SpectralOptimizer(expected, rule="normuon", **SETTINGS), range(1))
        assert_same(params, expected)


@check
def telemetry_is_that_of_one_process(folder: Path) -> None:
    for rule in ("pion", "muon", "adamw", "sgd", "lora_muon"):
        for kind in KINDS:
            _, optimizer = run(rule, kind, telemetry_every=2)
            _, alone = run(rule, "", telemetry_every=2)
            mine, theirs = optimizer.telemetry(), alone.telemetry()
            assert mine.keys() == theirs.keys()
            for role, numbers in theirs.items():
                assert mine[role].keys() == numbers.keys(), (rule, kind)
                for name, value in numbers.items():
                    torch.testing.assert_close(
                        mine[role][name], value, rtol=1e-4, atol=1e-6, msg=f"{rule} {kind} {name}"
                    )


@check
def a_role_that_nothing_passes_is_idle_on_every_rank(folder: Path) -> None:
    params = list(sharded(Bag([(8, 8)]), "fsdp2").parameters())
    optimizer = SpectralOptimizer(params, rule="pion", role="shut", promotion_steps=0)
    for step in range(12):
        set_gradients(params, step)
        parts = torch.eye(8).chunk(dist.get_world_size())
        params[0].grad.to_local().copy_(parts[dist.get_rank()])  # of the highest stable rank
        optimizer.step()
    assert optimizer.inactive_spectral_groups() == ["shut"]


class Tied(nn.Module):
    """Attention, embeddings that are also the output, norms and biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, bias=False)
        self.linear = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        hidden = self.norm(hidden + self.linear(self.attention(hidden, hidden, hidden)[0]))
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), tokens.roll(1, 1).flatten())


ROWS = 8


def tokens_of(step: int, rows: slice) -> Tensor:
    return torch.randint(0, 11, (ROWS, 6), generator=torch.Generator().manual_seed(step))[rows]


def trained(model: nn.Module, rows: slice, steps: range = range(3), **settings: Any) -> SpectralOptimizer:
    optimizer = build_optimizer(model, **({"rule": "muon", "lr": 0.01, "split": "heads"} | settings))
    go_on(model, optimizer, rows, steps)
    return optimizer


def go_on(model: nn.Module, optimizer: SpectralOptimizer, rows: slice, steps: range) -> None:
    for step in steps:
        model(tokens_of(step, rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()


def own_rows() -> slice:
    each = ROWS // dist.get_world_size()
    return slice(each * dist.get_rank(), each * (dist.get_rank() + 1))


def fsdp2(model: nn.Module, **arguments: Any) -> nn.Module:
    fully_shard(model.attention, **arguments)
    return fully_shard(model, **arguments)


def names_of(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): whole(param.detach()) for name, param in model.named_parameters()}


def assert_near(model: nn.Module, expected: nn.Module, tolerance: float = 2e-6) -> None:
    mine, theirs = names_of(model), names_of(expected)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            mine[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


@check
def a_model_trains_as_on_one_process_with_the_joint_batch(folder: Path) -> None:
    """Tied embeddings, clipping by the norm of all gradients, a role per parameter; FSDP2, HSDP, offloaded, DDP."""
    world = dist.get_world_size()
    for rule in ("muon", "pion", "normuon"):
        alone = Tied()
        trained(alone, slice(None), rule=rule, promotion_steps="auto")
        mesh = init_device_mesh("cpu", (world,))
        copies = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copies", "parts"))
        models = [
            fsdp2(Tied(), mesh=mesh),
            fsdp2(Tied(), mesh=copies),
            fsdp2(Tied(), mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False)),
            nn.parallel.DistributedDataParallel(Tied()),
        ]
        for model in models:
            optimizer = trained(model, own_rows(), rule=rule, promotion_steps="auto")
            assert_near(model, alone)
            assert optimizer.symmetry is not None
            assert "attention.qkv" in optimizer.symmetry.roles


@check
def live_probes_read_of_a_shared_model_what_they_read_of_a_whole_one(folder: Path) -> None:
    from rlspec.diagnostics.alignment import live_probes
    from rlspec.diagnostics.probes import read_probes

    found = []
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for model in (Tied(), fsdp2(Tied(), mesh=mesh)):
        probes = live_probes()
        probes[-1].every = 1  # type: ignore[attr-defined]
        optimizer = build_optimizer(model, rule="muon", lr=0.01, telemetry_every=1)
        read_probes(model, optimizer, probes)
        go_on(model, optimizer, slice(None), range(3))
        found.append(read_probes(model, optimizer, probes).numbers)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert "alignment/mean" in found[0]


@check
def heads_on_columns_stay_where_they_are_if_the_user_cuts_columns(folder: Path) -> None:
    from torch.distributed.tensor import Shard

    world = dist.get_world_size()
    module = fully_shard(
        Bag([(6, 4 * world)]), mesh=init_device_mesh("cpu", (world,)), shard_placement_fn=lambda param: Shard(1)
    )
    params = list(module.parameters())
    settings = SETTINGS | {"rule": "pion", "num_heads": 2 * world, "head_axis": 1}
    with counted() as sent:
        advance(params, SpectralOptimizer(params, **settings), range(3))
    assert not sent
    expected = list(Bag([(6, 4 * world)]).parameters())
    advance(expected, SpectralOptimizer(expected, **settings), range(3))
    assert_same(params, expected)


STORED = ("muon", "pion", "normuon", "soap", "trion", "ademamix", "adamw", "lora_rite")
"""Rules whose checkpoints are read by other numbers of processes: with and without buffers, cut in every way."""


def bag_of(rule: str, kind: str) -> tuple[nn.Module, SpectralOptimizer]:
    bag = sharded(Bag(shapes_for(rule)[0]), kind)
    return bag, optimizer_of(list(bag.parameters()), rule)


def save(folder: Path, kind: str) -> None:
    """Two steps of every rule, in torch.distributed.checkpoint's format."""
    for rule in STORED:
        bag, optimizer = bag_of(rule, kind)
        advance(list(bag.parameters()), optimizer, range(2))
        for param in bag.parameters():
            param.grad = None
        model_state, optimizer_state = get_state_dict(bag, optimizer)
        dcp.save({"model": model_state, "optim": optimizer_state}, checkpoint_id=folder / rule, no_dist=kind == "")


def resume(folder: Path, kind: str) -> None:
    """Two more steps from a checkpoint are four without a stop."""
    for rule in STORED:
        bag, optimizer = bag_of(rule, kind)
        model_state, optimizer_state = get_state_dict(bag, optimizer)
        stored = {"model": model_state, "optim": optimizer_state}
        dcp.load(stored, checkpoint_id=folder / rule, no_dist=kind == "")
        set_state_dict(bag, optimizer, model_state_dict=stored["model"], optim_state_dict=stored["optim"])
        advance(list(bag.parameters()), optimizer, range(2, 4))
        expected, alone = run(rule, "")
        assert_same(list(bag.parameters()), expected)
        assert_same_state(optimizer, alone)


@check
def a_checkpoint_is_written_by_all(folder: Path) -> None:
    save(folder / "checkpoint", "fsdp2")
    resume(folder / "checkpoint", "fsdp2")


@check
def a_whole_state_of_one_process_loads_and_one_can_be_had(folder: Path) -> None:
    for kind in ("fsdp2", "hsdp"):
        for rule in STORED:
            params, optimizer = run(rule, "", range(2))
            bag, mine = bag_of(rule, kind)
            mine.load_state_dict(optimizer.state_dict())
            with torch.no_grad():
                for param, value in zip(bag.parameters(), params, strict=True):
                    param.copy_(torch.distributed.tensor.distribute_tensor(value, param.device_mesh, param.placements))
            assert_same_state(mine, optimizer)
            advance(list(bag.parameters()), mine, range(2, 4))
            assert_same(list(bag.parameters()), run(rule, "")[0])


@contextmanager
def refused(words: str, error: type[Exception] = ConfigError) -> Iterator[None]:
    try:
        yield
    except error as found:
        assert words in str(found), found  # noqa: PT017
        assert "\n" not in str(found)  # noqa: PT017
    else:
        raise AssertionError(f"nothing was said of {words}")


@check
def bad_input_is_refused_by_name(folder: Path) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    model = Tied()
    fully_shard(model.attention, mesh=mesh)
    with refused("embed.weight is not sharded and attention.in_proj_weight is"):
        build_optimizer(model, rule="muon")
    model = Tied()
    fully_shard(model, mesh=mesh, ignored_params={model.linear.weight})
    with refused("linear.weight is not sharded and embed.weight is"):
        build_optimizer(model, rule="muon")
    parallel = parallelize_module(nn.Sequential(nn.Linear(8, 8)), mesh, {"0": ColwiseParallel()})
    with refused("0: layers cut by parallelize_module (tensor parallelism) are not supported"):
        build_optimizer(parallel, rule="muon")
    grid = init_device_mesh("cpu", (1, world), mesh_dim_names=("dp", "tp"))
    both = parallelize_module(nn.Sequential(nn.Linear(8, 8)), grid["tp"], {"0": ColwiseParallel()})
    fully_shard(both, mesh=grid["dp"])
    with refused("are tensor parallelism, which is not supported; leave that axis out of the mesh"):
        SpectralOptimizer(both.named_parameters(), rule="muon")
    params, optimizer = run("muon", "fsdp2", range(1))
    other = list(sharded(Bag([(4, 4)] * len(params)), "fsdp2").parameters())
    with refused("use the model of the checkpoint", CheckpointError):
        SpectralOptimizer([{"params": [each]} for each in other], rule="muon").load_state_dict(
            SpectralOptimizer(
                [{"params": [each]} for each in Bag([(5, 4)] * len(params)).parameters()], rule="muon"
            ).state_dict()
            | {"state": {0: {"step": torch.tensor(1.0), "momentum_buffer": torch.zeros(5, 4)}}}
        )


@check
def models_that_cannot_be_cut_are_refused_by_name(folder: Path) -> None:
    from rlspec.runtime.sharding import shard_model

    mixed = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False).bfloat16())
    with refused("0.weight is torch.float32 and 1.weight is torch.bfloat16, and FSDP2 cuts trained"):
        shard_model(mixed, None, "cpu")
    mixed[1].requires_grad_(False)
    mixed.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    with refused("scale is a scalar, which has no axis to cut; set sharding=ddp"):
        shard_model(mixed, None, "cpu")


def a_checkpoint_of_others_is_read(folder: Path) -> None:
    resume(Path((folder / "source").read_text(encoding="utf-8")), "fsdp2")


MORE = {"a_checkpoint_of_others_is_read": a_checkpoint_of_others_is_read}
"""Run by name only."""
