"""Gradient checkpointing: layers are computed again in the backward pass, so that of each only its input is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from rlspec.errors import ConfigError


def enable_checkpointing(policy: Any) -> None:
    """Of a policy's large parts, in training; gradients stay what they are.

    Raises:
        ConfigError: The policy is of a kind of which no layers are known.
    """
    bare = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    model = getattr(bare, "model", None)
    if hasattr(model, "gradient_checkpointing_enable"):  # pi0 and pi0.5 of LeRobot
        model.gradient_checkpointing_enable()  # type: ignore[union-attr]
    elif hasattr(model, "vlm_with_expert"):
        _of_smolvla(model.vlm_with_expert)  # type: ignore[union-attr]
    elif hasattr(getattr(model, "backbone", None), "decoder"):
        _of_backbone(model.backbone)  # type: ignore[union-attr]
    else:
        raise ConfigError(
            f"training.gradient_checkpointing=true: not known how for policy.type={bare.config.type}; set it false"
        )


def _of_backbone(backbone: Any) -> None:
    towers = [tower for tower in (backbone.decoder, backbone.vision_tower) if _can(tower)]
    for tower in towers:
        tower.gradient_checkpointing_enable({"use_reentrant": False})


def _can(module: nn.Module) -> bool:
    return bool(getattr(module, "supports_gradient_checkpointing", False))


def _of_smolvla(both: Any) -> None:
    """Its layers are called part by part: attention of both models together, then the feed-forward layers."""
    vlm = both.get_vlm_model()
    vlm.vision_model.gradient_checkpointing_enable({"use_reentrant": False})
    for name in ("forward_attn_layer", "forward_cross_attn_layer"):
        setattr(both, name, _again(both, getattr(both, name)))
    for layer in (*vlm.text_model.layers, *both.lm_expert.layers):
        layer.mlp.forward = _again(layer.mlp, layer.mlp.forward)


def _again(module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **settings: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()) or settings.get("use_cache"):
            return function(*args, **settings)
        return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False, **settings)

    return forward
