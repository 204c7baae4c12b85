"""Rules of single entries: AdamW by torch's fused kernel, and what stands beside it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from rlspec.errors import ConfigError
from rlspec.optim.composition import Buffer, Kernel, Settings, Step, stage

FUSED_DEVICES = ("cpu", "cuda")
"""Types of devices for which torch has fused kernels."""


def _adamw(
    targets: list[Tensor],
    gradients: list[Tensor],
    buffers: dict[str, list[Tensor]],
    steps: list[Tensor],
    found_inf: Tensor | None,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """AdamW, the bits of torch.optim.AdamW(fused=True) (arXiv 1711.05101).

    The fused kernels walk through storages side by side: what is laid out otherwise than its target (a model that went
    to `channels_last` after its first steps, the gradient of a transposed weight) is copied, and its state copied back.
    """
    averages = {name: _laid_out_as(targets, buffers[name]) for name in ("exp_avg", "exp_avg_sq")}
    torch_adamw(
        targets,
        _laid_out_as(targets, gradients),
        averages["exp_avg"],
        averages["exp_avg_sq"],
        [],
        steps,
        fused=targets[0].device.type in FUSED_DEVICES,
        found_inf=found_inf,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
    for name, laid_out in averages.items():
        for buffer, average in zip(buffers[name], laid_out, strict=True):
            if average is not buffer:
                buffer.copy_(average)


def _laid_out_as(targets: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    return [
        tensor if tensor.stride() == target.stride() else torch.empty_like(target, dtype=tensor.dtype).copy_(tensor)
        for target, tensor in zip(targets, tensors, strict=True)
    ]


ADAMW = Kernel(_adamw, buffers=("exp_avg", "exp_avg_sq"))


def _velocity(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    return {"velocity": Buffer((rows, cols))}


def _check_sgd(momentum: float, nesterov: bool, dampening: float) -> None:
    if not 0 <= dampening <= 1:
        raise ConfigError(f"dampening={dampening!r}: must be from 0 to 1")
    if nesterov and (momentum == 0 or dampening != 0):
        raise ConfigError(
            f"rule sgd: nesterov needs momentum above 0 and no dampening, as in torch ({momentum=}, {dampening=})"
        )


@stage(_velocity, check=_check_sgd)
def sgd(blocks: Tensor, step: Step, *, momentum: float, nesterov: bool, dampening: float = 0.0) -> Tensor:
    """Heavy-ball momentum as in torch.optim.SGD: the first gradient is not dampened. As long as the gradient is."""
    velocity = blocks
    if step.count > 1:
        velocity = (momentum * step.state["velocity"]).add_(blocks, alpha=1 - dampening)
    step.state["velocity"] = velocity
    return blocks.add(velocity, alpha=momentum) if nesterov else velocity
