"""The symmetry map: which role every trainable parameter plays, which blocks it splits into, and which rule updates it.

Roles come from the families, module types and `model.config`, never from shapes. Every trainable parameter is claimed
exactly once, a tied one under its first name; frozen ones are listed apart.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from rlspec.errors import ConfigError, nearest
from rlspec.optim.kernels.layout import check_layout
from rlspec.optim.map.claims import Claim, Owner, claim, refusal, walk
from rlspec.optim.map.families import MODALITIES
from rlspec.optim.map.overrides import (
    LAYOUT,
    SPLITS,
    Override,
    Roles,
    check_knobs,
    check_patterns,
    parse_overrides,
    parse_roles,
)
from rlspec.optim.map.spec import ParameterSpec, SymmetryMap
from rlspec.optim.papers import paper_split
from rlspec.optim.rules import get_rule
from rlspec.optim.settings import check_positive

SPECTRAL_ROLES = ("attention", "mlp", "linear", "conv")
"""Roles that follow the optimizer's rule; all others default to AdamW."""

ROLE_RULES = {"mlp.router": "centered_left_polar"}
"""Roles that get another rule than the optimizer's where that is spectral: adding one vector to every row of a router
leaves its softmax as it is, which only centered rules respect."""

_ATTENTION = re.compile(r"(?:^|\.)[^.]*att(?:n|ention)[^.]*\.")


