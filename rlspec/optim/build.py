"""From a model to its optimizer: the symmetry map decides, `SpectralOptimizer` runs."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rlspec.errors import ConfigError, nearest
from rlspec.optim.engine.optimizer import SpectralOptimizer
from rlspec.optim.engine.updates import LAYOUT_KEYS
from rlspec.optim.known_rate import Here, carried_over, describe, hidden_size
from rlspec.optim.map.overrides import Roles
from rlspec.optim.map.spec import ParameterSpec, SymmetryMap
from rlspec.optim.map.symmetry import symmetry_map
from rlspec.optim.papers import paper_settings
from rlspec.optim.regularisers.penalties import penalise
from rlspec.optim.rules import get_rule
from rlspec.optim.settings import KnownRate, OptimizerSettings, Running, Whose, check_positive, defaults, limits
from rlspec.optim.sharding.shards import check_mixed, check_modules, check_sharding

FROM_MAP = ("role", *LAYOUT_KEYS, "scaling")
"""Settings of `SpectralOptimizer` that are not the user's here."""


def build_optimizer(
    model: nn.Module,
    *,
    rule: str = "pion",
    lr: float = 1e-6,
    roles: str | Roles | None = None,
    split: str = "heads",
    adamw_lr_scale: float = 1.0,
    overrides: Sequence[Mapping[str, Any]] = (),
    lr_from: Mapping[str, Any] | None = None,
    batch: int | None = None,
    settings: str = "ours",
    penalties: Sequence[Mapping[str, Any]] = (),
    **given: Any,
) -> SpectralOptimizer:
    """Give every trainable parameter the rule of its role.

    Attention and MLP matrices of `model` follow `rule`, per head where `split` is "heads"; embeddings, the
    output head, LoRA factors and everything of fewer than two dimensions get AdamW, the latter without weight decay,
    and all but LoRA factors `adamw_lr_scale` times the learning rate.
    `roles` and then `overrides` change that, see `symmetry_map`. With `settings` "paper" every rule has those of its
    paper (`rlspec.optim.papers`), except where a role or an override says another. All other arguments are
    `SpectralOptimizer`'s: fields of `rlspec.optim.settings`, and options of rules. The map is kept as
    `optimizer.symmetry`.

    `lr_from` (fields of `settings.KnownRate`) gives every parameter the learning rate that does here what a known one
    did with another rule, batch or width, in place of `lr`; `batch` is what a step here is made of. What was computed
    is kept as text, `optimizer.rates`.

    `penalties` are the arguments of `regularisers.penalties.penalise`: `{"name": "orthonormal", "roles": ["lora"]}`.

    Raises:
        ConfigError: naming the parameter or word and the remedy.
    """
    _check_model(model)
    _check_words(given, settings, lr_from)
    if isinstance(overrides, Mapping | str):
        raise ConfigError(f"overrides={overrides!r}: give a list of mappings, [{{'pattern': ..., 'rule': ...}}]")
    paper = settings == "paper"
    if isinstance(model, DistributedDataParallel):
        given.setdefault("process_group", model.process_group)
    betas = given.setdefault("betas", OptimizerSettings.betas)
    given["betas"] = tuple(betas) if isinstance(betas, Iterable) else betas
    counted = defaults(OptimizerSettings) | {
        name: value for name, value in given.items() if name not in defaults(Running)
    }
    mapping = symmetry_map(
        model, rule=rule, roles=roles, overrides=overrides, split=split, adamw_lr_scale=adamw_lr_scale, paper=paper,
        settings=defaults(OptimizerSettings) | counted,
    )  # fmt: skip
    if not len(mapping):
        raise ConfigError("the model has no trainable parameter: every requires_grad is False")
    if not roles and not overrides:
        _warn_unused(mapping, rule)
    if paper:
        _warn_overruled(rule, given)
    here = Here(counted, batch, hidden_size(model))
    known = None if lr_from is None else _known(lr_from)
    decay = given.get("weight_decay", OptimizerSettings.weight_decay)
    rates = {spec.name: (lr, None) if known is None else carried_over(known, spec, here) for spec in mapping}
    later = "adamw" if get_rule(rule).kind == "pair" else rule  # of groups that are added
    optimizer = SpectralOptimizer(_param_groups(model, mapping, rates, decay, paper), lr=lr, rule=later, **given)
    for penalty in penalties:
        if not {"name", "roles"} <= penalty.keys() <= {"name", "roles", "weight"}:
            raise ConfigError(f"penalties: {dict(penalty)}: give name and roles, and weight if it is another")
        penalise(model, optimizer, **penalty)
    optimizer.symmetry = mapping
    optimizer.rates = None if known is None else describe(known, optimizer.param_groups, here)
    return optimizer


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; give the module itself, whose layers tell the roles")
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    check_modules(model)
    check_sharding(trained)
    check_mixed(trained)


