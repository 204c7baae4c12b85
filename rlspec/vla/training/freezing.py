"""Parameters that are not trained, or only from some step on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from rlspec.config.vla_schema import Freeze
from rlspec.errors import ConfigError
from rlspec.optim.map.spec import SymmetryMap


@dataclass(frozen=True)
class FreezeSchedule:
    """Which parameters stand still for how long, by name."""

    never: frozenset[str]  # are not trained at all
    until: dict[str, int]  # are trained from that optimizer step (from 1) on

    def frozen_at(self, step: int) -> set[str]:
        """Names that do not move in that step."""
        return set(self.never) | {name for name, start in self.until.items() if step < start}

    def changes_at(self, step: int) -> bool:
        """Whether some parameter is trained in that step for the first time."""
        return step in self.until.values()

    def apply(self, model: nn.Module, step: int) -> None:
        """Let exactly those parameters of the schedule have gradients that are trained in that step."""
        frozen = self.frozen_at(step)
        for name, parameter in model.named_parameters():
            if name in self.never or name in self.until:
                parameter.requires_grad_(name not in frozen)
                if name in frozen:
                    parameter.grad = None


def plan_freezing(entries: Sequence[Freeze], mapping: SymmetryMap) -> FreezeSchedule:
    """Resolve the recipe's entries; where several name a parameter, the last one counts.

    Args:
        entries: `policy.freeze`.
        mapping: of the whole policy, with everything trainable that its own config does not freeze.

    Raises:
        ConfigError: An entry names nothing, or nothing is left to train.
    """
    start: dict[str, int | None] = {}
    for index, entry in enumerate(entries):
        names = _named(entry, mapping)
        if not names:
            raise ConfigError(_explain(index, entry, mapping))
        start |= dict.fromkeys(names, entry.until)
    never = frozenset(name for name, step in start.items() if step is None)
    if len(never) == len(mapping):
        raise ConfigError("policy.freeze: nothing is left to train; drop an entry, or give it until=STEP")
    return FreezeSchedule(never, {name: step for name, step in start.items() if step is not None and step > 1})


def _named(entry: Freeze, mapping: SymmetryMap) -> list[str]:
    if entry.part is not None:
        return [spec.name for spec in mapping if spec.modality == entry.part]
    pattern = re.compile(entry.pattern or "")
    return [spec.name for spec in mapping if pattern.search(spec.name)]


def _explain(index: int, entry: Freeze, mapping: SymmetryMap) -> str:
    if entry.part is not None:
        parts = sorted({spec.modality for spec in mapping} - {""})
        known = f"its parts are {', '.join(parts)}" if parts else "it has no known parts: use pattern"
        return f"policy.freeze.{index}.part={entry.part}: the policy has no trainable parameter there; {known}"
    examples = ", ".join([spec.name for spec in mapping][:3])
    return f"policy.freeze.{index}.pattern={entry.pattern}: no trainable parameter matches, such as {examples}"
