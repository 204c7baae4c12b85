"""What all ranks must see alike around a step: which gradients are there and finite, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

ADDED = ("update", "change", "weight", "values", "blocks", "energy", "gated", "stable_rank")
PEAKS = ("rms_to_inf", "spectral")
"""Sums of a step's telemetry, and its maxima."""


@dataclass
class Presence:
    """Of every parameter, on any rank: whether its gradient is missing, present, or known not to be finite.

    And whether any of them is known not to be 0.
    """

    missing: list[bool]
    present: list[bool]
    bad: list[bool]
    moving: bool


def host_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group of the same ranks for tensors of the host, so that no agreement waits for a device.

    All ranks of the group must call it.
    """
    if "cpu:" in str(dist.get_backend_config(group)):
        return group
    return dist.new_group(dist.get_process_group_ranks(group), backend="gloo", use_local_synchronization=True)


class RankAgreement:
    """Small collectives over the ranks that share parameters.

    Args:
        groups: over all of which something must be alike; the first holds the parts of the parameters.
    """

    def __init__(self, groups: Sequence[dist.ProcessGroup]) -> None:
        self.groups = list(groups)
        self.hosts = [host_group(group) for group in groups]

    def presence(self, missing: Sequence[bool], bad: Sequence[bool], moving: bool) -> Presence:
        """Three flags of every parameter and one of all, over all ranks."""
        rows = [missing, [not each for each in missing], bad]
        flags = torch.tensor([flag for row in rows for flag in row] + [moving], dtype=torch.uint8)
        for group in self.hosts:
            dist.all_reduce(flags, dist.ReduceOp.MAX, group)
        missing_there, present, bad_there = flags[:-1].view(3, -1).bool().tolist()
        return Presence(missing_there, present, bad_there, bool(flags[-1]))

    def alive(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Scalars of a device: 0.0 where any rank has 0.0. Waits for nothing."""
        if not masks:
            return []
        stacked = torch.stack(list(masks))
        for group in self._groups_of(stacked):
            dist.all_reduce(stacked, dist.ReduceOp.MIN, group)
        return list(stacked.unbind())

    def least(self, counts: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Role -> least count of any rank, on a device."""
        if not counts:
            return counts
        stacked = torch.stack([count.to(device) for count in counts.values()])
        group = self._groups_of(stacked)[0]
        dist.all_reduce(stacked, dist.ReduceOp.MIN, group)
        return dict(zip(counts, stacked.unbind(), strict=True))

    def totals(self, sums: dict[str, dict[str, float]], roles: Sequence[str]) -> dict[str, dict[str, float]]:
        """Telemetry of all parts: added up, or the largest. Roles of which no rank has anything are left out."""
        added = torch.tensor([[sums.get(role, {}).get(key, 0.0) for key in ADDED] for role in roles]).double()
        peaks = torch.tensor([[sums.get(role, {}).get(key, -1.0) for key in PEAKS] for role in roles]).double()
        dist.all_reduce(added, dist.ReduceOp.SUM, self.hosts[0])
        dist.all_reduce(peaks, dist.ReduceOp.MAX, self.hosts[0])
        result: dict[str, dict[str, float]] = {}
        for role, values, tops in zip(roles, added.tolist(), peaks.tolist(), strict=True):
            if any(values):
                result[role] = dict(zip(ADDED, values, strict=True))
                result[role] |= {key: top for key, top in zip(PEAKS, tops, strict=True) if top >= 0}
        return result

    def _groups_of(self, tensor: Tensor) -> list[dist.ProcessGroup]:
        return self.hosts if tensor.device.type == "cpu" else self.groups
