"""Matrices dealt to ranks by cost, and cut into rounds of a bounded size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlspec.optim.composition import Rule
from rlspec.optim.kernels.layout import block_shape
from rlspec.optim.sharding.shards import Shards

BUCKETS = 4
"""Rounds that a step should have at least, so that one travels while another is computed."""
LEAST_BUCKET = 1 << 23
"""Bytes below which a round is not cut further: short messages cost as much as longer ones."""


@dataclass
class TensorPart:
    """One tensor of a parameter that travels: all ranks know its shape and cut, each has a part."""

    name: str
    shards: Shards
    part: Tensor

    def numel(self, rank: int) -> int:
        """Values of a rank's part."""
        return math.prod(self.shards.part_shape(rank))


@dataclass
class Unit:
    """What moves together, a matrix or a LoRA pair, and is updated on one rank.

    Attributes:
        group: parameter group, with the settings.
        rule: of the group.
        positions: of its parameters among all of the optimizer.
        params: this rank's parts.
        shapes: of the whole parameters.
        gradients: this rank's parts.
        states: this rank's parts.
        shards: name of a state tensor -> its cut, per parameter; "param" is the parameter's own.
        cut: how whole parameters are cut into blocks, see `engine.updates.layout`.
        alive: scalar 1.0, or 0.0 where nothing may change; None: known to be finite.
        full: whether everything travels, and not the direction alone.
        owner: rank that updates it.
        directions: this rank's parts after the momentum, of a unit that is not full.
        updated: what the owner sends back, parameter by parameter; None on all other ranks.
    """

    group: dict[str, Any]
    rule: Rule
    positions: list[int]
    params: list[Tensor]
    shapes: list[tuple[int, ...]]
    gradients: list[Tensor]
    states: list[dict[str, Tensor]]
    shards: list[dict[str, Shards]]
    cut: tuple[int, int, bool, bool, int]
    alive: Tensor | None
    full: bool
    owner: int = 0
    directions: list[Tensor] = field(default_factory=list, repr=False)
    updated: list[dict[str, Tensor]] | None = field(default=None, repr=False)

    @property
    def cost(self) -> float:
        """Multiplications of a product with a square of the short side, per block."""
        total = 0.0
        for shape in self.shapes:
            blocks, rows, cols = block_shape(shape, *self.cut) if len(shape) > 1 else (1, 1, 1)
            total += blocks * float(min(rows, cols)) ** 2 * max(rows, cols) + math.prod(shape)
        return total

    @property
    def wide(self) -> int:
        """Float32 bytes of its parameters."""
        return 4 * sum(math.prod(shape) for shape in self.shapes)

    @property
    def kind(self) -> Any:
        """What units must share to be updated in one batch."""
        step = None if self.rule.kernel is not None else int(self.states[0]["step"])
        return id(self.group), *self.shapes, self.params[0].dtype, self.alive is None, step, self.full


def deal(units: Sequence[Unit], ranks: int) -> list[float]:
    """Give every unit an owner, dearest first, each to the rank with the least to do; the loads of all ranks."""
    loads = [0.0] * ranks
    for unit in sorted(units, key=lambda unit: (-unit.cost, unit.positions)):
        unit.owner = loads.index(min(loads))
        loads[unit.owner] += unit.cost
    return loads


def rounds(units: Sequence[Unit], ranks: int, workspace_bytes: int) -> list[list[list[Unit]]]:
    """Round -> rank -> the units that it updates; those of one kind are neighbours, so that they make a batch.

    No rank gathers more than half of the workspace in a round, one unit at least: two rounds are in memory at a time.
    """
    queues: list[list[Unit]] = [[] for _ in range(ranks)]
    order = {kind: number for number, kind in enumerate(dict.fromkeys(unit.kind for unit in units))}
    for unit in sorted(units, key=lambda unit: (order[unit.kind], unit.positions)):
        queues[unit.owner].append(unit)
    heaviest = max(sum(unit.wide for unit in queue) for queue in queues)
    bound = min(workspace_bytes // 2, max(heaviest // BUCKETS, LEAST_BUCKET))
    cut = [list(_within(queue, bound)) for queue in queues]
    count = max(len(parts) for parts in cut)
    return [[parts[number] if number < len(parts) else [] for parts in cut] for number in range(count)]


def _within(queue: Sequence[Unit], bound: int) -> list[list[Unit]]:
    parts: list[list[Unit]] = []
    room = 0
    for unit in queue:
        if not parts or unit.wide > room:
            parts.append([])
            room = bound
        parts[-1].append(unit)
        room -= unit.wide
    return parts
