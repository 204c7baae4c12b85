"""What a parameter group and a stored state must satisfy; every refusal names the offender and the remedy."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from rlspec.errors import CheckpointError, ConfigError, nearest
from rlspec.optim.composition import Rule
from rlspec.optim.engine.updates import LAYOUT_KEYS, Group, State, layout
from rlspec.optim.kernels.layout import check_layout
from rlspec.optim.rules import get_rule
from rlspec.optim.settings import OptimizerSettings, Running, declared_types, limits
from rlspec.optim.sharding.shards import check_sharding
from rlspec.optim.sharding.state import describe

WORDS = {
    name: get_args(kind) for name, kind in declared_types(OptimizerSettings).items() if get_origin(kind) is Literal
}
"""Settings of a few words -> the words."""

_WRAPPERS = re.compile(r"\b(?:_orig_mod|_checkpoint_wrapped_module)\.")

BOUNDS = ("gradient_clip", "update_clip", "spectral_cap")

NUMBERS: Mapping[str, Mapping[str, float]] = {
    "lr": {"ge": 0},  # which a scheduler may bring to 0
    "scaling": {"gt": 0},
    "num_heads": {"ge": 1},
    "head_axis": {"ge": 0},
    "interleave": {"ge": 0},
} | {name: kept for name, kept in limits(OptimizerSettings).items() if name not in BOUNDS}
"""Setting -> its limits."""
_TYPES = declared_types(OptimizerSettings)
WHOLE = ("num_heads", "head_axis", "interleave", *(name for name, kind in _TYPES.items() if kind is int))
SWITCHES = ("maximize", "stacked", "transposed", *(name for name, kind in _TYPES.items() if kind is bool))
_LIMITS = {"ge": (operator.ge, "at least"), "gt": (operator.gt, "above"), "lt": (operator.lt, "below")}

FOREIGN = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "name", "param_names", "params")
"""Keys of a parameter group that are torch's, or its schedulers'."""


def named_parameters(group: Group) -> Iterator[tuple[str, Tensor]]:
    """Pairs of a group, under made-up names where it has none."""
    return ((parameter_name(group, position), param) for position, param in enumerate(group["params"]))


def parameter_name(group: Group, position: int) -> str:
    """Name of a parameter by its position in the group."""
    names = group.get("param_names")
    return names[position] if names else f"parameter {position} of role {group['role']}"


def started(state: State | None) -> bool:
    """Whether a parameter's state is begun; others may keep something there before the first step."""
    return state is not None and "step" in state


def check_group(group: Group) -> None:
    """Refuse a parameter group that cannot work.

    Raises:
        ConfigError: naming the setting or the parameter.
    """
    rule = get_rule(group["rule"])
    _check_numbers(group)
    for key in SWITCHES:
        check_switch(key, group[key])
    for key, words in WORDS.items():
        if group[key] not in words:
            raise ConfigError(f"{key}={group[key]!r}; {nearest(str(group[key]), words)}")
    _check_bounds(group, rule)
    rule.check(group)
    for name, param in named_parameters(group):
        _check_parameter(name, param, group, rule)
    if rule.kind == "pair":
        _check_pairs(group, rule)


def _check_numbers(group: Group) -> None:
    for key, bounds in NUMBERS.items():
        if not _is_number(group[key], key in WHOLE) or not _within(float(group[key]), bounds):
            words = " and ".join(f"{_LIMITS[sign][1]} {bound:g}" for sign, bound in bounds.items())
            kind = "an integer" if key in WHOLE else "a number"
            raise ConfigError(f"role {group['role']}: {key}={group[key]!r} must be {kind} {words}")
    betas = group["betas"]
    pair = isinstance(betas, tuple | list) and len(betas) == 2
    if not pair or not all(_is_number(beta) and 0 <= float(beta) < 1 for beta in betas):
        raise ConfigError(f"role {group['role']}: betas={betas!r} must be two numbers of at least 0 and below 1")


def _within(value: float, bounds: Mapping[str, float]) -> bool:
    fits = all(_LIMITS[sign][0](value, bound) for sign, bound in bounds.items())
    return fits and value < math.inf


def _is_number(value: Any, whole: bool = False) -> bool:
    if whole:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, Real) and not isinstance(value, bool)


def check_switch(name: str, value: Any) -> None:
    """Refuse what only looks like a switch: any text is true.

    Raises:
        ConfigError: naming it.
    """
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise ConfigError(f"{name}={value!r}: must be True or False")


