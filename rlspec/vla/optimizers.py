"""The optimizer for LeRobot, as an optimizer config of type `spectral`.

    lerobot-train --policy.discover_packages_path=rlspec.vla --policy.type=act --dataset.repo_id=... \
        --use_policy_training_preset=false --optimizer.type=spectral --optimizer.rule=muon --optimizer.lr=1e-4 \
        --optimizer.roles='{action: pion}' --scheduler.type=cosine_decay_with_warmup ...

LeRobot imports the package that any `--*.discover_packages_path` names before it reads the rest, once for every
command: resuming needs the flag again (`--config_path=.../train_config.json --resume=true`). Without
`--use_policy_training_preset=false` it would silently take the policy's own optimizer, which this refuses.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from types import GeneratorType
from typing import Any, Literal, get_origin

import torch
from lerobot.optim.optimizers import OptimizerConfig
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer, build_optimizer
from rlspec.optim.map.render import render_text
from rlspec.optim.settings import OptimizerSettings, PromotionSteps, Running, declared_types
from rlspec.optim.settings import defaults as declared_defaults
from rlspec.vla.ignored import refuse_ignored_settings

logger = logging.getLogger(__name__)

_WALKS = {nn.Module.parameters.__code__, nn.Module.named_parameters.__code__}
_EXPONENT = re.compile(r"[+-]?\d+(?:\.\d*)?[eE][+-]?\d+")
_PARAMETERS = "pass policy.parameters(), as lerobot-train does with --use_policy_training_preset=false, or the policy"


def _plain(kind: Any) -> Any:
    """A type that LeRobot's parser knows: it has no Literal."""
    if get_origin(kind) is Literal:
        return str
    return float | str if kind == PromotionSteps else kind


_Declared = make_dataclass(
    "_Declared",
    [
        (name, _plain(kind), field(default=declared_defaults(declaration)[name]))
        for declaration in (OptimizerSettings, Running)
        for name, kind in declared_types(declaration).items()
    ],
    bases=(OptimizerConfig,),
    kw_only=True,
)


@OptimizerConfig.register_subclass("spectral")
@dataclass
class SpectralOptimizerConfig(_Declared):  # type: ignore[misc, valid-type]
    """Settings of `rlspec.optim.build_optimizer`, by the same names: those of `rlspec.optim.settings`, and these.

    Attributes:
        lr: learning rate.
        rule: of matrices.
        grad_clip_norm: LeRobot scales gradients down to this norm before every step; 0: it does not.
        roles: a preset ("vla", "symmetric"), or role -> rule or settings.
        adamw_lr_scale: factor of lr for what AdamW updates beside the rule.
        split: attention matrices into `heads`, or `whole`.
        overrides: settings of the parameters that match a pattern.
        settings: "ours", or "paper": each rule's are its paper's.
        options: of the rule's own stages.
        lr_from: a rate that is known elsewhere, in place of lr: see `rlspec.optim.settings.KnownRate`.
        batch: samples of a step here, for lr_from.batch.
        penalties: on weights, each a mapping with name, roles and weight.
    """

    lr: float = 1e-4
    rule: str = "pion"
    grad_clip_norm: float = 10.0
    roles: dict[str, Any] | str | None = None
    adamw_lr_scale: float = 1.0
    split: str = "heads"
    overrides: list[dict[str, Any]] = field(default_factory=list)
    settings: str = "ours"
    options: dict[str, Any] = field(default_factory=dict)
    lr_from: dict[str, Any] | None = None
    batch: int | None = None
    penalties: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """LeRobot refuses to resume where a stored 0 meets a 0.0, and YAML takes 1e-5 for a word."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(entry.default, float) and isinstance(value, int):
                setattr(self, entry.name, float(value))
        self.betas: tuple[float, float] = (float(self.betas[0]), float(self.betas[1]))
        self.roles, self.overrides, self.options = map(_numbers, (self.roles, self.overrides, self.options))
        self.lr_from, self.penalties = _numbers(self.lr_from), _numbers(self.penalties)
        taken = sorted({entry.name for entry in fields(self)} & self.options.keys())
        if taken:
            raise ConfigError(f"optimizer.options: {taken[0]} is a setting of its own; use --optimizer.{taken[0]}")
        # LeRobot makes one of these when it reads the command line, and when it asks a policy of ours for its preset.
        refuse_ignored_settings(sys.argv[1:])

    def build(self, params: Any) -> SpectralOptimizer:
        """Give every trainable parameter the rule of its role.

        Args:
            params: `policy.parameters()` or `policy.named_parameters()`, not consumed, or the policy itself: their
                modules tell the roles. Without them, as a dict or pairs of names and parameters, matrices have no role
                and need a rule by `overrides`.

        Raises:
            ConfigError: on parameters without names, or as `build_optimizer` does.
        """
        settings = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        settings |= settings.pop("options")
        del settings["grad_clip_norm"]
        model = _find_model(params)
        optimizer = build_optimizer(model, **settings)
        optimizer.register_state_dict_post_hook(_detach_lists)
        assert optimizer.symmetry is not None
        logger.info("Symmetry map:\n%s", render_text(optimizer.symmetry))
        if optimizer.rates is not None:
            logger.info("%s", optimizer.rates)
        return optimizer


def _numbers(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _numbers(entry, name) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(entry) for entry in value]
    if isinstance(value, str) and key != "pattern" and _EXPONENT.fullmatch(value):
        return float(value)
    return value


def _detach_lists(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """LeRobot reads a checkpoint into the lists of a state in place: names in the optimizer would be overwritten."""
    for group in state["param_groups"]:
        group |= {key: list(value) for key, value in group.items() if isinstance(value, list)}


def _find_model(params: Any) -> nn.Module:
    """The module whose parameters these are, or one of their names alone.

    Raises:
        ConfigError: if nothing names them.
    """
    if isinstance(params, nn.Module):
        return params
    if isinstance(params, GeneratorType) and params.gi_code in _WALKS and params.gi_frame is not None:
        model = inspect.getgeneratorlocals(params)["self"]
        assert isinstance(model, nn.Module)
        return model
    pairs = list(params.items()) if isinstance(params, Mapping) else _listed(params)
    if not pairs or not all(_is_named(pair) for pair in pairs):
        kind = type(pairs[0]).__name__ if pairs else "nothing"
        raise ConfigError(
            f"optimizer spectral goes by modules and names, and got a {type(params).__name__} of {kind}; {_PARAMETERS}"
        )
    return _module_of_names(pairs)


def _listed(params: Iterable[Any]) -> list[Any]:
    return list(params) if isinstance(params, Iterable) else [params]


def _is_named(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], Tensor)


def _module_of_names(pairs: Iterable[tuple[str, Tensor]]) -> nn.Module:
    """Nested plain modules that hold the parameters under their names."""
    root = nn.Module()
    for name, param in pairs:
        *path, key = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(key, param if isinstance(param, nn.Parameter) else nn.Parameter(param))
    return root