def _check_words(given: Mapping[str, Any], settings: str, lr_from: Mapping[str, Any] | None) -> None:
    for name in sorted(given.keys() & set(FROM_MAP)):
        raise ConfigError(f"{name} is decided for each parameter by the symmetry map; use roles, overrides or split")
    if settings not in get_args(Whose):
        raise ConfigError(f"settings={settings!r}; {nearest(str(settings), get_args(Whose))}")
    if settings == "paper" and lr_from is not None:
        raise ConfigError("lr_from goes by the length of our settings; with settings=paper give lr itself")


def _known(lr_from: Mapping[str, Any]) -> KnownRate:
    for name in lr_from:
        if name not in defaults(KnownRate):
            raise ConfigError(f"lr_from.{name}: unknown; {nearest(name, defaults(KnownRate))}")
    known = KnownRate(**lr_from)
    get_rule(known.rule)
    for name, bounds in limits(KnownRate).items():
        if (value := getattr(known, name)) is not None:
            check_positive(f"lr_from.{name}", value, zero=bounds.get("ge") == 0)
    return known


def _warn_unused(mapping: SymmetryMap, rule: str) -> None:
    """Say that a rule would update nothing, unless other rules that act on matrices were chosen in its place."""
    if get_rule(rule).spectral and not any(spec.rule == rule or spec.matrices for spec in mapping):
        adapters = any(spec.role.startswith("lora.") for spec in mapping)
        remedy = "to use one, name it for a role: roles={lora: lora_muon}"
        if not adapters:
            remedy = "train what it is for, or name it for a role"
        warnings.warn(
            f"rule {rule} updates nothing: all trainable parameters have other rules by default (roles: "
            f"{', '.join(mapping.roles)}); {remedy}",
            stacklevel=3,
        )


def _warn_overruled(rule: str, given: Mapping[str, Any]) -> None:
    """Say which arguments the paper of the rule has otherwise."""
    ours = get_rule(rule).options | defaults(OptimizerSettings)
    for name, value in paper_settings(rule).items():
        said = given.get(name, ours[name])
        if said not in (ours[name], value):
            warnings.warn(
                f"settings=paper: {name} of rule {rule} is {value}, not {said}; for another value use settings=ours, "
                "or say it in roles or overrides",
                stacklevel=3,
            )


def _param_groups(
    model: nn.Module,
    mapping: SymmetryMap,
    rates: Mapping[str, tuple[float, float | None]],
    weight_decay: float,
    paper: bool,
) -> list[dict[str, Any]]:
    """One group for each different setting, in the model's order; LoRA pairs of a pair rule as A, B, A, B, ..."""
    params = dict(model.named_parameters())
    partners = {spec.name: spec.partner for spec in mapping}
    alike: dict[Any, list[str]] = defaultdict(list)
    settings: dict[Any, dict[str, Any]] = {}
    for spec in mapping:
        paired = get_rule(spec.rule).kind == "pair"
        if paired and spec.role.startswith("lora.B"):
            continue  # comes with its A
        lr, decay = rates[spec.name]
        chosen = _group_settings(spec, lr, weight_decay if decay is None else decay, paper)
        key = tuple((name, repr(value)) for name, value in chosen.items())
        settings[key] = chosen
        partner = partners[spec.name] if paired else None
        alike[key] += [spec.name, partner] if partner is not None else [spec.name]
    return [{**settings[key], "params": [(name, params[name]) for name in names]} for key, names in alike.items()]


def _group_settings(spec: ParameterSpec, lr: float, weight_decay: float, paper: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "rule": spec.rule,
        "role": spec.label,
        **{key: getattr(spec, key) for key in LAYOUT_KEYS},
        "lr": lr,
        "weight_decay": weight_decay if spec.decays else 0.0,
    }
    if get_rule(spec.rule).kind == "pair":
        settings |= {"role": spec.label.replace("lora.A", "lora"), "scaling": spec.scaling}
    if paper:
        settings |= {name: value for name, value in paper_settings(spec.rule).items() if name != "weight_decay"}
        settings["weight_decay"] = paper_settings(spec.rule).get("weight_decay", weight_decay) if spec.decays else 0.0
    if spec.override is not None:
        settings |= {"lr": lr * spec.lr_scale} | spec.override.changes
    return settings
