"""Which parameters a step updates: those with a usable gradient, and none where all gradients are 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlspec.optim.engine.finite import Flag, any_nonzero, finite_on_device, finite_on_host

if TYPE_CHECKING:
    from rlspec.optim.engine.shared import Distribution


@dataclass
class Usable:
    """Of all parameters, by position; alike on all processes.

    Attributes:
        flags: whether each is updated.
        bad: those with NaN or Inf, as far as the host knows.
        masked: those whose flag is a device's scalar.
        finite: of each of these, 1.0 or 0.0.
        zero: whether all gradients are 0, so that no parameter is updated; a device's scalar where only it knows.
    """

    flags: list[Flag]
    bad: set[int] = field(default_factory=set)
    masked: list[int] = field(default_factory=list)
    finite: list[Tensor] = field(default_factory=list)
    zero: Tensor | bool = False


@dataclass(frozen=True)
class Looks:
    """What is looked for, see `rlspec.optim.settings.Running`.

    Attributes:
        check_finite: NaN and Inf.
        skip_zero: steps without any gradient but 0.
        defers: whether asking for a value of a parameter's gradient would make the host wait.
    """

    check_finite: bool
    skip_zero: bool
    defers: Callable[[Tensor], bool]

    def judge(
        self, count: int, gradients: Mapping[int, Tensor], shared: Distribution | None, names: Callable[[], list[str]]
    ) -> Usable:
        """Collective where parameters are shared.

        Args:
            count: of parameters.
            gradients: this process's parts, by position of the parameter.
            shared: how parameters lie across processes; None: all here.
            names: of all parameters.
        """
        found = Usable([True if position in gradients else None for position in range(count)])
        looks = self.check_finite or self.skip_zero
        found.masked = [k for k, gradient in gradients.items() if looks and self.defers(gradient)]
        known = {k: g for k, g in gradients.items() if looks and k not in set(found.masked) and not g.is_meta}
        if self.check_finite:
            finite = finite_on_host(list(known.values()))
            found.bad = {position for position, good in zip(known, finite, strict=True) if not good}
        masks, peaks = finite_on_device([gradients[position] for position in found.masked])
        moving = not self.skip_zero or _moving(list(known.values()), peaks)
        if shared is not None:
            present, found.bad, moving = shared.presence(set(gradients), found.bad, moving, names())
            found.flags = [True if position in present else None for position in range(count)]
            kept = [number for number, position in enumerate(found.masked) if position in present]
            found.masked, masks = [found.masked[k] for k in kept], [masks[k] for k in kept]
        for position in found.bad:
            found.flags[position] = None
        if not moving and not found.masked:
            found.zero = any(flag is not None for flag in found.flags)
            found.flags = [None] * count if found.zero else found.flags
            return found
        return self._mask(found, masks, peaks, moving, shared)

    def _mask(
        self, found: Usable, masks: list[Tensor], peaks: list[Tensor], moving: bool, shared: Distribution | None
    ) -> Usable:
        """Flags that only a device knows."""
        if not self.check_finite:
            masks = [torch.ones_like(mask) for mask in masks]
        still = [] if moving else [_largest(peaks).eq(0).to(torch.float32)]
        agreed = masks + still if shared is None else shared.agreement.alive(masks + still)
        found.finite = agreed[: len(masks)]
        moves = None
        if still:
            found.zero = agreed[-1]
            moves = 1.0 - agreed[-1]
        for position, mask in zip(found.masked, found.finite, strict=True):
            found.flags[position] = mask if moves is None else mask * moves.to(mask.device)
        return found


def _moving(known: Sequence[Tensor], peaks: Sequence[Tensor]) -> bool:
    """Whether a gradient is not 0; False where a device has to say, for which only gradients of a host wait."""
    return any_nonzero(known) or bool(known and peaks and _largest(peaks).ne(0))


def _largest(peaks: Sequence[Tensor]) -> Tensor:
    return torch.stack([peak.to(peaks[0].device) for peak in peaks]).amax()
