"""A model whose weights several processes share by FSDP2 (`fully_shard`), and its weights whole again for a while.

accelerate does not shard on CPUs, and its FSDP2 gathers every layer for every generated token; so recipes shard
by torch's own function, and what samples or saves puts the weights together once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlspec.errors import ConfigError


def shard_model(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    device: str,
    called: Collection[nn.Module] | None = None,
) -> None:
    """Cut a model's weights over all processes, a repeated layer at a time, and let its optimizer follow.

    One process keeps everything.

    Args:
        model: in memory, whole.
        optimizer: of it, which has taken no step.
        device: type of the device.
        called: what a forward pass calls (`watch_calls`); None: all layers. A policy that reaches into a layer goes
            past what would gather it: such layers are gathered with the model, and stay until its backward pass ends.

    Raises:
        ConfigError: A layer trains weights of two dtypes, which `fully_shard` cannot cut together, or has a scalar.
    """
    if not dist.is_initialized() or dist.get_world_size() < 2:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    before = {id(param): name for name, param in model.named_parameters()}
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for part in [*(layer for layer in _layers(model) if called is None or layer in called), model]:
        _check_parameters(part)
        fully_shard(part, mesh=mesh)
    if optimizer is not None:
        _follow(optimizer, before, dict(model.named_parameters()))


def _check_parameters(part: nn.Module) -> None:
    whole = {name: param for name, param in part.named_parameters() if not _cut(param)}
    for name, param in whole.items():
        if param.ndim == 0:
            raise ConfigError(f"sharding=fsdp2: {name} is a scalar, which has no axis to cut; set sharding=ddp")
    trained = {param.dtype: name for name, param in whole.items() if param.requires_grad}
    if len(trained) > 1:
        (first, one), (second, other), *_ = trained.items()
        raise ConfigError(
            f"sharding=fsdp2: {one} is {first} and {other} is {second}, and FSDP2 cuts trained weights of one dtype "
            "together; train them in one dtype, freeze one of them, or set sharding=ddp"
        )


def _cut(param: Tensor) -> bool:
    return hasattr(param, "placements")


@contextmanager
def watch_calls(model: nn.Module) -> Iterator[set[nn.Module]]:
    """The modules below a model whose forward is called while the body runs."""
    called: set[nn.Module] = set()
    handles = [each.register_forward_pre_hook(lambda module, _: called.add(module)) for each in model.modules()]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


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


def is_sharded(model: nn.Module) -> bool:
    """Whether several processes share its weights."""
    return any(map(_is_cut, model.modules()))


def _is_cut(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on it; without importing that, which takes a second."""
    return hasattr(module, "set_reshard_after_forward")


def plain_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Weights for saving inside of `unsharded`: FSDP2's own `state_dict` would cut them again. None: not sharded."""
    if not is_sharded(model):
        return None
    kept: dict[str, Tensor] = dict(model.named_parameters())
    for path, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if key not in module._non_persistent_buffers_set:
                kept[f"{path}.{key}" if path else key] = buffer
    # Copies, because they are views of what was gathered, which safetensors does not write.
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in kept.items()}


@contextmanager
def giving(holder: nn.Module | torch.optim.Optimizer, state: dict[str, Any] | None) -> Iterator[None]:
    """A model or an optimizer whose `state_dict` is this one while the body runs; None: its own."""
    if state is None:
        yield
        return
    holder.state_dict = lambda *_, **__: state  # type: ignore[method-assign]
    try:
        yield
    finally:
        del holder.state_dict
