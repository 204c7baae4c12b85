"""How far the output of a network can move per movement of its input: an upper bound, for chains of known layers.

The product of the layers' operator norms (Euclidean), as Lipschitz transformers are certified (arXiv 2507.13338). It
covers sequences of linear layers, activations and norms. It does not cover attention, gated MLPs and anything with a
forward of its own: softmax attention and SwiGLU have no finite constant on all inputs, and a sequence with residual
connections does not say so; those are refused by name. Bounds of norms are as loose as 1 / sqrt(eps) makes them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from rlspec.errors import ConfigError

ACTIVATIONS: dict[type[nn.Module], float] = {
    nn.Identity: 1.0,
    nn.Dropout: 1.0,
    nn.Flatten: 1.0,
    nn.ReLU: 1.0,
    nn.Tanh: 1.0,
    nn.Sigmoid: 0.25,
    nn.Softplus: 1.0,
    nn.ELU: 1.0,
    nn.GELU: 1.1290,  # rounded up: the largest slope, at sqrt(2), is 1.12890
    nn.SiLU: 1.0999,  # 1.09984
}
"""Largest slope; dropout is that of evaluation, ELU's that of alpha up to 1."""


def lipschitz_bound(module: nn.Module) -> float:
    """An upper bound of `||f(x) - f(y)|| / ||x - y||`; of sequences the product over their layers.

    Args:
        module: linear, activation, LayerNorm or RMSNorm, or a `nn.Sequential` of those, however deep.

    Raises:
        ConfigError: naming a module of which nothing is known.
    """
    return _bound(module, "")


def layer_bounds(module: nn.Module) -> dict[str, float]:
    """The factors of `lipschitz_bound`: path -> bound of every layer of a sequence, in order.

    Raises:
        ConfigError: see `lipschitz_bound`.
    """
    leaves = ((path, layer) for path, layer in module.named_modules() if not isinstance(layer, nn.Sequential))
    return {path: _bound(layer, path) for path, layer in leaves}


def _bound(module: Any, path: str) -> float:
    if isinstance(module, nn.Sequential):
        return math.prod(_bound(layer, f"{path}.{key}".lstrip(".")) for key, layer in module.named_children())
    if type(module) is nn.Linear:
        return float(torch.linalg.matrix_norm(module.weight.detach().double(), 2)) if module.weight.numel() else 0.0
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        eps = module.eps if module.eps is not None else torch.finfo(torch.float32).eps
        gain = 1.0 if module.weight is None else float(module.weight.detach().abs().max())
        return gain / math.sqrt(eps)
    if type(module) in ACTIVATIONS and not (isinstance(module, nn.ELU) and module.alpha > 1):
        return ACTIVATIONS[type(module)]
    raise ConfigError(
        f"{path or 'the module'} is a {type(module).__name__}, for which no Lipschitz bound is known; known are "
        f"Sequential, Linear, LayerNorm, RMSNorm and {', '.join(sorted(kind.__name__ for kind in ACTIVATIONS))}"
    )