def check_running(running: Mapping[str, Any]) -> None:
    """Refuse settings of `rlspec.optim.settings.Running` that cannot work.

    Raises:
        ConfigError: naming one.
    """
    bounds = limits(Running)
    for name, value in running.items():
        if name not in bounds:
            check_switch(name, value)
        elif not _is_number(value, whole=True) or value < 0:
            raise ConfigError(f"{name}={value!r}: must be an integer of at least 0")


def check_keys(given: Group, defaults: Mapping[str, Any]) -> None:
    """Refuse a key of a group, as the user gave it, that would be ignored.

    Args:
        given: the group before defaults fill it.
        defaults: of the optimizer.

    Raises:
        ConfigError: naming the nearest keys.
    """
    rule = get_rule(given.get("rule", defaults["rule"]))
    known = [*defaults, *rule.options, *FOREIGN]
    for key in given:
        if key not in known:
            raise ConfigError(f"a group of rule {rule.name} has no key {key!r}; {nearest(key, known[: -len(FOREIGN)])}")


def check_edited(
    group: Group, states: Mapping[Tensor, State], initial: Callable[[Tensor, Group, int], State], before: Group | None
) -> None:
    """Refuse settings that were written into a group after its state began; `before` are those that it had.

    Raises:
        ConfigError: naming the setting, or a parameter and what its state lacks.
    """
    check_group(group)
    for position, (name, param) in enumerate(named_parameters(group)):
        if started(states.get(param)):
            needed = initial(describe(param), group, position)
            problem = _misfit(states[param], needed)
            if before is not None and not problem:
                left = initial(describe(param), {**group, **before}, position).keys() - needed.keys()
                problem = f"has {', '.join(sorted(left))} left over" if left else ""
            if problem:
                raise ConfigError(
                    f"role {group['role']}: rule, split or options were changed to rule {group['rule']} after the "
                    f"first step, and the state of {name} {problem}; make a new optimizer for them"
                )


def _check_bounds(group: Group, rule: Rule) -> None:
    for key in BOUNDS:
        if not _is_number(group[key]) or not 0 <= float(group[key]) < math.inf:
            raise ConfigError(
                f"role {group['role']}: {key}={group[key]!r} must be a number of at least 0; 0 means none"
            )
        if group[key] and rule.kind == "pair":
            raise ConfigError(
                f"role {group['role']}: {key} does not apply to the LoRA pairs of rule {rule.name}; use 0"
            )


def check_reach(groups: Iterable[Group]) -> None:
    """Bounds on singular values need a rule of matrices somewhere; elementwise rules pass them by.

    Raises:
        ConfigError: There is none.
    """
    groups = list(groups)
    rules = {group["rule"] for group in groups}
    if any(get_rule(name).spectral for name in rules):
        return
    for key in BOUNDS:
        if any(group[key] for group in groups):
            raise ConfigError(f"{key}: has no effect on {', '.join(sorted(rules))}; it bounds steps of matrix rules")


def _check_pairs(group: Group, rule: Rule) -> None:
    """A pair rule needs A, B, A, B, ...: A (rank, in), B (out, rank)."""
    names = list(named_parameters(group))
    remedy = f"rule {rule.name} updates LoRA factors together: give the group A, B, A, B, ..."
    if len(names) % 2:
        raise ConfigError(f"role {group['role']}: {len(names)} parameters are no pairs; {remedy}")
    for (name_a, a), (name_b, b) in zip(names[0::2], names[1::2], strict=True):
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.dtype != b.dtype:
            raise ConfigError(f"{name_a} {tuple(a.shape)} and {name_b} {tuple(b.shape)} are no LoRA pair; {remedy}")


MODES = ("foreach", "fused", "capturable", "differentiable", "amsgrad")
"""Switches of torch's optimizers, which code that makes any of them passes on."""


def check_modes(given: dict[str, Any]) -> None:
    """Take torch's switches out where they are off; what decides here is the rule.

    Raises:
        ConfigError: naming a switch that is on.
    """
    for name in MODES:
        value = given.pop(name, None)
        if value is not None and value is not False:
            raise ConfigError(f"{name}={value!r}: rules choose their own kernels; leave it out")


