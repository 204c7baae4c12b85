"""How a parameter lies across processes: what FSDP2, HSDP and DDP make of it, and what is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlspec.errors import ConfigError

REMEDY = (
    "use FSDP2 (torch.distributed.fsdp.fully_shard; in Hugging Face's trainers fsdp_config={'fsdp_version': 2}) or DDP"
)

FLATTENED = {"_fsdp_flattened": "FSDP1", "ds_id": "DeepSpeed ZeRO-3"}
"""Attribute that a parameter has -> what has cut it without regard to its rows."""


@dataclass(frozen=True)
class Shards:
    """How a tensor is cut, equally or as `torch.chunk` does: the last ranks may have less, or nothing.

    Attributes:
        size: number of ranks.
        dim: axis that is cut; None: every rank has all of it.
        shape: of the whole.
    """

    size: int
    dim: int | None
    shape: tuple[int, ...]

    @property
    def chunk(self) -> int:
        """Longest part of the axis."""
        return 0 if self.dim is None else -(-self.shape[self.dim] // self.size)

    def length(self, rank: int) -> int:
        """Of a rank's part, along the axis."""
        assert self.dim is not None
        return max(0, min(self.chunk, self.shape[self.dim] - rank * self.chunk))

    def part_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of a rank's part."""
        if self.dim is None:
            return self.shape
        return (*self.shape[: self.dim], self.length(rank), *self.shape[self.dim + 1 :])

    def part(self, whole: Tensor, rank: int) -> Tensor:
        """A rank's part of the whole, a view."""
        if self.dim is None:
            return whole
        return whole.narrow(self.dim, min(rank * self.chunk, self.shape[self.dim]), self.length(rank))


def is_dtensor(tensor: Any) -> bool:
    """Whether it is a `torch.distributed.tensor.DTensor`, without importing that."""
    return hasattr(tensor, "full_tensor") and hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, without a copy; the tensor itself if it is not sharded."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def full(tensor: Any) -> Tensor:
    """The whole of a DTensor on its device, the tensor itself if it is none. All ranks must call it."""
    whole: Tensor = tensor.full_tensor() if is_dtensor(tensor) else tensor
    return whole


def replicated_like(param: Any, tensor: Tensor) -> Tensor:
    """What every rank has, so that it can be multiplied with a DTensor; the tensor itself if the parameter is none."""
    if not is_dtensor(param):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(tensor, param.device_mesh, [Replicate()] * param.device_mesh.ndim, run_check=False)


def cut_axis(tensor: Any) -> int | None:
    """The axis on which a DTensor is cut; None: on none, or no DTensor."""
    if not is_dtensor(tensor):
        return None
    return next((placement.dim for placement in tensor.placements if placement.is_shard()), None)


def shard_group(tensor: Any) -> tuple[dist.ProcessGroup, dist.ProcessGroup | None]:
    """Ranks that hold the parts of a DTensor, and those that hold copies of this rank's part (HSDP)."""
    mesh = tensor.device_mesh
    last = mesh.ndim - 1
    return mesh.get_group(last), mesh.get_group(0) if last else None


def check_sharding(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse parameters whose matrices nobody can put together again.

    Raises:
        ConfigError: naming the parameter, what has cut it, and the remedy.
    """
    for name, param in named:
        kind = next((kind for attribute, kind in FLATTENED.items() if hasattr(param, attribute)), None)
        if kind is not None:
            raise ConfigError(f"{name}: parameters sharded by {kind} are not supported; {REMEDY}")
        if is_dtensor(param):
            _check_placements(name, param)


def _check_placements(name: str, param: Any) -> None:
    mesh, placements = param.device_mesh, param.placements
    axes = tuple(mesh.mesh_dim_names or ())
    tensor_parallel = any(axis.lower().startswith(("tp", "tensor")) for axis in axes)
    fits = mesh.ndim == 1 or (mesh.ndim == 2 and placements[0].is_replicate())
    plain = all(type(each).__name__ in ("Shard", "Replicate") for each in placements)
    if tensor_parallel or not fits or not plain:
        raise ConfigError(
            f"{name}: placements {', '.join(map(str, placements))} on a mesh of {' x '.join(map(str, mesh.shape))} "
            f"({', '.join(axes) or 'without names'}) are tensor parallelism, which is not supported; leave that axis "
            "out of the mesh and shard by fully_shard alone, on one axis or (replicate, shard)"
        )


def check_modules(model: nn.Module) -> None:
    """Refuse a model of which `parallelize_module` cut layers: on a mesh of one axis their parameters do not tell.

    Raises:
        ConfigError: naming the layer and the remedy.
    """
    for name, module in model.named_modules():
        if getattr(module, "_distribute_module_applied", False):
            raise ConfigError(
                f"{name or type(module).__name__}: layers cut by parallelize_module (tensor parallelism) are not "
                "supported; leave the tensor-parallel axis out of the mesh and shard by fully_shard alone"
            )


def check_mixed(named: Sequence[tuple[str, Tensor]]) -> None:
    """Refuse plain parameters beside sharded ones, whose gradients nobody averages, and parameters of two meshes.

    Raises:
        ConfigError: naming one of each.
    """
    plain = next((name for name, param in named if not is_dtensor(param)), None)
    sharded = next((name for name, param in named if is_dtensor(param)), None)
    if plain is not None and sharded is not None:
        raise ConfigError(
            f"{plain} is not sharded and {sharded} is: nobody averages the gradients of the first over the processes; "
            "call fully_shard on the whole model, without ignored_params, or freeze it"
        )
    meshes = {tuple(param.device_mesh.mesh.flatten().tolist()): name for name, param in named if is_dtensor(param)}  # type: ignore[attr-defined]
    if len(meshes) > 1:
        first, second, *_ = meshes.values()
        raise ConfigError(f"{first} and {second} are sharded over different meshes; give each mesh its own optimizer")


def local_blocks(
    shards: Shards, rank: int, num_heads: int, head_axis: int, stacked: bool, transposed: bool = False,
    interleave: int = 0,
) -> int | None:  # fmt: skip
    """`num_heads` of a rank's part where no block is cut in two, so that nothing need travel; else None.

    Matrices of a stack that is cut between them are whole, and so are heads where a part has whole ones, as they have
    if the number of ranks divides that of the heads.
    """
    axis, shape = shards.dim, shards.shape
    if axis is None or shards.chunk == shape[axis]:
        return num_heads if axis is None or shards.length(rank) else 0
    if stacked:
        whole = axis == 0 and -(-shape[0] * num_heads // shards.size) == shards.chunk * num_heads
        return num_heads if whole else None
    if axis != head_axis ^ transposed or (axis == 1 and len(shape) > 2) or num_heads == 1 or interleave:
        return None
    size = shape[axis] // num_heads
    return shards.length(rank) // size if shards.chunk % size == 0 else None


def shards_of(tensor: Tensor, size: int) -> Shards:
    """Of a parameter or a state tensor."""
    return Shards(size, cut_axis(tensor), tuple(tensor.shape))


def placed_like(param: Any, shape: Sequence[int], dim: int, part: Tensor) -> Tensor:
    """A DTensor on the mesh of a parameter, of whose parts this rank's is given."""
    from torch.distributed.tensor import DTensor, Shard

    placements = [Shard(dim) if each.is_shard() else each for each in param.placements]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return DTensor.from_local(
        part, param.device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=tuple(strides)
    )
