"""One all-to-all for many tensors: parts to the rank that owns the whole, and what became of it back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlspec.optim.sharding.dealing import TensorPart, Unit

Channels = Callable[[Unit], list[list[TensorPart]]]
"""What travels of a unit, parameter by parameter."""


@dataclass
class Wire:
    """Over which ranks, and as what, tensors travel.

    Attributes:
        group: ranks that hold the parts.
        dtype: of all tensors on the way: float32, or float64 where one of the parameters is.
        device: on which the group communicates.
    """

    group: dist.ProcessGroup
    dtype: torch.dtype
    device: torch.device

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """This process's."""
        return self.group.rank()

    def empty(self, values: int) -> Tensor:
        """A buffer on the way."""
        return torch.empty(values, dtype=self.dtype, device=self.device)

    def start(self, sent: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> Pending:
        """Begin to send tensors to every rank, and to receive `counts` values from each."""
        flat = [torch.cat([part.reshape(-1).to(self.dtype) for part in parts]) for parts in sent if parts]
        outgoing = torch.cat([part.to(self.device) for part in flat]) if flat else self.empty(0)
        sizes = [sum(part.numel() for part in parts) for parts in sent]
        received = self.empty(sum(counts))
        work = dist.all_to_all_single(received, outgoing, list(counts), sizes, self.group, async_op=True)
        return Pending(work, received, outgoing, list(counts))


@dataclass
class Pending:
    """Tensors on their way; what is sent must live until they are there."""

    work: Any
    received: Tensor
    outgoing: Tensor
    counts: list[int]

    def parts(self) -> list[Tensor]:
        """What came, by the rank that it is from."""
        if self.work is not None:
            self.work.wait()
        return list(self.received.split(self.counts))


def _has(channel: TensorPart, rank: int) -> int:
    """Values of a rank's part that travel: copies do not."""
    return 0 if channel.shards.dim is None else channel.numel(rank)


def gather(wire: Wire, owned: Sequence[Sequence[Unit]], channels: Channels) -> Pending:
    """Begin to send this rank's parts to their owners. `owned`: rank -> units of the round."""
    sent = [
        [channel.part for unit in units for row in channels(unit) for channel in row if _has(channel, wire.rank)]
        for units in owned
    ]
    mine = [channel for unit in owned[wire.rank] for row in channels(unit) for channel in row]
    if not any(cut.dim is not None for units in owned for unit in units for row in unit.shards for cut in row.values()):
        return Pending(None, wire.empty(0), wire.empty(0), [0] * wire.size)  # every rank has everything
    return wire.start(sent, [sum(_has(channel, rank) for channel in mine) for rank in range(wire.size)])


def assemble(wire: Wire, pending: Pending, units: Sequence[Unit], channels: Channels) -> list[list[dict[str, Tensor]]]:
    """Whole tensors of this rank's units, parameter by parameter, from what came."""
    parts = [_Reader(part) for part in pending.parts()]
    rows = [channels(unit) for unit in units]
    return [[{channel.name: _whole(channel, parts, wire) for channel in row} for row in each] for each in rows]


class _Reader:
    """Takes tensors off a flat one, in order."""

    def __init__(self, flat: Tensor) -> None:
        self._flat, self._at = flat, 0

    def take(self, shape: Sequence[int]) -> Tensor:
        values = torch.Size(shape).numel()
        self._at += values
        return self._flat[self._at - values : self._at].view(tuple(shape))


def _whole(channel: TensorPart, parts: Sequence[_Reader], wire: Wire) -> Tensor:
    if channel.shards.dim is None:
        return channel.part.to(device=wire.device, dtype=wire.dtype, copy=True)
    pieces = [part.take(channel.shards.part_shape(rank)) for rank, part in enumerate(parts)]
    return torch.cat(pieces, channel.shards.dim)


def scatter(wire: Wire, owned: Sequence[Sequence[Unit]], channels: Channels) -> Pending:
    """Begin to send what became of this rank's units, `TensorPart.part` being whole there, and to receive of others."""
    mine = [channel for unit in owned[wire.rank] for row in channels(unit) for channel in row]
    sent = [
        [channel.shards.part(channel.part, rank) for channel in mine if _gets(channel, rank, wire.rank)]
        for rank in range(wire.size)
    ]
    counts = [
        sum(_gets(channel, wire.rank, owner) for unit in units for row in channels(unit) for channel in row)
        for owner, units in enumerate(owned)
    ]
    return wire.start(sent, counts)


def _gets(channel: TensorPart, rank: int, owner: int) -> int:
    """Values that a rank gets from the owner, which has its own copy of what is not cut."""
    return 0 if channel.shards.dim is None and rank == owner else channel.numel(rank)


def collect(wire: Wire, pending: Pending, owned: Sequence[Sequence[Unit]], channels: Channels) -> list[Any]:
    """(unit, parameter by parameter name -> this rank's part), of all units of the round."""
    result = []
    for owner, (units, flat) in enumerate(zip(owned, pending.parts(), strict=True)):
        reader = _Reader(flat)
        for unit in units:
            rows = []
            for row in channels(unit):
                found = {}
                for channel in row:
                    own = channel.shards.dim is None and owner == wire.rank
                    found[channel.name] = channel.part if own else reader.take(channel.shards.part_shape(wire.rank))
                rows.append(found)
            result.append((unit, rows))
    return result
