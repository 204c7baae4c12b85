"""Which parameters go through a rule together, and the state with which they start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rlspec.optim.composition import Buffer, Rule
from rlspec.optim.engine.checks import started
from rlspec.optim.engine.finite import Flag
from rlspec.optim.engine.updates import HALF, OWN_KEYS, Entry, Group, State, layout
from rlspec.optim.kernels.layout import block_shape
from rlspec.optim.rules import get_rule
from rlspec.optim.sharding.shards import is_dtensor, local
from rlspec.optim.sharding.state import shard_buffer
from rlspec.optim.stages.elementwise import FUSED_DEVICES


def step_device(param: Tensor, group: Group) -> torch.device:
    """Fused kernels count their steps on the device; all others where reading them is free."""
    fused = get_rule(group["rule"]).kernel is not None and param.device.type in FUSED_DEVICES
    return param.device if fused else torch.device("cpu")


def initial_state(param: Tensor, group: Group, position: int) -> State:
    """The state of a parameter before its first step; `position` in the group tells A from B in LoRA pairs."""
    rule, dtype = get_rule(group["rule"]), torch.float64 if param.dtype == torch.float64 else torch.float32
    state: State = {"step": torch.zeros((), dtype=torch.float32, device=step_device(param, group))}
    if rule.momentum is not None:
        kept = torch.bfloat16 if group["state_dtype"] == "bfloat16" else dtype
        state["momentum_buffer"] = torch.zeros_like(param, dtype=kept, memory_format=torch.preserve_format)
    for name in rule.kernel.buffers if rule.kernel is not None else ():
        state[name] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    blocks, buffers = _stage_buffers(param, group, position)
    for name, buffer in buffers.items():
        if is_dtensor(param):
            state[name] = shard_buffer(buffer, blocks, dtype, param, rule, layout(group, rule))
        else:
            state[name] = buffer.new(blocks, dtype, param.device)
    if param.dtype in HALF:
        state["master"] = param.detach().to(torch.float32)
    return state


def _stage_buffers(param: Tensor, group: Group, position: int) -> tuple[int, dict[str, Buffer]]:
    """How many blocks a parameter has, and what the stages of its rule keep of each."""
    rule = get_rule(group["rule"])
    factor: Literal["", "a", "b"] = "" if rule.kind != "pair" else ("b" if position % 2 else "a")
    blocks, rows, cols = block_shape(param.shape, *layout(group, rule))
    return blocks, rule.buffers(rows, cols, group, factor)


def own_state(param: Tensor, group: Group, position: int, state: State) -> State:
    """What of a parameter's state is the rule's; others may keep something beside it."""
    kernel = get_rule(group["rule"]).kernel
    names = {*OWN_KEYS, *(() if kernel is None else kernel.buffers), *_stage_buffers(param, group, position)[1]}
    return {name: value for name, value in state.items() if name in names}


def follow_weights(groups: Iterable[Group], states: Mapping[Tensor, State]) -> None:
    """Take over what was done to the weights since the last step: a checkpoint, a clamp, zeros, another dtype.

    A weight that still is its master, rounded, leaves it as it is; a model that was cast (`model.bfloat16()`) gets the
    state that its dtype begins with, and keeps its momentum.
    """
    for group in groups:
        for position, param in enumerate(group["params"]):
            state = states.get(param)
            if state is None or not started(state):
                continue
            if "master" in state and param.dtype in HALF:
                weight, master = local(param.detach()), local(state["master"])
                torch.where(weight == master.to(weight.dtype), master, weight, out=master)
            elif "master" in state or param.dtype in HALF or _of_another_precision(param, state):
                _cast(param, group, position, state)


def _of_another_precision(param: Tensor, state: State) -> bool:
    """Whether the state is kept in float64 for a weight that is not, or the other way round."""
    foreign = torch.float32 if param.dtype == torch.float64 else torch.float64
    return any(value.dtype == foreign for key, value in state.items() if key != "step" and isinstance(value, Tensor))


def _cast(param: Tensor, group: Group, position: int, state: State) -> None:
    """Give a state the tensors and dtypes that its weight's dtype asks for; the weight takes what its master knew."""
    if "master" in state:
        weight, master = local(param.detach()), local(state.pop("master"))
        for half in HALF:
            torch.where(weight == master.to(half).to(weight.dtype), master.to(weight.dtype), weight, out=weight)
    for name, fresh in initial_state(param, group, position).items():
        state[name] = state[name].to(fresh.dtype) if name in state else fresh


