"""What users say of single roles and parameters, over the defaults of the symmetry map."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from rlspec.errors import ConfigError, nearest
from rlspec.optim.composition import Rule
from rlspec.optim.map.families import MODALITIES, ROLE_PRESETS
from rlspec.optim.rules import RULES, get_rule
from rlspec.optim.settings import RoleChanges, Split, check_positive
from rlspec.optim.stages.scale import ADJUST_LR

SPLITS: tuple[str, ...] = get_args(Split)
Roles = Mapping[str, str | Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Override(RoleChanges):
    """Settings of a role, or of the parameters whose name matches `pattern` (re.search).

    Attributes:
        pattern: "" for a role's.
        options: other options of the rule, as (name, value); users write them beside the rest or under `options`.
    """

    pattern: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def changes(self) -> dict[str, Any]:
        """Settings of a parameter group that it changes, without rule, split and learning rate."""
        named = {name: getattr(self, name) for name in ("weight_decay", "promotion_steps", "adjust_lr")}
        return {name: value for name, value in named.items() if value is not None} | dict(self.options)

    def over(self, other: Override | None) -> Override:
        """Both, with this one's word where they differ."""
        if other is None:
            return self
        given = {key: getattr(self, key) for key in _KEYS if getattr(self, key) is not None}
        given["lr_scale"] = self.lr_scale * other.lr_scale
        return replace(other, **given, options=tuple((dict(other.options) | dict(self.options)).items()))


LAYOUT = ("stacked", "num_heads", "parts", "head_axis", "transposed")
"""Settings that say how a matrix lies in its tensor, over what the map found."""

_KEYS = tuple(entry.name for entry in fields(Override) if entry.name != "options")


def parse_overrides(overrides: Sequence[Mapping[str, Any]]) -> list[Override]:
    """Read and check what users wrote.

    Raises:
        ConfigError: naming the key or value and the remedy.
    """
    return [_parse_override(mapping) for mapping in overrides]


def _parse_override(mapping: Mapping[str, Any]) -> Override:
    if not isinstance(mapping.get("pattern"), str):
        _check_keys(mapping, "overrides")
        raise ConfigError(f"overrides: {dict(mapping)} has no pattern, a regular expression for parameter names")
    override = _settings(mapping, "overrides")
    try:
        re.compile(override.pattern)
    except re.error as error:
        raise ConfigError(f"overrides: pattern {override.pattern!r} is no regular expression: {error}") from error
    return override


def parse_roles(roles: str | Roles | None, applies: Callable[[str], bool]) -> dict[str, Override]:
    """Role, modality or modality:role -> settings, from general to special.

    Args:
        roles: a rule, or a mapping of settings, for each; or the name of a preset in `ROLE_PRESETS`.
        applies: whether a key means a parameter to train; a preset's others are left out.

    Raises:
        ConfigError: naming the key or value and the remedy.
    """
    if isinstance(roles, str):
        if roles not in ROLE_PRESETS:
            raise ConfigError(f"roles={roles!r} is no preset; {nearest(roles, ROLE_PRESETS)}")
        roles = {key: value for key, value in ROLE_PRESETS[roles].items() if applies(key)}
    parsed = {}
    for key in sorted(roles or {}, key=_speciality):
        value = (roles or {})[key]
        if key.partition(":")[0] not in MODALITIES and ":" in key:
            raise ConfigError(f"roles: {key!r}: {nearest(key.partition(':')[0], MODALITIES)}")
        parsed[key] = _settings({"rule": value} if isinstance(value, str) else value, f"roles: {key}")
    return parsed


def _speciality(key: str) -> tuple[int, int]:
    """Modalities come before roles, these before modality:role; short ones before long ones."""
    return (0 if key in MODALITIES else 2 if ":" in key else 1), len(key)


def _settings(mapping: Mapping[str, Any], where: str) -> Override:
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: {mapping!r}: give a rule, or a mapping of settings")
    _check_keys(mapping, where)
    named = {key: value for key, value in mapping.items() if key in _KEYS}
    override = Override(**named, options=tuple(_options(mapping).items()))
    if override.rule is not None:
        get_rule(override.rule)
    if override.split not in (None, *SPLITS):
        raise ConfigError(f"{where}: split={override.split!r}; {nearest(str(override.split), SPLITS)}")
    check_positive(f"{where}: lr_scale", override.lr_scale)
    for name in LAYOUT:
        value, lowest = getattr(override, name), int(name != "head_axis")
        kind = bool if name in ("stacked", "transposed") else int
        fits = type(value) is kind and (kind is bool or value >= lowest) and (name != "head_axis" or value <= 1)
        if value is not None and not fits:
            words = "true or false" if kind is bool else "0 or 1" if name == "head_axis" else "a whole number from 1"
            raise ConfigError(f"{where}: {name}={value!r} must be {words}")
    if override.adjust_lr is not None and override.adjust_lr not in ADJUST_LR:
        raise ConfigError(f"{where}: adjust_lr={override.adjust_lr!r}; {nearest(override.adjust_lr, ADJUST_LR)}")
    return override


def _options(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Options of rules, written beside the other settings or as a mapping under `options`."""
    beside = {key: value for key, value in mapping.items() if key not in (*_KEYS, "options")}
    return beside | dict(mapping.get("options") or {})


def _check_keys(mapping: Mapping[str, Any], where: str) -> None:
    options = {name for rule in RULES.values() for name in rule.options}
    for key in _options(mapping):
        if key not in options:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, [*_KEYS, *sorted(options)])}")


def check_patterns(overrides: Sequence[Override], names: Sequence[str]) -> None:
    """Refuse a pattern that matches nothing.

    Raises:
        ConfigError: naming the pattern and near names.
    """
    for override in overrides:
        if not any(re.search(override.pattern, name) for name in names):
            examples = nearest(override.pattern, list(names)[:3])
            raise ConfigError(
                f"overrides: pattern {override.pattern!r} matches no trainable parameter; {examples}, ..."
            )


def check_knobs(override: Override, rule: Rule, name: str) -> None:
    """Refuse a setting that the parameter's rule would ignore.

    Raises:
        ConfigError: naming the setting, the parameter and the rule.
    """
    given = [setting for setting in LAYOUT if getattr(override, setting) is not None]
    for setting in [*override.changes, *given]:
        used = setting == "weight_decay" or setting in rule.options or setting in given and rule.kind == "matrix"
        if setting == "adjust_lr":
            used = rule.spectral or rule.length == "unit"
        if not used:
            where = f"overrides: pattern {override.pattern!r}" if override.pattern else "roles:"
            raise ConfigError(f"{where} sets {setting} of {name}, whose rule {rule.name} has none")
