"""The symmetry map: which role every trainable parameter plays, which blocks it splits into, and which rule updates it.

Roles come from module types and `model.config`, never from shapes. Every trainable parameter is claimed exactly once, a
tied one under its first name; frozen ones are listed apart.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim.families import Entry, Family, find_family
from rlspec.optim.layout import block_shape, check_layout
from rlspec.optim.rules import ADJUST_LR, get_rule, nearest

SPECTRAL_ROLES = ("attention", "mlp", "linear", "conv")
"""Roles that follow the optimizer's rule; all others default to AdamW."""

_WRAPPERS = re.compile(r"(?:^|\.)(?:_orig_mod|base_layer|modules_to_save\.[^.]+)(?=\.)")
_LORA = re.compile(r"\.lora_(?:embedding_)?([AB])\.[^.]+(?:\.weight)?$")
_OVERRIDE_KEYS = ("pattern", "rule", "lr_scale", "weight_decay", "promotion_steps", "adjust_lr", "split")


@dataclass(frozen=True)
class Override:
    """Ordered rule of a user for parameters whose name matches `pattern` (re.search); first match wins."""

    pattern: str
    rule: str | None = None
    lr_scale: float = 1.0
    weight_decay: float | None = None
    promotion_steps: int | str | None = None
    adjust_lr: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class ParameterSpec:
    """What the optimizer needs to know of one parameter.

    Attributes:
        name: its first name in the model.
        role: what it does, for example attention.q; LoRA factors are lora.A.<role of the layer>.
        group: symmetry group, rows x columns.
        rule: name in `RULES`.
        shape: of the parameter.
        num_heads: blocks that the matrix is cut into, 1: the whole matrix.
        head_axis: axis that is cut.
        dtype: of the parameter.
        override: the user's rule that matched, if any.
    """

    name: str
    role: str
    group: str
    rule: str
    shape: tuple[int, ...]
    num_heads: int = 1
    head_axis: int = 0
    dtype: torch.dtype = torch.float32
    override: Override | None = None

    @property
    def split(self) -> str:
        """`whole`, or the number of heads and the axis that they cut."""
        return "whole" if self.num_heads == 1 else f"{self.num_heads} heads on {('rows', 'columns')[self.head_axis]}"

    @property
    def numel(self) -> int:
        """Number of values."""
        return int(torch.Size(self.shape).numel())

    @property
    def matrices(self) -> int:
        """Blocks that are updated as one matrix each; 0 for elementwise rules."""
        return self.num_heads if get_rule(self.rule).spectral else 0

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state, master weights included."""
        shape = block_shape(self.shape, self.num_heads, self.head_axis) if len(self.shape) > 1 else (1, 1, self.numel)
        width = 2 if self.dtype == torch.float64 else 1
        master = 4 * self.numel if self.dtype in (torch.bfloat16, torch.float16) else 0
        return width * get_rule(self.rule).state_bytes(*shape) + master


@dataclass(frozen=True)
class SymmetryMap:
    """Every trainable parameter of a model, claimed once, and the frozen ones as (name, values)."""

    specs: tuple[ParameterSpec, ...]
    frozen: tuple[tuple[str, int], ...] = ()

    def __iter__(self) -> Iterator[ParameterSpec]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that occur, in the model's order."""
        return tuple(dict.fromkeys(spec.role for spec in self.specs))


@dataclass(frozen=True)
class _Claim:
    """Role and layout of a parameter, before any rule is chosen."""

    role: str
    group: str
    num_heads: int = 1
    head_axis: int = 0


@dataclass
class _Owner:
    """Where a parameter lives: its module, and the nearest config around it."""

    module: nn.Module
    parent: nn.Module | None
    config: Any = None
    family: Family | None = field(default=None)
    is_output: bool = False  # whether the module is the model's output head


