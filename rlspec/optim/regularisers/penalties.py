"""Penalties on weights, placed by role: their gradients join the loss's in every optimizer step, whoever trains.

| name | of a matrix W, its longer side as rows | source |
|---|---|---|
| orthonormal | `||N^T N - I||_F`, N the columns of W at norm 1 | SORSA, arXiv 2409.00055 |
| orthogonal | `||W^T W - I||_F^2` | the classical one |
| relaxed_orthogonal | `||W^T W - c I||_F^2`, c the mean of the diagonal | the same, with a free scale |

SORSA keeps the singular values apart from its factors U and V; PiSSA's factors hold their roots, B = U S^{1/2} and
A = S^{1/2} V^T, so `orthonormal` judges the directions of a factor's rank columns alone. Published weight: 4e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlspec.errors import ConfigError, nearest
from rlspec.optim.kernels.autocast import without_autocast
from rlspec.optim.kernels.blocks import nonzero, tall
from rlspec.optim.map.symmetry import symmetry_map, within


def _gram_error(columns: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    gram = columns.mT @ columns
    return gram - scale * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def orthonormal(weight: Tensor) -> Tensor:
    """Distance of the columns' directions from an orthonormal system; (rows, cols) -> scalar, smooth where not 0."""
    columns = tall(weight)
    error = _gram_error(columns / nonzero(torch.linalg.vector_norm(columns, dim=0)))
    return torch.linalg.vector_norm(error)


def orthogonal(weight: Tensor) -> Tensor:
    """Squared distance of the Gram matrix of the short side from the identity."""
    return _gram_error(tall(weight)).square().sum()


def relaxed_orthogonal(weight: Tensor) -> Tensor:
    """Squared distance of the Gram matrix of the short side from the nearest multiple of the identity."""
    columns = tall(weight)
    return _gram_error(columns, columns.square().sum() / columns.shape[1]).square().sum()


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "orthonormal": orthonormal,
    "orthogonal": orthogonal,
    "relaxed_orthogonal": relaxed_orthogonal,
}
"""Name -> function of a matrix."""


def penalise(
    model: nn.Module, optimizer: torch.optim.Optimizer, name: str, roles: Sequence[str], weight: float = 4e-4
) -> RemovableHandle:
    """Add `weight` times a penalty's gradient to those of the loss at the start of every `optimizer.step()`.

    After any clipping of gradients, and independent of the loss's scale; parameters without a gradient are left alone.
    It is a hook, and as every hook of torch's optimizers it is not copied or pickled with the optimizer.

    Args:
        model: any module that `symmetry_map` knows.
        optimizer: of its parameters.
        name: of `PENALTIES`.
        roles: of the map, or beginnings: `lora`, `attention.v`.
        weight: of the penalty.

    Returns:
        a handle; `remove()` ends it.

    Raises:
        ConfigError: an unknown penalty, a role that no trainable matrix has, or a weight that is not positive.
    """
    if not weight > 0:
        raise ConfigError(f"penalties: weight={weight!r}: must be positive")
    if name not in PENALTIES:
        raise ConfigError(f"penalties: {name!r}: unknown; {nearest(name, PENALTIES)}")
    penalty = PENALTIES[name]
    mapping, params = symmetry_map(model, rule="adamw"), dict(model.named_parameters())
    chosen: list[Tensor] = []
    for role in roles:
        found = [params[spec.name] for spec in mapping if len(spec.shape) == 2 and within(spec.role, role)]
        if not found:
            raise ConfigError(f"penalties: no trainable matrix has role {role!r}; {nearest(role, mapping.roles)}")
        chosen += found

    def add(*_: object) -> None:
        for param in chosen:
            if param.grad is not None:
                with torch.enable_grad(), without_autocast([param]):
                    leaf = param.detach().to(torch.promote_types(param.dtype, torch.float32)).requires_grad_()
                    (gradient,) = torch.autograd.grad(penalty(leaf), leaf)
                param.grad = param.grad + (weight * torch.nan_to_num(gradient)).to(param.grad.dtype)

    return optimizer.register_step_pre_hook(add)
