"""What a parameter group and a stored state must satisfy; every refusal names the offender and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rlspec.errors import CheckpointError, ConfigError
from rlspec.optim.composition import Rule
from rlspec.optim.constraints import METHODS
from rlspec.optim.layout import check_layout
from rlspec.optim.normalisers import NORMALISERS
from rlspec.optim.rules import get_rule
from rlspec.optim.scale import nearest, step_scale
from rlspec.optim.updates import COMPUTE_DTYPES, Group, State

WORDS = {
    "normalise": NORMALISERS,
    "compute_dtype": ("auto", *COMPUTE_DTYPES),
    "state_dtype": ("float32", "bfloat16"),
    "cap_method": METHODS,
}
"""Settings of a few words -> the words."""

BOUNDS = ("gradient_clip", "update_clip", "spectral_cap")


def named_parameters(group: Group) -> Iterator[tuple[str, Tensor]]:
    """Pairs of a group, under made-up names where it has none."""
    return ((parameter_name(group, position), param) for position, param in enumerate(group["params"]))


def parameter_name(group: Group, position: int) -> str:
    """Name of a parameter by its position in the group."""
    names = group.get("param_names")
    return names[position] if names else f"parameter {position} of role {group['role']}"


def check_group(group: Group) -> None:
    """Refuse a parameter group that cannot work.

    Raises:
        ConfigError: naming the setting or the parameter.
    """
    rule = get_rule(group["rule"])
    if not float(group["lr"]) >= 0 or not group["weight_decay"] >= 0 or not 0 <= group["momentum"] < 1:
        raise ConfigError(
            f"role {group['role']}: lr={group['lr']}, weight_decay={group['weight_decay']}, "
            f"momentum={group['momentum']}: lr and weight_decay must not be negative, momentum must lie in [0, 1)"
        )
    for key, words in WORDS.items():
        if group[key] not in words:
            raise ConfigError(f"{key}={group[key]!r}; {nearest(str(group[key]), words)}")
    _check_bounds(group, rule)
    step_scale(group["adjust_lr"], 1, 1)
    rule.check(group)
    for name, param in named_parameters(group):
        _check_parameter(name, param, group, rule)
    if rule.pair is not None:
        _check_pairs(group, rule)


def _check_bounds(group: Group, rule: Rule) -> None:
    for key in BOUNDS:
        if not group[key] >= 0:
            raise ConfigError(f"role {group['role']}: {key}={group[key]} must not be negative; 0 means none")
        if group[key] and rule.pair is not None:
            raise ConfigError(
                f"role {group['role']}: {key} does not apply to the LoRA pairs of rule {rule.name}; use 0"
            )


def _check_pairs(group: Group, rule: Rule) -> None:
    """A pair rule needs A, B, A, B, ...: A (rank, in), B (out, rank)."""
    names = list(named_parameters(group))
    remedy = f"rule {rule.name} updates LoRA factors together: give the group A, B, A, B, ..."
    if len(names) % 2:
        raise ConfigError(f"role {group['role']}: {len(names)} parameters are no pairs; {remedy}")
    if not float(group["scaling"]) > 0:
        raise ConfigError(f"role {group['role']}: scaling={group['scaling']} must be positive")
    for (name_a, a), (name_b, b) in zip(names[0::2], names[1::2], strict=True):
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.dtype != b.dtype:
            raise ConfigError(f"{name_a} {tuple(a.shape)} and {name_b} {tuple(b.shape)} are no LoRA pair; {remedy}")


def check_options(options: Mapping[str, Any], groups: Iterable[Group]) -> None:
    """Refuse an option that no rule of the groups has.

    Raises:
        ConfigError: naming the nearest options.
    """
    rules = {group["rule"] for group in groups}
    allowed = sorted({name for rule in rules for name in get_rule(rule).options})
    for name in options:
        if name not in allowed:
            raise ConfigError(f"unknown option {name!r} for {', '.join(sorted(rules))}; {nearest(name, allowed)}")


def _check_parameter(name: str, param: Tensor, group: Group, rule: Rule) -> None:
    if not param.is_floating_point():
        raise ConfigError(f"{name}: dtype {param.dtype} is not supported; train real floating-point parameters")
    check_unsharded([(name, param)])
    if rule.spectral:
        check_layout(param.shape, group["num_heads"], group["head_axis"], name, group["stacked"])


SHARDED = {
    "_fsdp_flattened": "FSDP1",  # on flat parameters, and on the original ones that are views of their shard
    "full_tensor": "FSDP2",
    "ds_id": "DeepSpeed ZeRO-3",
}
"""Attribute that a parameter has -> what has sharded it."""


def check_unsharded(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse parameters of which this process has a part only.

    Raises:
        ConfigError: naming the parameter and what has sharded it.
    """
    for name, param in named:
        kind = next((kind for attribute, kind in SHARDED.items() if hasattr(param, attribute)), None)
        if kind is not None:
            raise ConfigError(f"{name}: parameters sharded by {kind} are not supported; use DDP or one device")