def symmetry_map(
    model: nn.Module,
    *,
    rule: str = "pion",
    roles: str | Roles | None = None,
    overrides: Sequence[Mapping[str, Any]] = (),
    split: str = "heads",
    adamw_lr_scale: float = 1.0,
    paper: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> SymmetryMap:
    """Assign a role, blocks and a rule to every trainable parameter.

    Args:
        model: any module; a transformers model (also inside peft's or a policy) brings its config, others go by module
            types and common names.
        rule: of the roles in `SPECTRAL_ROLES`, while the others get AdamW, and `ROLE_RULES` their own; an elementwise
            rule is that of all roles.
        roles: key -> rule, or a mapping with the keys of `Override` but `pattern`, over these defaults. A key is a role
            or the beginning of one (`attention` stands for attention.q, attention.k, ...), a part of the model
            (`vision`, `language`, `connector`, `action`: its roles in `SPECTRAL_ROLES`), or both: `action:attention`,
            which wins over a role, which wins over a part. Or the name of a preset, such as "vla" or "symmetric".
        overrides: mappings with the keys of `Override`; the first whose pattern matches wins over roles.
        split: "heads" cuts attention matrices into heads, "whole" only fused ones into their parts.
        adamw_lr_scale: factor of the learning rate of what AdamW updates beside another rule (embeddings, output
            layers, norms, biases; not LoRA factors), on top of those of roles and overrides.
        paper: a rule's split is that of its paper, where that says one.
        settings: the optimizer's other settings and options of rules, by which `state_bytes` counts.

    Raises:
        ConfigError: naming the parameter or word and the remedy.
    """
    get_rule(rule)
    if split not in SPLITS:
        raise ConfigError(f"split={split!r}; {nearest(split, SPLITS)}")
    check_positive("adamw_lr_scale", adamw_lr_scale)
    patterns = parse_overrides(overrides)
    owners = list(walk(model))
    trainable = [(name, param, owner) for name, param, owner in owners if param.requires_grad]
    check_patterns(patterns, [name for name, _, _ in trainable])
    found = [next((entry for entry in patterns if re.search(entry.pattern, name)), None) for name, _, _ in trainable]
    named = [override is not None and override.rule is not None for override in found]
    claims = _claims(trainable, named)
    said = parse_roles(roles, lambda key: any(_applies(key, each) for each in claims))
    specs = [
        replace(_spec(name, param, entry, rule, _said(entry, said, override), split, paper), settings=settings or {})
        for (name, param, _), entry, override in zip(trainable, claims, found, strict=True)
    ]
    if adamw_lr_scale != 1 and any(spec.rule != "adamw" for spec in specs):
        specs = [_scaled(spec, adamw_lr_scale) if spec.rule == "adamw" else spec for spec in specs]
    _check_roles(said, claims)
    _check_pairs(specs, claims)
    _warn(specs, [owner for _, _, owner in trainable], split)
    return SymmetryMap(
        tuple(specs),
        tuple((name, param.numel()) for name, param, _ in owners if not param.requires_grad),
        _notes(specs, [owner for _, _, owner in trainable], split),
    )


def _scaled(spec: ParameterSpec, lr_scale: float) -> ParameterSpec:
    if within(spec.role, "lora"):
        return spec
    return replace(spec, override=(spec.override or Override()).over(Override(lr_scale=lr_scale)))


def _claims(trainable: Sequence[tuple[str, Tensor, Owner]], named: Sequence[bool]) -> list[Claim]:
    """The claim of every parameter; `named`: the user named its rule.

    Raises:
        ConfigError: naming all parameters that nobody claims.
    """
    found = [(entry, claim(*entry, fallback)) for entry, fallback in zip(trainable, named, strict=True)]
    unknown = [entry for entry, kind in found if kind is None]
    if unknown:
        raise refusal(unknown)
    return [kind for _, kind in found if kind is not None]


def _said(found: Claim, roles: Mapping[str, Override], override: Override | None) -> Override | None:
    """The user's settings for a parameter: of roles from general to special, and of its pattern over them."""
    said: Override | None = None
    for key, settings in roles.items():
        if _applies(key, found):
            said = settings.over(said)
    return override.over(said) if override is not None else said


def _spec(
    name: str, param: Tensor, found: Claim, rule: str, said: Override | None, split: str, paper: bool
) -> ParameterSpec:
    chosen = (said and said.rule) or _default_rule(found.role, rule)
    split = (said and said.split) or (paper_split(chosen, split) if paper else split)
    if said is not None:
        check_knobs(said, get_rule(chosen), name)
    heads, axis, stacked, transposed, interleave = 1, 0, False, False, 0
    if get_rule(chosen).spectral:
        if said is not None:
            found = _laid_out(found, said, name)
        stacked, transposed = found.stacked, found.transposed
        if get_rule(chosen).kind == "matrix":
            _check_stack(name, param, found, said, chosen)
            heads, axis, interleave = _cut(found, split)
        check_layout(param.shape, heads, axis, name, stacked, transposed, interleave)
    scaling = 1.0 if found.scaling is None else found.scaling
    return ParameterSpec(
        name, found.role, found.group, chosen, tuple(param.shape), heads, axis, param.dtype, said,
        stacked, transposed, interleave, found.parts, found.blocks, found.modality, found.partner, scaling,
    )  # fmt: skip


def _laid_out(found: Claim, said: Override, name: str) -> Claim:
    """The claim with the user's word on how the matrix lies in its tensor."""
    given = {key: getattr(said, key) for key in LAYOUT if getattr(said, key) is not None}
    if not given:
        return found
    if "num_heads" in given or "parts" in given:
        parts = given.get("parts", 1)
        given |= {"parts": parts, "num_heads": given.get("num_heads", parts), "interleave": 0, "blocks": ""}
        if given["num_heads"] % parts:
            raise ConfigError(f"{name}: num_heads={given['num_heads']} is no multiple of its {parts} parts")
    return replace(found, problem=None, **given)


def _check_stack(name: str, param: Tensor, found: Claim, said: Override | None, rule: str) -> None:
    """Refuse a tensor of three axes of which nobody has said what they are: most are stacks, which must not be one."""
    known = found.stacked or "conv" in found.role.split(".") or said is not None and said.stacked is not None
    if param.ndim > 2 and not known:
        raise ConfigError(
            f"{name} of shape {tuple(param.shape)} is no matrix, which rule {rule} needs; say stacked: true (each "
            "index of the first axis is a matrix of its own) or stacked: false (all axes after the first are one), or "
            "give it rule adamw"
        )


def _cut(found: Claim, split: str) -> tuple[int, int, int]:
    """Number of blocks, their axis, and how many of their lines lie together."""
    if found.parts == 0 or split == "heads":
        if found.problem is not None:
            raise found.problem
        heads = found.num_heads
    else:
        heads = found.parts
    interleave = found.interleave if heads == found.parts else 0
    return heads, found.head_axis if heads > 1 else 0, interleave if heads > 1 else 0


def _default_rule(role: str, rule: str) -> str:
    if get_rule(rule).kind == "pair":
        return rule if within(role, "lora") else "adamw"
    if not get_rule(rule).spectral:
        return rule
    return ROLE_RULES.get(role, rule) if role.partition(".")[0] in SPECTRAL_ROLES else "adamw"


def _applies(key: str, found: Claim) -> bool:
    """Whether a key of `roles` means this parameter."""
    if key in MODALITIES:
        return found.modality == key and found.role.partition(".")[0] in SPECTRAL_ROLES
    modality, _, role = key.rpartition(":")
    return modality in ("", found.modality) and within(found.role, role)


def within(role: str, prefix: str) -> bool:
    """Whether a role is what a key of `roles` means: that role, or one that begins with it."""
    return role == prefix or role.startswith(f"{prefix}.")


def _check_roles(roles: Mapping[str, Override], claims: Sequence[Claim]) -> None:
    """Refuse a key that means nothing here."""
    for key in roles:
        if not any(_applies(key, found) for found in claims):
            known = {(found.modality, prefix) for found in claims for prefix in _prefixes(found.role)}
            words = {
                f"{modality}:{role}" if ":" in key else role for modality, role in known if modality or ":" not in key
            }
            words |= {found.modality for found in claims if ":" not in key} - {""}
            raise ConfigError(f"roles: no trainable parameter has role {key!r}; {nearest(key, sorted(words))}")


def _prefixes(role: str) -> set[str]:
    return {".".join(role.split(".")[:end]) for end in range(1, role.count(".") + 2)}


def _check_pairs(specs: Sequence[ParameterSpec], claims: Sequence[Claim]) -> None:
    """Rules of LoRA pairs need both factors of a layer with the same settings, and its scaling."""
    by_name = {spec.name: spec for spec in specs}
    for spec, found in zip(specs, claims, strict=True):
        if get_rule(spec.rule).kind != "pair":
            continue
        start = f"{spec.name}: rule {spec.rule} "
        if spec.partner is None:
            raise ConfigError(
                f"{start}updates both factors of a LoRA layer, and this is none; give the rule to role lora only"
            )
        partner = by_name.get(spec.partner)
        if partner is None or partner.rule != spec.rule:
            other = "frozen or missing" if partner is None else f"of rule {partner.rule}"
            raise ConfigError(f"{start}updates it together with {spec.partner}, which is {other}; give both the same")
        if _settings(spec) != _settings(partner):
            raise ConfigError(f"{start}updates it together with {spec.partner}, which has other settings; give both "
                              "the same, with a pattern or role that means both")  # fmt: skip
        if found.scaling is None:
            raise ConfigError(
                f"{start}needs the scaling of its layer, which has none for a single pair; give it rule adamw"
            )


def _settings(spec: ParameterSpec) -> Any:
    return None if spec.override is None else (spec.override.lr_scale, spec.override.changes)


def _warn(specs: Sequence[ParameterSpec], owners: Sequence[Owner], split: str) -> None:
    """Say where a matrix is not treated as it could be, once for each kind."""
    unknown = {
        f"model_type {owner.config.model_type}" if owner.config is not None else type(owner.ancestors[1]).__name__
        for spec, owner in zip(specs, owners, strict=True)
        if spec.role == "linear" and spec.matrices and owner.family is None and _ATTENTION.search(spec.name)
        if ((spec.override and spec.override.split) or split) == "heads"
    }
    for kind in sorted(unknown):
        warnings.warn(
            f"no head layout is known for {kind}: its attention is not split per head; add a family with "
            "rlspec.optim.map.families.register_family, or name its rules by optim.roles",
            stacklevel=1,  # one place, so that Python shows it once however many maps are made
        )


NOTES = {
    "token": "a single token has no structure",
    "vector": "a vector in a tensor of more axes has no structure",
    "depthwise": "a kernel for each channel is no matrix",
    "state": "rates of decay are numbers of single channels",
    "coefficients": "coefficients of a mixture are no matrix",
    "scalar_gate": "one row is no matrix",
    "router": "whether a softmax follows is not known",
}
"""Role of tensors that look like matrices -> why they get AdamW."""


def _notes(specs: Sequence[ParameterSpec], owners: Sequence[Owner], split: str) -> tuple[str, ...]:
    """What of a map its reader should know, one line for each kind."""
    counts: dict[str, int] = defaultdict(int)
    for spec, owner in zip(specs, owners, strict=True):
        if spec.role in NOTES and len(spec.shape) > 1 and not spec.matrices:
            counts[f"{spec.role} ({{}} tensors) has rule {spec.rule}: {NOTES[spec.role]}"] += 1
        if spec.num_heads > 1 and spec.role.startswith("attention.") and owner.family is None and owner.config:
            counts[
                f"model_type {owner.config.model_type} is of no family: heads of {{}} matrices by common names and the "
                "numbers of its config"
            ] += 1
        if spec.parts == 0 and spec.matrices and ((spec.override and spec.override.split) or split) == "whole":
            counts[f"{spec.role} ({{}} tensors) stays per head: its fused projections differ in size"] += 1
    return tuple(line.format(count) for line, count in counts.items())
