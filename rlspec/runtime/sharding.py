"""A model whose weights several processes share by FSDP2 (`fully_shard`), and its weights whole again for a while.

accelerate does not shard on CPUs, and its FSDP2 gathers every layer for every generated token; so recipes shard
by torch's own function, and what samples or saves puts the weights together once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def shard_model(model: nn.Module, optimizer: torch.optim.Optimizer | None, device: str) -> None:
    """Cut a model's weights over all processes, a repeated layer at a time, and let its optimizer follow.

    One process keeps everything.
    """
    if not dist.is_initialized() or dist.get_world_size() < 2:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    before = {id(param): name for name, param in model.named_parameters()}
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if optimizer is not None:
        _follow(optimizer, before, dict(model.named_parameters()))


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that transformers would not split, else what stands in lists of modules."""
    words = {word for module in model.modules() for word in getattr(module, "_no_split_modules", None) or ()}
    named = [module for module in model.modules() if type(module).__name__ in words]
    if named:
        yield from named
        return
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(below) for each in lists for layer in each for below in layer.modules() if below is not layer}
    yield from (layer for each in lists if id(each) not in inner for layer in each)


def _follow(optimizer: torch.optim.Optimizer, before: Mapping[int, str], now: Mapping[str, Any]) -> None:
    """`fully_shard` puts new parameters in the place of the old ones."""
    assert not optimizer.state, "an optimizer that has taken steps cannot follow"
    for group in optimizer.param_groups:
        group["params"] = [now[before[id(param)]] for param in group["params"]]


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Whole weights on every process, for sampling and saving: no layer is gathered while the body runs. Collective.

    A model that is not sharded stays as it is. Takes the memory of all weights.
    """
    parts: list[Any] = [module for module in model.modules() if _is_cut(module)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


def _is_cut(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on it; without importing that, which takes a second."""
    return hasattr(module, "set_reshard_after_forward")


def plain_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Weights for saving inside of `unsharded`: FSDP2's own `state_dict` would cut them again. None: not sharded."""
    if not any(map(_is_cut, model.modules())):
        return None
    kept: dict[str, Tensor] = dict(model.named_parameters())
    for path, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if key not in module._non_persistent_buffers_set:
                kept[f"{path}.{key}" if path else key] = buffer
    return {name: tensor.detach().cpu() for name, tensor in kept.items()}


def norm_of_all(norm: Tensor) -> Tensor:
    """A norm that torch gives as a DTensor, whole."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