def symmetry_map(
    model: nn.Module,
    *,
    rule: str = "pion",
    roles: Mapping[str, str] | None = None,
    overrides: Sequence[Mapping[str, Any]] = (),
    split: str = "heads",
) -> SymmetryMap:
    """Assign a role, blocks and a rule to every trainable parameter.

    Args:
        model: any module; a transformers model (also inside peft's) brings its config, others go by module types.
        rule: of the roles in `SPECTRAL_ROLES`; the others get AdamW.
        roles: role -> rule, over these defaults; `attention` stands for all of attention.q, attention.k, ...
        overrides: mappings with the keys of `Override`.
        split: "heads" cuts attention matrices into heads, "whole" does not.

    Raises:
        ConfigError: naming the parameter or word and the remedy.
    """
    get_rule(rule)
    if split not in ("heads", "whole"):
        raise ConfigError(f"split={split!r}; {nearest(split, ('heads', 'whole'))}")
    parsed = [_parse_override(override) for override in overrides]
    owners = list(_walk(model))
    trainable = [(name, param, owner) for name, param, owner in owners if param.requires_grad]
    _check_patterns(parsed, [name for name, _, _ in trainable])
    specs: list[ParameterSpec] = []
    unsplit: set[str] = set()
    for name, param, owner in trainable:
        override = next((entry for entry in parsed if re.search(entry.pattern, name)), None)
        claim = _claim(name, param, owner, fallback=override is not None and override.rule is not None)
        specs.append(_spec(name, param, claim, rule, roles or {}, override, split))
        if (override.split if override is not None and override.split else split) == "heads":
            unsplit |= _without_layout(specs[-1], owner)
    _warn_unsplit(unsplit)
    present = {spec.role for spec in specs}
    for role in roles or {}:
        if not any(_within(known, role) for known in present):
            raise ConfigError(
                f"roles: no trainable parameter has role {role!r}; {nearest(role, sorted(_prefixes(present)))}"
            )
    return SymmetryMap(
        tuple(specs), tuple((name, param.numel()) for name, param, _ in owners if not param.requires_grad)
    )


def _without_layout(spec: ParameterSpec, owner: _Owner) -> set[str]:
    """The model type, where a matrix of its attention gets a spectral rule as a whole for want of a family."""
    attention = re.search(r"(?:^|\.)[^.]*att(?:n|ention)[^.]*\.", spec.name) is not None
    unknown = owner.family is None and owner.config is not None
    return {owner.config.model_type} if unknown and attention and spec.role == "linear" and spec.matrices else set()


def _warn_unsplit(model_types: set[str]) -> None:
    for model_type in sorted(model_types):
        warnings.warn(
            f"no head layout is known for model_type {model_type}: its attention is not split per head; add a family "
            "to rlspec.optim.families, or name its rules by optim.roles",
            stacklevel=1,  # one place, so that Python shows it once however many maps are made
        )


def _walk(model: nn.Module) -> Iterator[tuple[str, Tensor, _Owner]]:
    """Parameters once each, with the module that holds them and the nearest config with a `model_type` above it."""
    modules = dict(model.named_modules())
    heads = _output_heads(modules)
    seen: set[Tensor] = set()
    for path, module in modules.items():
        for key, param in module.named_parameters(recurse=False):
            if param in seen:
                continue
            seen.add(param)
            parts = path.split(".") if path else []
            ancestors = [modules[".".join(parts[:end])] for end in range(len(parts), -1, -1)]
            config = next((found for found in map(_config, ancestors) if found is not None), None)
            parent = ancestors[1] if len(ancestors) > 1 else None
            owner = _Owner(module, parent, config, find_family(getattr(config, "model_type", None)))
            owner.is_output = _plain(path) in heads
            yield (f"{path}.{key}" if path else key), param, owner


def _plain(name: str) -> str:
    """A name without what peft and torch.compile put into it."""
    return _WRAPPERS.sub("", f"{name}.").removesuffix(".")


