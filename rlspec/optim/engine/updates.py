"""One batch of parameters through one composition: from gradients to updates, nothing waited for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlspec.optim.composition import Kernel, Pair, Rule, Stage, Step
from rlspec.optim.kernels.layout import block_shape, merge_blocks, split_blocks
from rlspec.optim.kernels.normalisers import largest_singular
from rlspec.optim.kernels.rounding import stochastic_round
from rlspec.optim.stages.clipping import soft_clip_blocks
from rlspec.optim.stages.scale import MATCHED, SIZED, step_scale

Group = dict[str, Any]
State = dict[str, Tensor]
HALF = (torch.bfloat16, torch.float16)
OWN_KEYS = ("momentum_buffer", "step", "master")
"""State that is the optimizer's and not a stage's."""

COMPUTE_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}

AUTO_DTYPES = {"cuda": torch.bfloat16}
"""Type of device -> what `compute_dtype="auto"` takes; float32 on all others.

bfloat16 on CUDA, as torch.optim.Muon. Not on CPUs, even where bfloat16 is fast (AMX, some three times): it puts 13 to
38 % of Muon's energy outside of the row space of a rank-deficient gradient, where float32 puts 1e-5 and less, the
iterations are a small part of a step whose forward and backward pass run in float32, and a seed would give other
weights on another processor.
"""


@dataclass(slots=True)
class Entry:
    """A parameter in one step.

    Attributes:
        param: as the model has it.
        target: what moves: the parameter, or its float32 master copy.
        gradient: in the target's dtype, finite.
        state: of the parameter.
        index: position among all parameters of the optimizer.
        alive: scalar 1.0, or 0.0 where the gradient was not finite and nothing may change; None: known to be finite.
    """

    param: Tensor
    target: Tensor
    gradient: Tensor
    state: State
    index: int
    alive: Tensor | None = None


@dataclass
class Updates:
    """What to subtract from the targets: `lr * factor * updates`, after the decay.

    Attributes:
        updates: one per entry, in the entry's shape.
        factor: common to all.
        decay: factors of the weight decay per entry, broadcast to its shape; None: 1.
        blocks: normalised blocks as the filter saw them, or the momentum's, for telemetry.
        filtered: blocks after all stages, before the scale.
        energy: directions that passed, (batch,); None where no stage measured it.
    """

    updates: list[Tensor]
    factor: float
    decay: list[Tensor] | None
    blocks: Tensor
    filtered: Tensor = field(repr=False)
    energy: Tensor | None


Layout = tuple[int, int, bool, bool, int]
"""num_heads, head_axis, stacked, transposed and interleave of `rlspec.optim.kernels.layout`."""

WHOLE: Layout = (1, 0, False, False, 0)
LAYOUT_KEYS = ("num_heads", "head_axis", "stacked", "transposed", "interleave")


def layout(group: Group, rule: Rule) -> Layout:
    """How the parameters of a group are cut; elementwise rules take every parameter whole."""
    if not rule.spectral:
        return WHOLE
    return group["num_heads"], group["head_axis"], group["stacked"], group["transposed"], group["interleave"]


def compute_dtype(group: Group, blocks: Tensor) -> torch.dtype:
    """The arithmetic type of the iterations."""
    if group["compute_dtype"] != "auto":
        return COMPUTE_DTYPES[group["compute_dtype"]]
    return torch.float64 if blocks.dtype == torch.float64 else AUTO_DTYPES.get(blocks.device.type, torch.float32)


def updates(group: Group, rule: Rule, entries: list[Entry]) -> Updates:
    """Run a rule's composition on parameters of equal shapes, dtype, device and step count, as `batches` gives them.

    Their momentum buffers and stage buffers are updated; the targets are not.
    """
    return _pair_updates(group, rule, entries) if rule.kind == "pair" else _composed_updates(group, rule, entries)


def run_kernel(group: Group, kernel: Kernel, entries: list[Entry]) -> None:
    """Run a kernel on parameters, which moves them; where one is masked, all of them stay."""
    flags = [entry.alive for entry in entries if entry.alive is not None]
    kernel.function(
        [entry.target for entry in entries],
        [entry.gradient for entry in entries],
        {name: [entry.state[name] for entry in entries] for name in kernel.buffers},
        [entry.state["step"] for entry in entries],
        1.0 - torch.stack(flags).amin() if flags else None,
        **kernel.arguments(group),
    )


def _composed_updates(group: Group, rule: Rule, entries: list[Entry]) -> Updates:
    """Blocks of matrices, or whole parameters of any shape."""
    gradients = [entry.gradient for entry in entries]
    rows, cols = block_shape(entries[0].param.shape, *layout(group, rule))[1:]
    gradient_clip, update_clip = (group[key] if rule.spectral else 0.0 for key in ("gradient_clip", "update_clip"))
    step = _begin(group, entries, rows, cols, rule)
    if rule.before or gradient_clip:
        blocks = _split(gradients, group, rule)
        if gradient_clip:
            blocks = soft_clip_blocks(blocks, gradient_clip)
        blocks = _through(rule.before, blocks, step)
        gradients = _merge(blocks, entries, group, rule)
    directions = averaged(group, rule, entries, gradients)
    if rule.reads_gradient:
        step.gradient = _split(gradients, group, rule)
    direction = _split(directions, group, rule)
    blocks = _through(rule.stages, direction, step)
    _write_back(step, entries)
    filtered = blocks.to(direction.dtype)
    factor, factors = _length(group, rule, rows, cols, step.energy, filtered)
    scaled = filtered if factors is None else filtered * factors.to(filtered.dtype)[:, None, None]
    if update_clip:
        scaled, factor = soft_clip_blocks(scaled * factor, update_clip), 1.0
    decay = None
    if step.decay is not None and group["weight_decay"]:
        decay = _merge(step.decay.to(filtered.dtype).expand_as(filtered), entries, group, rule)
    seen = direction if step.normalised is None else step.normalised
    return Updates(_merge(scaled, entries, group, rule), factor, decay, seen, filtered, step.energy)


def _through(stages: Sequence[Stage], blocks: Tensor, step: Step) -> Tensor:
    """Run stages one after the other, each on blocks of the dtype that it asks for."""
    own = blocks.dtype
    for stage in stages:
        blocks = stage(blocks.to(step.compute_dtype if stage.iterates else own), step)
    return blocks


def _pair_updates(group: Group, rule: Rule, entries: list[Entry]) -> Updates:
    """LoRA layers: entries, and updates, are those of all A, then those of all B."""
    assert rule.pair is not None
    pairs = len(entries) // 2
    entries_a, entries_b = entries[:pairs], entries[pairs:]
    rows, cols = entries_b[0].param.shape[0], entries_a[0].param.shape[1]
    step = _begin(group, entries, rows, cols, rule)
    directions = averaged(group, rule, entries, [entry.gradient for entry in entries])
    pair = Pair(
        a=torch.stack([entry.target for entry in entries_a]),
        b=torch.stack([entry.target for entry in entries_b]),
        direction_a=torch.stack(directions[:pairs]),
        direction_b=torch.stack(directions[pairs:]),
        gradient_a=torch.stack([entry.gradient for entry in entries_a]),
        gradient_b=torch.stack([entry.gradient for entry in entries_b]),
        scaling=float(group["scaling"]),
    )
    update_a, update_b = rule.pair(pair, step)
    _write_back(step, entries)
    merged = [*update_a.unbind(), *update_b.unbind()]
    seen = pair.direction_a if step.normalised is None else step.normalised
    return Updates(merged, step.length, None, seen, update_a, step.energy)


def _begin(group: Group, entries: list[Entry], rows: int, cols: int, rule: Rule) -> Step:
    """Count the step and gather the buffers of the stages, batch first."""
    torch._foreach_add_([entry.state["step"] for entry in entries], 1)
    names = {name for factor in ("", "a", "b") for name in rule.buffers(rows, cols, group, factor)}
    kept = entries[0].state.keys() | entries[-1].state.keys()  # of a pair, those of A and of B
    state = {
        name: torch.cat([entry.state[name] for entry in entries if name in entry.state])
        for name in sorted(names & kept)
    }
    length = _length(group, rule, rows, cols)[0]
    count = int(entries[0].state["step"])
    dtype = compute_dtype(group, entries[0].target)
    return Step(group, float(group["lr"]), length, count, dtype, state=state)


def _length(
    group: Group,
    rule: Rule,
    rows: int,
    cols: int,
    energy: Tensor | None = None,
    filtered: Tensor | None = None,
) -> tuple[float, Tensor | None]:
    """`step_scale` of a block; of the modes only AdamW's are for entries, the others are for matrices."""
    mode = group["adjust_lr"] if rule.spectral or rule.length == "unit" and group["adjust_lr"] in MATCHED else "none"
    top = None
    if mode == "match_spectral_adamw" and filtered is not None and not rule.bounded and rule.length not in SIZED:
        top = largest_singular(filtered)
    energy = energy if rule.length == "measured" else None
    return step_scale(mode, rows, cols, energy=energy, top=top, paper_scale=group["paper_scale"], length=rule.length)


