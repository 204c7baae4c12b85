"""A step of parameters that several processes share.

What is elementwise, or whole where it lies (heads, experts), is updated there, by the code that one process runs. Every
other matrix is dealt to a rank, which gathers what the rule needs, updates it, and sends the update back; while a round
is computed, the next one travels.

    lean:   momentum is averaged where it lies; its direction travels there, and the update back (most rules)
    full:   gradient, momentum, state and weight travel, and come back (LoRA pairs, bounds on weights, telemetry, ...)
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlspec.optim.composition import Rule
from rlspec.optim.engine.batches import CPU_BATCH_BYTES, batches, initial_state, make_entry, own_state
from rlspec.optim.engine.checks import named_parameters, started
from rlspec.optim.engine.finite import Flag
from rlspec.optim.engine.telemetry import LARGEST_MEASURED, Recorder
from rlspec.optim.engine.updates import OWN_KEYS, Entry, Group, State, Updates, apply_updates, averaged, layout, updates
from rlspec.optim.rules import get_rule
from rlspec.optim.sharding.agreement import RankAgreement
from rlspec.optim.sharding.dealing import TensorPart, Unit, deal, rounds
from rlspec.optim.sharding.exchange import Pending, Wire, assemble, collect, gather, scatter
from rlspec.optim.sharding.shards import check_mixed, cut_axis, is_dtensor, local, local_blocks, shard_group, shards_of

Update = Callable[[Group, list[Entry]], None]
Rows = list[dict[str, Tensor]]
"""Whole tensors of a unit by name, parameter by parameter."""


class Distribution:
    """How the parameters of an optimizer lie across processes.

    Args:
        groups: parameter groups of the optimizer.
        process_group: ranks that hold copies of plain parameters (DDP); None where they are DTensors.

    Raises:
        ConfigError: on sharded parameters beside plain ones, or on two meshes.
    """

    def __init__(self, groups: Sequence[Group], process_group: dist.ProcessGroup | None) -> None:
        named = [pair for group in groups for pair in named_parameters(group)]
        check_mixed(named)
        self.roles = list(dict.fromkeys(group["role"] for group in groups))
        first: Any = next((param for _, param in named if is_dtensor(param)), None)
        others: list[dist.ProcessGroup] = []
        if first is None:
            assert process_group is not None
            self.group, kind = process_group, named[0][1].device.type
        else:
            self.group, copies = shard_group(first)
            kind = first.device_mesh.device_type
            others = [copies] if copies is not None else []
        self.device = torch.device(kind)
        if kind != "cpu":
            self.device = torch.device(kind, torch.accelerator.current_device_index())
        self.agreement = RankAgreement([self.group, *others])
        self.size, self.rank = self.group.size(), self.group.rank()
        self._warned = False

    def presence(
        self, present: set[int], bad: set[int], moving: bool, names: Sequence[str]
    ) -> tuple[set[int], set[int], bool]:
        """Positions of gradients that every rank has, and of those that are not finite on one; collective.

        `moving`, whether a gradient is known not to be 0, becomes whether one is on any rank.

        A gradient that only some ranks have is left out by all, with a warning.
        """
        everyone = range(len(names))
        seen = self.agreement.presence([k not in present for k in everyone], [k in bad for k in everyone], moving)
        partly = [names[k] for k in everyone if seen.missing[k] and seen.present[k]]
        if partly and not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(partly)} parameters have a gradient on some processes only ({partly[0]}): all leave them "
                "unchanged; let every process use them, or none",
                stacklevel=5,
            )
        shared = {k for k in everyone if not seen.missing[k]}
        return shared, {k for k in shared if seen.bad[k]}, seen.moving

    def least(self, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The least count of any rank, by role; collective."""
        return self.agreement.least(counts, self.device)

    def totals(self, sums: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """Telemetry of all ranks, by role; collective."""
        return self.agreement.totals(sums, self.roles)

    def update(
        self, groups: Sequence[Group], flags: Sequence[Flag], states: Any, recorder: Recorder, workspace_bytes: int,
        update: Update,
    ) -> None:  # fmt: skip
        """Update all parameters; collective.

        Args:
            groups: of the optimizer.
            flags: of all parameters, alike on all ranks.
            states: of all parameters.
            recorder: of telemetry.
            workspace_bytes: bound on what is gathered at a time.
            update: runs a batch of whole parameters.
        """
        here: list[tuple[Group, int, list[Tensor], list[Flag], dict[Tensor, State], bool]] = []
        units: list[Unit] = []
        first = 0
        for group in groups:
            local_part, dealt = self._split(group, first, flags, states, recorder.collecting)
            here.append(local_part)
            units += dealt
            first += len(group["params"])
        lanes = self._lanes(units, workspace_bytes)
        started = [(lane, gather(lane[0], lane[1][0], _outgoing)) for lane in lanes]
        for part in here:
            self._update_here(part, recorder, workspace_bytes, update)
        for (wire, parts), pending in started:
            self._pipeline(wire, parts, pending, recorder, update)

    def _split(
        self, group: Group, first: int, flags: Sequence[Flag], states: Any, collecting: bool
    ) -> tuple[Any, list[Unit]]:
        """What of a group is updated where it lies, and what is dealt."""
        rule, params = get_rule(group["rule"]), group["params"]
        here: list[int] = []
        units, heads = [], group["num_heads"]
        for start in range(0, len(params), rule.width):
            slots = list(range(start, start + rule.width))
            if any(flags[first + slot] is None for slot in slots):
                continue
            for slot in slots:
                if not started(states[params[slot]]):
                    states[params[slot]].update(initial_state(params[slot], group, slot))
            blocks = self._blocks_here(params[start], group, rule, collecting)
            if blocks is None:
                units.append(self._unit(group, rule, slots, first, flags, states, collecting))
            else:
                here += slots
                heads = blocks or heads
        parts = {slot: _part(params[slot]) for slot in here}
        own = [flags[first + slot] if parts[slot].numel() else None for slot in here]
        kept = {parts[slot]: {name: local(value) for name, value in states[params[slot]].items()} for slot in here}
        for slot in here:  # a rank without values counts its steps as the others do
            if not parts[slot].numel():
                states[params[slot]]["step"] += 1
        copies = all(cut_axis(params[slot]) is None for slot in here)
        settings = {**group, "num_heads": heads, "params": [parts[slot] for slot in here]}
        return (settings, first, own, kept, copies), units

    def _blocks_here(self, param: Tensor, group: Group, rule: Rule, collecting: bool) -> int | None:
        """`num_heads` of this rank's part of a parameter that stays where it is; None: it is dealt."""
        axis = cut_axis(param)
        if self.size == 1 or not rule.spectral:
            seen = collecting and axis is not None and param.ndim > 1 and param.numel() <= LARGEST_MEASURED
            return None if seen and self.size > 1 else int(group["num_heads"])
        if rule.kind == "pair" or axis is None:
            return None
        return local_blocks(shards_of(param, self.size), self.rank, *layout(group, rule))

    def _unit(
        self, group: Group, rule: Rule, slots: list[int], first: int, flags: Sequence[Flag], states: Any, full: bool
    ) -> Unit:
        params = [group["params"][slot] for slot in slots]
        kept = [own_state(param, group, slot, states[param]) for param, slot in zip(params, slots, strict=True)]
        shards = []
        for param, state in zip(params, kept, strict=True):
            cut = {name: shards_of(value, self.size) for name, value in state.items() if name != "step"}
            shards.append({"param": shards_of(param, self.size)} | cut)
        capped = rule.spectral and (group["gradient_clip"] or group["spectral_cap"])
        decays = rule.sets_decay and group["weight_decay"]
        alive = [flag for flag in (flags[first + slot] for slot in slots) if isinstance(flag, Tensor)]
        return Unit(
            group,
            rule,
            [first + slot for slot in slots],
            [_part(param) for param in params],
            [tuple(param.shape) for param in params],
            [],
            [{name: local(value) for name, value in state.items()} for state in kept],
            shards,
            layout(group, rule),
            torch.stack(alive).amin() if alive else None,
            bool(full or capped or decays or rule.before or rule.kind != "matrix"),
        )

    def _lanes(self, units: list[Unit], workspace_bytes: int) -> list[tuple[Wire, list[list[list[Unit]]]]]:
        """Units that travel in one dtype, with their rounds."""
        lanes = []
        for dtype in (torch.float32, torch.float64):
            part = [unit for unit in units if (unit.params[0].dtype == torch.float64) == (dtype == torch.float64)]
            if part:
                deal(part, self.size)
                lanes.append((Wire(self.group, dtype, self.device), rounds(part, self.size, workspace_bytes)))
        return lanes

    def _update_here(self, part: Any, recorder: Recorder, workspace_bytes: int, update: Update) -> None:
        group, first, flags, kept, copies = part
        parts = not copies and self.size > 1
        with recorder.of_parts(parts, counted=not copies or self.rank == 0):  # one rank counts what all have
            for entries in batches(group, first, flags, kept, workspace_bytes):
                update(group, entries)
                entries.clear()

    def _pipeline(
        self, wire: Wire, parts: list[list[list[Unit]]], pending: Pending, recorder: Recorder, update: Update
    ) -> None:
        """Compute round after round, with the next one's parts and the last one's updates on their way."""
        back: tuple[Pending, list[list[Unit]]] | None = None
        for number, owned in enumerate(parts):
            tensors = assemble(wire, pending, owned[wire.rank], _outgoing)
            if number + 1 < len(parts):
                pending = gather(wire, parts[number + 1], _outgoing)
            _compute(owned[wire.rank], tensors, wire, recorder, update)
            sent = scatter(wire, owned, _returning)
            if back is not None:
                _apply(wire, *back)
            back = sent, owned
        if back is not None:
            _apply(wire, *back)


def _part(param: Tensor) -> Tensor:
    """This rank's part of a parameter with that of its gradient."""
    part = local(param).detach()
    gradient: Any = param.grad
    if is_dtensor(gradient) and gradient.placements != param.placements:  # type: ignore[attr-defined]
        gradient = gradient.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    part.grad = local(gradient)
    return part


def _outgoing(unit: Unit) -> list[list[TensorPart]]:
    """What the owner needs. The first call averages the momentum of a lean unit, and counts the step."""
    if not unit.gradients:
        _prepare(unit)
    return [_channels(unit, slot, _names_out(unit, slot)) for slot in range(len(unit.params))]


def _prepare(unit: Unit) -> None:
    """Gradients in the dtype of what moves; of a lean unit the direction, in place of the momentum that it is from."""
    group, rule = unit.group, unit.rule
    states = dict(zip(unit.params, unit.states, strict=True))
    entries = [
        make_entry(param, states, rule, position, unit.alive, group["maximize"])
        for param, position in zip(unit.params, unit.positions, strict=True)
    ]
    unit.gradients = [entry.gradient for entry in entries]
    for state in unit.states:
        state["step"] += 1
    if not unit.full:
        unit.directions = averaged(group, rule, entries, unit.gradients)


def _names_out(unit: Unit, slot: int) -> list[str]:
    kept = [name for name in unit.states[slot] if name not in OWN_KEYS]
    if unit.full:
        own = ["momentum_buffer"] if "momentum_buffer" in unit.states[slot] else []
        return ["gradient", "target", *own, *kept]
    return [*(["gradient"] if unit.rule.reads_gradient else []), "direction", *kept]


def _channels(unit: Unit, slot: int, names: Sequence[str]) -> list[TensorPart]:
    param, state, shards = unit.params[slot], unit.states[slot], unit.shards[slot]
    special = {"gradient": unit.gradients[slot], "target": state.get("master", param)}
    if not unit.full:
        special["direction"] = unit.directions[slot]
    return [
        TensorPart(name, shards.get(name, shards["param"]), special[name] if name in special else state[name])
        for name in names
    ]


def _names_back(unit: Unit, slot: int) -> list[str]:
    names = [name for name in _names_out(unit, slot) if name not in ("gradient", "direction")]
    return names if unit.full else ["update", *names]


def _returning(unit: Unit) -> list[list[TensorPart]]:
    """What the owner sends; on other ranks without values."""
    rows = []
    for slot, shards in enumerate(unit.shards):
        whole = {} if unit.updated is None else unit.updated[slot]
        nothing = unit.gradients[slot]
        rows.append([
            TensorPart(name, shards.get(name, shards["param"]), whole.get(name, nothing))
            for name in _names_back(unit, slot)
        ])  # fmt: skip
    return rows


def _compute(units: list[Unit], tensors: list[Rows], wire: Wire, recorder: Recorder, update: Update) -> None:
    """Update this rank's units of a round, those of one kind together; `Unit.updated` becomes what is sent back."""
    alike: dict[Any, list[tuple[Unit, Rows]]] = defaultdict(list)
    for unit, rows in zip(units, tensors, strict=True):
        alike[unit.kind].append((unit, rows))
    for members in alike.values():
        bound = CPU_BATCH_BYTES if wire.device.type == "cpu" else 1 << 62
        size = max(1, bound // members[0][0].wide)
        for start in range(0, len(members), size):
            batch = members[start : start + size]
            (_run_full if batch[0][0].full else _run_lean)(batch, wire, recorder, update)


def _run_lean(batch: list[tuple[Unit, Rows]], wire: Wire, recorder: Recorder, _: Update) -> None:
    group, rule = batch[0][0].group, batch[0][0].rule
    entries = []
    for unit, (row,) in batch:
        direction = row["direction"]
        state = {name: value for name, value in row.items() if name not in ("direction", "gradient")}
        state |= {"step": unit.states[0]["step"] - 1, "momentum_buffer": direction}
        alive = None if unit.alive is None else unit.alive.to(wire.device)
        entries.append(Entry(direction, direction, row.get("gradient", direction), state, unit.positions[0], alive))
    result = updates(group, _averaged_before(rule), entries)
    assert result.decay is None, f"a stage of rule {rule.name} sets Step.decay without saying so by sets_decay"
    recorder.blocks(group["role"], result.blocks, result.filtered, result.energy)
    for (unit, _rows), entry, change in zip(batch, entries, result.updates, strict=True):
        kept = {name: entry.state[name] for name in _names_back(unit, 0) if name != "update"}
        unit.updated = [{"update": change * result.factor} | kept]


@lru_cache
def _averaged_before(rule: Rule) -> Rule:
    """The rule for directions: of one with a momentum they are its buffer."""
    return rule if rule.momentum is None else replace(rule, momentum=lambda buffers, *_: buffers)


def _run_full(batch: list[tuple[Unit, Rows]], wire: Wire, recorder: Recorder, update: Update) -> None:
    entries = []
    for slot in range(batch[0][0].rule.width):  # of pairs all A, then all B
        for unit, rows in batch:
            entries.append(_full_entry(unit, slot, rows[slot], wire))
    made = list(entries)
    update(batch[0][0].group, entries)
    for number, (unit, rows) in enumerate(batch):
        mine = made[number :: len(batch)]
        unit.updated = [
            {"target": entry.target} | {name: entry.state[name] for name in row if name in entry.state}
            for entry, row in zip(mine, rows, strict=True)
        ]


def _full_entry(unit: Unit, slot: int, row: dict[str, Tensor], wire: Wire) -> Entry:
    """A whole parameter as one process has it."""
    own = unit.states[slot]
    state = {name: row[name].to(own[name].dtype) for name in own if name in row}
    state["step"] = own["step"] - 1
    target = row["target"].to(own["master"].dtype if "master" in own else unit.params[slot].dtype)
    param = target.to(unit.params[slot].dtype)  # a copy where a master moves
    alive = None if unit.alive is None else unit.alive.to(wire.device)
    return Entry(param, target, row["gradient"].to(target.dtype), state, unit.positions[slot], alive)


def _apply(wire: Wire, pending: Pending, owned: list[list[Unit]]) -> None:
    """Take what came back into this rank's parts."""
    for unit, rows in collect(wire, pending, owned, _returning):
        for slot, row in enumerate(rows):
            state, param = unit.states[slot], unit.params[slot]
            for name, value in row.items():
                if name not in ("update", "target"):
                    state[name].copy_(value)
            target = state.get("master", param)
            if unit.full:
                target.copy_(row["target"])
            elif param.numel():
                entry = Entry(param, target, unit.gradients[slot], state, unit.positions[slot], unit.alive)
                change = row["update"].to(device=target.device, dtype=target.dtype)
                apply_updates(unit.group, unit.rule, [entry], Updates([change], 1.0, None, change, change, None))
            if target is not param:
                param.copy_(target)
        unit.updated, unit.gradients, unit.directions = None, [], []
