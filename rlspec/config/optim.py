"""From the optim section of a recipe to the arguments of `rlspec.optim`."""

from __future__ import annotations

from typing import Any

from rlspec.config.schema import Optim, RoleSettings

MAP_KEYS = ("roles", "overrides", "split", "adamw_lr_scale")
"""Settings that the symmetry map reads; all others are the optimizer's."""


def map_settings(optim: Optim) -> dict[str, Any]:
    """Keyword arguments of `symmetry_map`."""
    return _choices(optim) | {"paper": optim.settings == "paper", "settings": _optimizer_settings(optim)}


def builder_settings(optim: Optim, batch: int) -> dict[str, Any]:
    """Keyword arguments of `build_optimizer`: the rule's own options beside the optimizer's settings.

    `batch` is what a step of this run is made of: prompts, or samples.
    """
    settings = _optimizer_settings(optim) | _choices(optim) | {"settings": optim.settings}
    if optim.penalties:
        settings["penalties"] = [penalty.model_dump() for penalty in optim.penalties]
    if optim.lr_from is not None:
        settings |= {"lr_from": optim.lr_from.model_dump(), "batch": batch}
    return settings


def _choices(optim: Optim) -> dict[str, Any]:
    """What decides each parameter's rule and split."""
    roles: Any = optim.roles
    if isinstance(roles, dict):
        roles = {role: _flat(settings) for role, settings in roles.items()}
    overrides = [_flat(override) for override in optim.overrides]
    shared = {key: getattr(optim, key) for key in ("rule", "split", "adamw_lr_scale")}
    return shared | {"roles": roles, "overrides": overrides}


def _optimizer_settings(optim: Optim) -> dict[str, Any]:
    left_out = {"name", "rule", "lr_from", "options", "plugins", "settings", "penalties", *MAP_KEYS}
    return optim.model_dump(exclude=left_out) | optim.options


def _flat(settings: RoleSettings) -> dict[str, Any]:
    given = settings.model_dump(exclude={"options"}, exclude_none=True)
    return given | settings.options


def describe_rate(optim: Optim) -> str:
    """The learning rate in a line about the run."""
    if optim.lr_from is None:
        return f"learning rate {optim.lr:g}"
    return f"learning rates from {optim.lr_from.rule} at {optim.lr_from.lr:g}"
