"""Sigma-reparametrisation: a matrix by its direction and its size, `W = gain W' / sigma_1(W')` (arXiv 2303.06296).

Attention collapses onto single tokens where the top singular value of its matrices runs away; here it is one learnable
number, which moves at the learning rate of a number. One power iteration in every training forward follows sigma_1, as
in torch's spectral normalisation, which this is with a gain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from rlspec.errors import ConfigError
from rlspec.optim.map.symmetry import symmetry_map, within

START_ITERATIONS = 50
"""Power iterations before the first step; afterwards one in every training forward."""


class Gain(nn.Module):
    """The learnable top singular value."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(start)

    def forward(self, direction: Tensor) -> Tensor:
        """The matrix of a direction whose top singular value is 1."""
        return self.gain * direction


def sigma_reparametrise(model: nn.Module, roles: Sequence[str] = ("attention",)) -> list[str]:
    """Reparametrise the trainable matrices of some roles, in place; do it before the optimizer is built.

    The model computes what it did: gains start at the top singular values, where the paper, which trains from scratch,
    starts at 1. The symmetry map keeps a matrix's role and gives its gain AdamW. With activation checkpointing the
    second forward is one power iteration ahead.

    Args:
        model: any module that `symmetry_map` knows.
        roles: of the map, or beginnings: `attention` stands for attention.q, attention.k, ...

    Returns:
        names of the matrices.

    Raises:
        ConfigError: a role that no trainable matrix has, or a matrix that two modules share.
    """
    mapping, modules = symmetry_map(model, rule="adamw"), dict(model.named_modules())
    shared = _shared(model)
    chosen = [spec for spec in mapping if len(spec.shape) == 2 and any(within(spec.role, role) for role in roles)]
    for role in roles:
        if not any(within(spec.role, role) for spec in chosen):
            raise ConfigError(f"roles: no trainable matrix has role {role!r}; here are {', '.join(mapping.roles)}")
    for spec in chosen:
        path, _, key = spec.name.rpartition(".")
        if getattr(modules[path], key) in shared:
            raise ConfigError(f"{spec.name} is shared by two modules, so that it cannot be reparametrised in one")
    for spec in chosen:
        path, _, key = spec.name.rpartition(".")
        module: Any = modules[path]
        weight = getattr(module, key).detach()
        spectral_norm(module, key, n_power_iterations=1, eps=torch.finfo(weight.dtype).tiny)
        with torch.no_grad():
            following = module.parametrizations[key][0]
            following._power_method(weight, START_ITERATIONS)
            top = torch.dot(following._u, torch.mv(weight, following._v))
        parametrize.register_parametrization(module, key, Gain(top))
    return [spec.name for spec in chosen]


def _shared(model: nn.Module) -> set[Tensor]:
    seen: set[Tensor] = set()
    twice: set[Tensor] = set()
    for module in model.modules():
        for param in module.parameters(recurse=False):
            (twice if param in seen else seen).add(param)
    return twice


def _reparametrised(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Path, module and name of every matrix with a gain."""
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for key, steps in module.parametrizations.items():
                if any(isinstance(step, Gain) for step in steps):
                    yield path, module, key


def folded_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state as the model had it before: every matrix under its own name, ready to be saved and loaded plainly."""
    state = dict(model.state_dict())
    for path, module, key in _reparametrised(model):
        start = f"{path}." if path else ""
        for name in [name for name in state if name.startswith(f"{start}parametrizations.{key}.")]:
            del state[name]
        following = module.parametrizations[key][0]
        before = following.training
        following.eval()  # asking for the weight would move the power iteration
        state[f"{start}{key}"] = getattr(module, key).detach().clone()
        following.train(before)
    return state


def fold(model: nn.Module) -> list[str]:
    """Take the reparametrisation away, in place; the model computes what it did, with plain weights. Returns names."""
    found = list(_reparametrised(model))
    for _, module, key in found:
        module.parametrizations[key].eval()
        parametrize.remove_parametrizations(module, key)
    return [f"{path}.{key}" if path else key for path, _, key in found]
