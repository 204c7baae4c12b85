"""State of sharded parameters: what stages keep is cut as well, and a whole state fits any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Buffer, Rule
from rlspec.optim.sharding.shards import (
    Shards,
    cut_axis,
    full,
    is_dtensor,
    local,
    local_blocks,
    placed_like,
    shard_group,
    shards_of,
)

Group = dict[str, Any]
Initial = Callable[[Tensor, Group, int], dict[str, Tensor]]


def describe(param: Tensor) -> Tensor:
    """The same shape and dtype without values, whole."""
    return torch.empty(tuple(param.shape), dtype=param.dtype, device="meta")


def shard_buffer(buffer: Buffer, blocks: int, dtype: torch.dtype, param: Tensor, rule: Rule, cut: Any) -> Tensor:
    """A stage's buffer of a parameter as it starts, cut over the parameter's ranks.

    Args:
        buffer: of one block.
        blocks: of the whole parameter.
        dtype: of the buffer.
        param: a DTensor.
        rule: of its group.
        cut: num_heads, head_axis, stacked.
    """
    shape = (blocks, *buffer.shape)
    group = shard_group(param)[0]
    size, rank = group.size(), group.rank()
    axis = cut_axis(param)
    if axis is None:
        return _replicated(buffer.new(blocks, dtype, param.device), param)
    if not rule.spectral:
        if axis > 1:
            raise ConfigError(f"rule {rule.name} needs parameters that are cut on axis 0 or 1, not {axis}; use adamw")
        dim = axis + 1  # the matrix is block 0
    elif local_blocks(Shards(size, axis, tuple(param.shape)), rank, *cut) is not None:
        dim = 0
    else:
        dim = max(range(len(shape)), key=lambda number: shape[number])
    shards = Shards(size, dim, shape)
    if buffer.start in ("zeros", "ones"):
        fill = torch.ones if buffer.start == "ones" else torch.zeros
        part = fill(shards.part_shape(rank), dtype=dtype, device=param.device)
    else:
        part = shards.part(buffer.new(blocks, dtype, param.device), rank).clone()
    return placed_like(param, shape, dim, part)


def _replicated(whole: Tensor, param: Any) -> Tensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(whole, param.device_mesh, param.placements, run_check=False)


def cut_state(state_dict: dict[str, Any], groups: list[Group], initial: Initial) -> dict[str, Any]:
    """A stored state whose whole tensors are cut as those of the optimizer that loads it; others stay.

    Args:
        state_dict: as `Optimizer.state_dict` gives it.
        groups: of the optimizer.
        initial: the state of a parameter as it starts.
    """
    states = dict(state_dict["state"])
    for before, now in zip(state_dict["param_groups"], groups, strict=True):
        for position, (index, param) in enumerate(zip(before["params"], now["params"], strict=True)):
            if index in states and is_dtensor(param):
                like = initial(param, now, position)
                states[index] = {name: _cut(value, like.get(name)) for name, value in states[index].items()}
    return state_dict | {"state": states}


def _cut(value: Any, like: Tensor | None) -> Any:
    if not isinstance(value, Tensor) or is_dtensor(value) or like is None or cut_axis(like) is None:
        return value
    group = shard_group(like)[0]
    dim = cut_axis(like)
    assert dim is not None
    part = Shards(group.size(), dim, tuple(value.shape)).part(value, group.rank()).to(like.device, copy=True)
    return placed_like(like, value.shape, dim, part.contiguous())


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor, or its part into a DTensor's."""
    if cut_axis(tensor) is None:
        local(tensor).copy_(value)
        return
    group = shard_group(tensor)[0]
    local(tensor).copy_(shards_of(tensor, group.size()).part(value, group.rank()))


def whole(tensor: Any, *, kept: bool = True) -> Any:
    """The whole of a DTensor on the CPU, the tensor itself if it is none. All ranks must call it.

    Who does not keep it gets nothing: the memory of a machine has no room for the state of each of its processes.
    """
    if not is_dtensor(tensor):
        return tensor
    if tensor.device_mesh.device_type != "cpu" and local(tensor).device.type == "cpu":  # offloaded
        tensor = tensor.to(tensor.device_mesh.device_type)
    gathered = full(tensor)
    return gathered.cpu() if kept else None


def whole_state(optimizer: torch.optim.Optimizer, *, kept: bool = True) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors on the CPU, as one process has it. All ranks must call it.

    Loading needs nothing special: `optimizer.load_state_dict` cuts whole tensors for as many processes as there are.
    """
    state_dict = optimizer.state_dict()
    states = {
        index: {name: whole(value, kept=kept) for name, value in state.items()} if isinstance(state, dict) else state
        for index, state in state_dict["state"].items()
    }
    return state_dict | {"state": states}