def averaged(group: Group, rule: Rule, entries: list[Entry], gradients: list[Tensor]) -> list[Tensor]:
    """Directions after the momentum, whose buffers are updated; the gradients where the rule has none."""
    if rule.momentum is None:
        return gradients
    stored = [entry.state["momentum_buffer"] for entry in entries]
    # A bfloat16 buffer is averaged in float32 and rounded stochastically: (1 - momentum) G would be lost in it.
    buffers = stored
    if stored[0].dtype != gradients[0].dtype:
        buffers = [buffer.to(gradient.dtype) for buffer, gradient in zip(stored, gradients, strict=True)]
    alive = None if entries[0].alive is None else [entry.alive for entry in entries if entry.alive is not None]
    directions = rule.momentum(buffers, gradients, group["momentum"], group["nesterov"], alive)
    if buffers is not stored:
        for entry, before, buffer in zip(entries, stored, buffers, strict=True):
            rounded = stochastic_round(buffer.to(torch.float32), _seed(entry))
            before.copy_(_keep(rounded, before, entry.alive))
    return directions


def _seed(entry: Entry) -> int:
    return 1_000_003 * int(entry.state["step"]) + entry.index


def _split(tensors: Sequence[Tensor], group: Group, rule: Rule) -> Tensor:
    """Blocks of tensors of one shape, in their order; those of a single tensor are a view."""
    num_heads, head_axis, stacked, transposed, run = layout(group, rule)
    if len(tensors) > 1 and (head_axis == 0 or num_heads == 1):
        many = torch.stack(list(tensors))
        return split_blocks(many.flatten(0, 1) if stacked else many, num_heads, head_axis, True, transposed, run)
    parts = [split_blocks(tensor, num_heads, head_axis, stacked, transposed, run) for tensor in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _merge(blocks: Tensor, entries: list[Entry], group: Group, rule: Rule) -> list[Tensor]:
    shape, (_, head_axis, stacked, transposed, run) = entries[0].param.shape, layout(group, rule)
    many = (len(entries) * shape[0], *shape[1:]) if stacked else (len(entries), *shape)
    merged = merge_blocks(blocks, many, head_axis, True, transposed, run)
    return list(merged.reshape(len(entries), *shape).unbind())


def _write_back(step: Step, entries: list[Entry]) -> None:
    """Store what the stages assigned."""
    for name, updated in step.state.items():
        holders = [entry for entry in entries if name in entry.state]
        stored = [entry.state[name] for entry in holders]
        parts = updated.split([len(old) for old in stored])
        kept = [_keep(part, old, entry.alive) for part, old, entry in zip(parts, stored, holders, strict=True)]
        torch._foreach_copy_(stored, kept)


def _keep(new: Tensor, old: Tensor, alive: Tensor | None) -> Tensor:
    return new if alive is None else torch.where(alive > 0, new, old)


def apply_updates(group: Group, rule: Rule, entries: list[Entry], result: Updates) -> None:
    """Decay the targets, then move them; the decay is decoupled and uses the unscaled learning rate.

    Both factors of a LoRA pair decay by the square root, so that their product decays as a weight would.
    """
    lr, targets, updates = float(group["lr"]), [entry.target for entry in entries], result.updates
    alive = [entry.alive for entry in entries if entry.alive is not None]
    decay = lr * group["weight_decay"]
    if decay and result.decay is not None:
        factors = [1 - decay * _flagged(part, entry) for part, entry in zip(result.decay, entries, strict=True)]
        torch._foreach_mul_(targets, factors)
    elif decay:
        factor = 1 - decay if rule.kind != "pair" else math.sqrt(max(0.0, 1 - decay))
        if alive:
            torch._foreach_mul_(targets, [torch.where(flag > 0, factor, 1.0) for flag in alive])
        else:
            torch._foreach_mul_(targets, factor)
    if alive:
        updates = [torch.where(flag > 0, update, 0.0) for flag, update in zip(alive, updates, strict=True)]
    torch._foreach_add_(targets, updates, alpha=-(lr * result.factor))


def _flagged(part: Tensor, entry: Entry) -> Tensor:
    return part if entry.alive is None else part * entry.alive