def _output_heads(modules: Mapping[str, nn.Module]) -> set[str]:
    """Plain paths of what transformers' models say maps to the vocabulary."""
    paths = {id(module): path for path, module in modules.items()}
    getters = [getattr(module, "get_output_embeddings", None) for module in modules.values()]
    found = [getter() for getter in getters if callable(getter)]
    return {_plain(paths[id(head)]) for head in found if id(head) in paths}


def _config(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config if isinstance(getattr(config, "model_type", None), str) else None


def _claim(name: str, param: Tensor, owner: _Owner, fallback: bool) -> _Claim:
    """Find a parameter's role; `fallback` accepts an unknown one because the user named its rule."""
    plain = _WRAPPERS.sub("", name)
    lora = _LORA.search(plain)
    if lora:
        return _lora_claim(plain[: lora.start()], lora.group(1), param, owner)
    entry = next((entry for entry in owner.family.entries if entry.claims(plain)), None) if owner.family else None
    if entry is not None:
        return _Claim(entry.role, entry.symmetry, *_heads(name, param, entry, owner, entry.head_axis))
    if owner.is_output and plain.endswith("weight") and param.ndim > 1:
        return _Claim("lm_head", "S_V, shift x O(d)")
    claim = _claim_by_module(plain.rpartition(".")[2], param, owner)
    if claim is None and fallback:
        return _Claim("other", "-")
    if claim is None:
        known = sorted(
            {entry.role for entry in owner.family.entries} if owner.family else {*SPECTRAL_ROLES, "embed", "norm"}
        )
        raise ConfigError(
            f"no role is known for the trainable parameter {name} of shape {tuple(param.shape)} in a "
            f"{type(owner.module).__name__} (roles here: {', '.join(known)}); freeze it or name its rule: "
            f"overrides=[{{pattern: {re.escape(name)}, rule: adamw}}]"
        )
    return claim


def _lora_claim(layer: str, factor: str, param: Tensor, owner: _Owner) -> _Claim:
    """Factor B (out, r) of q, k, v splits by rows and A (r, in) of o by columns, like the layer; the other is whole."""
    entries = owner.family.entries if owner.family else ()
    entry = next((entry for entry in entries if entry.claims(f"{layer}.weight")), None)
    role = f"lora.{factor}.{entry.role if entry else 'linear'}"
    group = "GL(r) with its partner"
    if entry is None or (entry.head_axis == 0) != (factor == "B"):
        return _Claim(role, group)
    return _Claim(role, group, *_heads(layer, param, entry, owner, entry.head_axis))


def _heads(name: str, param: Tensor, entry: Entry, owner: _Owner, axis: int) -> tuple[int, int]:
    """Number of heads from the config, checked against the parameter and the config's own head size."""
    if entry.heads is None:
        return 1, 0
    heads = getattr(owner.config, entry.heads, None)
    if not isinstance(heads, int):
        raise ConfigError(f"{name}: the model's config has no number {entry.heads}; override it with split: whole")
    check_layout(param.shape, heads, axis, f"{name} ({entry.heads}={heads})")
    size, head_dim = param.shape[axis] // heads, getattr(owner.config, entry.head_dim, None)
    if isinstance(head_dim, int) and head_dim != size:
        raise ConfigError(
            f"{name}: {entry.heads}={heads} makes heads of {size}, but the config's {entry.head_dim} is {head_dim}; "
            "correct the config"
        )
    return heads, axis


def _claim_by_module(key: str, param: Tensor, owner: _Owner) -> _Claim | None:
    """Roles that the type of the module tells, in any family."""
    module, kind = owner.module, type(owner.module).__name__
    if isinstance(module, nn.Embedding) and key == "weight":
        return _Claim("embed", "S_V x O(d)")
    if "norm" in kind.lower() and param.ndim == 1:
        return _Claim("norm", "signs")
    if key.endswith("bias") and param.ndim == 1:
        return _Claim("bias", "-")
    if param.ndim <= 1:
        return _Claim("vector", "-")
    if owner.family is not None:  # a known family says which matrices it has
        return None
    if isinstance(module, nn.MultiheadAttention) and key == "in_proj_weight":
        return _Claim("attention.qkv", "S_heads, O(head) x O(d)", 3 * module.num_heads, 0)
    if isinstance(owner.parent, nn.MultiheadAttention) and isinstance(module, nn.Linear) and key == "weight":
        return _Claim("attention.o", "O(d) x O(head)", owner.parent.num_heads, 1)
    if isinstance(module, nn.Linear) and key == "weight":
        return _Claim("linear", "O(out) x O(in)")
    if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed and module.groups == 1 and key == "weight":
        return _Claim("conv", "O(out) x -")
    return None


def _spec(
    name: str,
    param: Tensor,
    claim: _Claim,
    rule: str,
    roles: Mapping[str, str],
    override: Override | None,
    split: str,
) -> ParameterSpec:
    chosen = rule if claim.role.partition(".")[0] in SPECTRAL_ROLES else "adamw"
    for role in sorted(roles, key=len):  # the most special one last
        if _within(claim.role, role):
            chosen = roles[role]
    if override is not None:
        chosen, split = override.rule or chosen, override.split or split
        _check_knobs(override, chosen, name)
    heads, axis = (claim.num_heads, claim.head_axis) if split == "heads" else (1, 0)
    if get_rule(chosen).spectral:
        check_layout(param.shape, heads, axis, name)
    else:
        heads, axis = 1, 0
    return ParameterSpec(name, claim.role, claim.group, chosen, tuple(param.shape), heads, axis, param.dtype, override)


def _check_knobs(override: Override, rule: str, name: str) -> None:
    """Refuse a setting that the parameter's rule would ignore."""
    settings = {"promotion_steps": "promotion_steps" in get_rule(rule).options, "adjust_lr": get_rule(rule).spectral}
    for setting, used in settings.items():
        if getattr(override, setting) is not None and not used:
            raise ConfigError(
                f"overrides: pattern {override.pattern!r} sets {setting} of {name}, whose rule {rule} has none"
            )


def _within(role: str, prefix: str) -> bool:
    return role == prefix or role.startswith(f"{prefix}.")


def _prefixes(roles: set[str]) -> set[str]:
    return {".".join(role.split(".")[:end]) for role in roles for end in range(1, role.count(".") + 2)}


def _parse_override(mapping: Mapping[str, Any]) -> Override:
    for key in mapping:
        if key not in _OVERRIDE_KEYS:
            raise ConfigError(f"overrides: unknown key {key!r}; {nearest(key, _OVERRIDE_KEYS)}")
    if not isinstance(mapping.get("pattern"), str):
        raise ConfigError(f"overrides: {dict(mapping)} has no pattern, a regular expression for parameter names")
    override = Override(**mapping)
    try:
        re.compile(override.pattern)
    except re.error as error:
        raise ConfigError(f"overrides: pattern {override.pattern!r} is no regular expression: {error}") from error
    if override.rule is not None:
        get_rule(override.rule)
    if override.split not in (None, "heads", "whole"):
        raise ConfigError(f"overrides: split={override.split!r}; {nearest(override.split, ('heads', 'whole'))}")
    if override.adjust_lr is not None and override.adjust_lr not in ADJUST_LR:
        raise ConfigError(f"overrides: adjust_lr={override.adjust_lr!r}; {nearest(override.adjust_lr, ADJUST_LR)}")
    return override


def _check_patterns(overrides: Sequence[Override], names: Sequence[str]) -> None:
    for override in overrides:
        if not any(re.search(override.pattern, name) for name in names):
            examples = nearest(override.pattern, list(names)[:3])
            raise ConfigError(
                f"overrides: pattern {override.pattern!r} matches no trainable parameter; {examples}, ..."
            )