def check_stored(state_dict: dict[str, Any], own: list[Group], initial: Callable[[Tensor, Group, int], State]) -> None:
    """Refuse a state that would replace a group's rule or split, or fail in a later step.

    Args:
        state_dict: as `Optimizer.state_dict` gives it.
        own: the groups that would load it.
        initial: the state of a parameter at the start, for names and shapes; called on the meta device.

    Raises:
        CheckpointError: naming the offender.
    """
    stored = state_dict["param_groups"]
    if len(stored) != len(own):
        raise CheckpointError(
            f"the optimizer state has {len(stored)} parameter groups and not {len(own)}; use the model and the optim "
            "settings of the checkpoint"
        )
    check_names(stored, own)
    counts = [[len(group["params"]) for group in groups] for groups in (stored, own)]
    if counts[0] != counts[1]:
        raise CheckpointError(f"the optimizer state has groups of {counts[0]} parameters and not of {counts[1]}")
    for number, (before, now) in enumerate(zip(stored, own, strict=True)):
        for key in ("rule", "num_heads", "head_axis", "stacked"):
            if before.get(key) != now[key]:
                raise CheckpointError(
                    f"the optimizer state does not fit group {number} ({now['role']}): {key} was {before.get(key)} and "
                    f"is {now[key]}; use the optim settings of the checkpoint"
                )
        for position, (index, (name, param)) in enumerate(zip(before["params"], named_parameters(now), strict=True)):
            if index in state_dict["state"]:
                expected = initial(torch.empty_like(param, device="meta"), now, position)
                _check_state(name, state_dict["state"][index], expected)


def _check_state(name: str, state: State, expected: State) -> None:
    if state.keys() != expected.keys():
        raise CheckpointError(
            f"the optimizer state of {name}: has {', '.join(state) or 'nothing'} and needs {', '.join(expected)}"
        )
    for key, tensor in expected.items():
        if torch.as_tensor(state[key]).shape != tensor.shape:
            raise CheckpointError(
                f"the optimizer state of {name}: {key} is of shape {tuple(torch.as_tensor(state[key]).shape)} and "
                f"needs {tuple(tensor.shape)}; use the model of the checkpoint"
            )


def check_names(stored: list[Group], own: list[Group]) -> None:
    """Compare names group by group: state is matched by position, so an exchanged pair would go unnoticed.

    Raises:
        CheckpointError: naming the offenders.
    """
    if any("param_names" not in group for group in [*stored, *own]):
        return
    before = {name: index for index, group in enumerate(stored) for name in group["param_names"]}
    now = {name: index for index, group in enumerate(own) for name in group["param_names"]}
    problems = [f"{name} is not in the checkpoint" for name in now if name not in before]
    problems += [f"{name} is not in the model" for name in before if name not in now]
    problems += [
        f"{name} was in group {before[name]} ({stored[before[name]].get('role')}) and is in group {now[name]}"
        for name in now
        if name in before and before[name] != now[name]
    ]
    if not problems and [group["param_names"] for group in stored] != [group["param_names"] for group in own]:
        problems = ["the same parameters in another order"]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the optimizer state does not belong to these parameters: {'; '.join(problems[:3])}{more}; "
            "use the model and the optim settings of the checkpoint"
        )