def check_options(options: Mapping[str, Any], groups: Iterable[Group], settings: Iterable[str]) -> None:
    """Refuse an option that no rule of the groups has; `settings` are the optimizer's own, which may have been meant.

    Raises:
        ConfigError: naming the nearest options.
    """
    rules = {group["rule"] for group in groups}
    allowed = sorted({name for rule in rules for name in get_rule(rule).options})
    for name in options:
        if name not in allowed:
            words = nearest(name, [*allowed, *settings])
            raise ConfigError(f"unknown option {name!r} for {', '.join(sorted(rules))}; {words}")


def _check_parameter(name: str, param: Tensor, group: Group, rule: Rule) -> None:
    if param.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ConfigError(f"{name}: dtype {param.dtype} is not supported; train parameters of 16, 32 or 64 bits")
    check_sharding([(name, param)])
    if rule.spectral:
        num_heads, head_axis, stacked, transposed, interleave = layout(group, rule)
        check_layout(param.shape, num_heads, head_axis, name, stacked, transposed, interleave)


def check_stored(state_dict: dict[str, Any], own: list[Group], initial: Callable[[Tensor, Group, int], State]) -> None:
    """Refuse a state that would replace a group's rule or split, or fail in a later step.

    Args:
        state_dict: as `Optimizer.state_dict` gives it.
        own: the groups that would load it.
        initial: the state of a parameter at the start, for names and shapes; called on the meta device.

    Raises:
        CheckpointError: naming the offender.
    """
    if not state_dict.keys() >= {"state", "param_groups"}:
        raise CheckpointError("this is no state of an optimizer: it has no `state` and `param_groups`")
    stored = state_dict["param_groups"]
    if any("rule" not in group for group in stored):
        raise CheckpointError(
            "the optimizer state is of another optimizer, as torch.optim's: its groups name no rule; load the weights "
            "alone and start with a new state"
        )
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
        before = {"transposed": False, "interleave": 0, **before}  # which earlier versions did not have
        for key in ("rule", *LAYOUT_KEYS):
            if before.get(key) != now[key]:
                raise CheckpointError(
                    f"the optimizer state does not fit group {number} ({now['role']}): {key} was {before.get(key)} and "
                    f"is {now[key]}; use the optim settings of the checkpoint"
                )
        for position, (index, (name, param)) in enumerate(zip(before["params"], named_parameters(now), strict=True)):
            if started(state_dict["state"].get(index)):
                expected = initial(describe(param), now, position)
                problem = _misfit(state_dict["state"][index], expected)
                if problem:
                    raise CheckpointError(f"the optimizer state of {name}: {problem}; use the model of the checkpoint")


def _misfit(state: State, expected: State) -> str:
    """How a parameter's state differs from what it needs; "" if it does not. What others keep there is theirs."""
    if expected.keys() - state.keys() or "master" in state.keys() - expected.keys():
        return f"has {', '.join(state) or 'nothing'} and needs {', '.join(expected)}"
    for key, tensor in expected.items():
        shape = tuple(torch.as_tensor(state[key]).shape)
        if shape != tensor.shape:
            return f"has {key} of shape {shape} and needs {tuple(tensor.shape)}"
    return ""


def check_names(stored: list[Group], own: list[Group]) -> None:
    """Compare names group by group: state is matched by position, so an exchanged pair would go unnoticed.

    Raises:
        CheckpointError: naming the offenders.
    """
    if any("param_names" not in group for group in [*stored, *own]):
        return
    names_before, names_now = _plain_names(stored), _plain_names(own)
    before = {name: index for index, names in enumerate(names_before) for name in names}
    now = {name: index for index, names in enumerate(names_now) for name in names}
    problems = [f"{name} is not in the checkpoint" for name in now if name not in before]
    problems += [f"{name} is not in the model" for name in before if name not in now]
    problems += [
        f"{name} was in group {before[name]} ({stored[before[name]].get('role')}) and is in group {now[name]}"
        for name in now
        if name in before and before[name] != now[name]
    ]
    if not problems and names_before != names_now:
        problems = ["the same parameters in another order"]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the optimizer state does not belong to these parameters: {'; '.join(problems[:3])}{more}; "
            "use the model and the optim settings of the checkpoint"
        )


def _plain_names(groups: list[Group]) -> list[list[str]]:
    """Names of a model's parameters without those of what is around it: torch.compile, DDP, checkpointed layers."""
    names = [[_WRAPPERS.sub("", name) for name in group["param_names"]] for group in groups]
    while any(names) and all(name.startswith("module.") for part in names for name in part):
        names = [[name.removeprefix("module.") for name in part] for part in names]
    return names