CPU_BATCH_BYTES = 1 << 20
"""Larger batches of matrices gain nothing on a CPU and fall out of its cache: a tenth slower at 4 MiB, 512 x 512."""


def batches(
    group: Group, first: int, flags: Sequence[Flag], states: Mapping[Tensor, State], workspace_bytes: int
) -> Iterator[list[Entry]]:
    """Entries of a group that can go together: equal shapes, dtype, device and age, within the workspace.

    In a group of LoRA pairs those of all A come before those of all B, and a pair counts as one. Gradients are cast
    when their batch comes, so that no more than one batch of them is copied at a time.

    Args:
        group: its parameters without a state get one.
        first: position of its first parameter among all of the optimizer.
        flags: of its parameters, see `Flag`.
        states: of all parameters.
        workspace_bytes: bound on the float32 values of a batch, of one parameter or pair at least.
    """
    rule, params = get_rule(group["rule"]), group["params"]
    width = rule.width
    alike: dict[Any, list[int]] = defaultdict(list)
    for start in range(0, len(params), width):
        unit = range(start, start + width)
        if all(flags[position] is not None for position in unit):
            for position in unit:
                if not started(states[params[position]]):
                    states[params[position]].update(initial_state(params[position], group, position))
            alike[_kind([params[position] for position in unit], flags[start], states, rule)].append(start)
    for starts in alike.values():
        sizes = [4 * sum(param.numel() for param in params[start : start + width]) for start in starts]
        cached = rule.kernel is None and params[starts[0]].device.type == "cpu"
        for part in _within(starts, sizes, min(workspace_bytes, CPU_BATCH_BYTES) if cached else workspace_bytes):
            alive = [None if flags[start] is True else _together(flags[start : start + width]) for start in part]
            yield [
                make_entry(params[start + offset], states, rule, first + start + offset, flag, group["maximize"])
                for offset in range(width)
                for start, flag in zip(part, alive, strict=True)
            ]


def _kind(params: list[Tensor], flag: Flag, states: Mapping[Tensor, State], rule: Rule) -> Any:
    """What parameters must share to be updated in one batch."""
    where = params[0].dtype, params[0].device, flag is True
    if rule.kernel is not None:
        return where
    return (*where, int(states[params[0]]["step"]), *(param.shape for param in params))


def _within(starts: list[int], sizes: list[int], bound: int) -> Iterator[list[int]]:
    """Cut a list so that the sizes of each part add up to the bound at most, or the part has one element."""
    part, room = [starts[0]], bound - sizes[0]
    for start, size in zip(starts[1:], sizes[1:], strict=True):
        if room < size:
            yield part
            part, room = [], bound
        part.append(start)
        room -= size
    yield part


def _together(flags: Sequence[Flag]) -> Tensor | None:
    """The flag of a parameter, or of a pair, which moves together or not at all; None: known to be finite."""
    waiting = [flag for flag in flags if isinstance(flag, Tensor)]
    if len(waiting) < 2:
        return waiting[0] if waiting else None
    return torch.stack(waiting).amin()


def make_entry(
    param: Tensor, states: Mapping[Tensor, State], rule: Rule, index: int, alive: Tensor | None, maximize: bool
) -> Entry:
    """A parameter with its gradient in the dtype of what moves, zero where it is masked."""
    state, gradient = states[param], param.grad
    assert gradient is not None
    target = state.get("master", param)
    if gradient.dtype != target.dtype:
        gradient = gradient.to(target.dtype)
    if maximize:
        gradient = -gradient
    if alive is not None and rule.kernel is None:  # a kernel is told to leave its whole batch alone
        gradient = torch.where(alive > 0, gradient, 0.0)
    return Entry(param, target, gradient, state, index, alive)
