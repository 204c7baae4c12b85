"""From a model to its optimizer: the symmetry map decides, `SpectralOptimizer` runs."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim.optimizer import SpectralOptimizer
from rlspec.optim.rules import get_rule
from rlspec.optim.symmetry import ParameterSpec, SymmetryMap, symmetry_map


def build_optimizer(
    model: nn.Module,
    *,
    rule: str = "pion",
    lr: float = 1e-6,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum: float = 0.95,
    nesterov: bool = False,
    ns_steps: int = 5,
    promotion_steps: float | Literal["auto"] = 0,
    adjust_lr: str = "match_rms_adamw",
    paper_scale: float = 5.0,
    roles: Mapping[str, str] | None = None,
    split: str = "heads",
    overrides: Sequence[Mapping[str, Any]] = (),
    normalise: str = "frobenius",
    compute_dtype: str = "auto",
    state_dtype: str = "float32",
    gradient_clip: float = 0.0,
    update_clip: float = 0.0,
    spectral_cap: float = 0.0,
    cap_method: str = "hard",
    workspace_bytes: int = 1 << 28,
    telemetry_every: int = 0,
    **options: Any,
) -> SpectralOptimizer:
    """Give every trainable parameter the rule of its role.

    Attention and MLP matrices of `model` (unsharded) follow `rule`, per head where `split` is "heads"; embeddings, the
    output head, LoRA factors and everything of fewer than two dimensions get AdamW, the latter without weight decay.
    `roles` and then `overrides` change that, see `symmetry_map`; all other arguments are `SpectralOptimizer`'s. The map
    is kept as `optimizer.symmetry`.

    Raises:
        ConfigError: naming the parameter or word and the remedy.
    """
    mapping = symmetry_map(model, rule=rule, roles=roles, overrides=overrides, split=split)
    if not len(mapping):
        raise ConfigError("the model has no trainable parameter: every requires_grad is False")
    if get_rule(rule).spectral and all(spec.rule != rule for spec in mapping):
        warnings.warn(
            f"rule {rule} updates nothing: all trainable parameters have other rules by default (roles: "
            f"{', '.join(mapping.roles)}); to use it, name a role, for example roles={{lora: {rule}}}",
            stacklevel=2,
        )
    optimizer = SpectralOptimizer(
        _param_groups(model, mapping, lr, weight_decay),
        lr=lr,
        betas=tuple(betas),  # type: ignore[arg-type]
        eps=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        ns_steps=ns_steps,
        promotion_steps=promotion_steps,
        adjust_lr=adjust_lr,
        paper_scale=paper_scale,
        normalise=normalise,
        compute_dtype=compute_dtype,
        state_dtype=state_dtype,
        gradient_clip=gradient_clip,
        update_clip=update_clip,
        spectral_cap=spectral_cap,
        cap_method=cap_method,
        workspace_bytes=workspace_bytes,
        telemetry_every=telemetry_every,
        **options,
    )
    optimizer.symmetry = mapping
    return optimizer


def _param_groups(model: nn.Module, mapping: SymmetryMap, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """One group for each different setting, in the model's order."""
    params = dict(model.named_parameters())
    alike: dict[Any, list[ParameterSpec]] = defaultdict(list)
    for spec in mapping:
        # A matrix and a vector of one role and rule still differ in weight decay.
        alike[spec.role, spec.rule, spec.num_heads, spec.head_axis, spec.override, len(spec.shape) > 1].append(spec)
    groups = []
    for specs in alike.values():
        group = _group_settings(specs[0], lr, weight_decay)
        group["params"] = [(spec.name, params[spec.name]) for spec in specs]
        groups.append(group)
    return groups


def _group_settings(spec: ParameterSpec, lr: float, weight_decay: float) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "rule": spec.rule,
        "role": spec.role,
        "num_heads": spec.num_heads,
        "head_axis": spec.head_axis,
        "lr": lr,
        "weight_decay": weight_decay if len(spec.shape) > 1 else 0.0,
    }
    override = spec.override
    if override is not None:
        settings["lr"] = lr * override.lr_scale
        chosen = {
            "weight_decay": override.weight_decay,
            "promotion_steps": override.promotion_steps,
            "adjust_lr": override.adjust_lr,
        }
        settings |= {key: value for key, value in chosen.items() if value is not None}
    return settings
