"""The table of update rules: every optimizer is one composition of pure functions.

    update = scale . merge . variance . filter . normalise . split . momentum (gradient)

A new rule is a new line in `RULES`, and perhaps one new filter or variance. The split is the symmetry map's choice and
the normaliser a setting of the parameter group, so that both combine with every rule.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.filters import Filter, high_pass, polar
from rlspec.optim.newton_schulz import keller, polar_express

Settings = Mapping[str, Any]
"""The hyperparameters of one parameter group."""

ADJUST_LR = ("match_rms_adamw", "original", "spectral", "paper", "none")


@dataclass(frozen=True)
class Variance:
    """A second moment that adapts the size of filtered blocks.

    Attributes:
        state_shape: (rows, cols) -> shape of one block's state, which starts at zero.
        apply: (filtered (batch, rows, cols), state (batch, *state_shape) updated in place, settings) -> rescaled.
    """

    state_shape: Callable[[int, int], tuple[int, ...]]
    apply: Callable[[Tensor, Tensor, Settings], Tensor]


@dataclass(frozen=True)
class Rule:
    """One composition.

    Attributes:
        name: the word a user writes.
        source: where the formulas come from.
        filter: builds the filter from the settings named in `options`; None makes the rule elementwise (AdamW).
        options: settings that `filter` takes as keyword arguments.
        momentum: (buffers updated in place, gradients, momentum, nesterov) -> directions.
        energy: what `match_rms_adamw` takes as the number of passing directions, see `step_scale`.
        variance: an optional second moment.
    """

    name: str
    source: str
    filter: Callable[..., Filter] | None = None
    options: tuple[str, ...] = ()
    momentum: Callable[[list[Tensor], list[Tensor], float, bool], list[Tensor]] | None = None
    energy: Literal["full_rank", "measured"] = "full_rank"
    variance: Variance | None = None

    @property
    def spectral(self) -> bool:
        """Whether the rule acts on matrices; otherwise it is elementwise."""
        return self.filter is not None

    def build_filter(self, settings: Settings) -> Filter:
        """The filter under the settings of a parameter group."""
        assert self.filter is not None
        return self.filter(**{option: settings[option] for option in self.options})

    def state_bytes(self, blocks: int, rows: int, cols: int) -> int:
        """Bytes of float32 optimizer state for a parameter of that many blocks."""
        values = blocks * rows * cols * (1 if self.spectral else 2)
        if self.variance is not None:
            values += blocks * math.prod(self.variance.state_shape(rows, cols))
        return 4 * values


def ema(buffers: list[Tensor], gradients: list[Tensor], momentum: float, nesterov: bool) -> list[Tensor]:
    """Exponential moving average, with torch.optim.Muon's Nesterov form; gradients are never mutated."""
    torch._foreach_lerp_(buffers, gradients, 1 - momentum)
    return list(torch._foreach_lerp(gradients, buffers, momentum)) if nesterov else buffers


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("adamw", "arXiv 1711.05101, torch.optim.AdamW"),
        Rule(
            "muon",
            "https://kellerjordan.github.io/posts/muon/, torch.optim.Muon",
            filter=lambda ns_steps: polar(keller(ns_steps)),
            options=("ns_steps",),
            momentum=ema,
        ),
        Rule(
            "muon_polar_express",
            "arXiv 2505.16932",
            filter=lambda ns_steps: polar(polar_express(ns_steps)),
            options=("ns_steps",),
            momentum=ema,
        ),
        Rule(
            "pion",
            "arXiv 2605.19282",
            filter=high_pass,
            options=("promotion_steps", "ns_steps"),
            momentum=ema,
            energy="measured",
        ),
    )
}
"""Name -> composition."""


def get_rule(name: str) -> Rule:
    """Look a rule up.

    Raises:
        ConfigError: naming the nearest rules.
    """
    if name in RULES:
        return RULES[name]
    raise ConfigError(f"unknown optimizer rule {name!r}; {nearest(name, RULES)}")


def nearest(name: str, allowed: Mapping[str, Any] | list[str] | tuple[str, ...]) -> str:
    """A hint for a misspelt word: the nearest names, then all of them."""
    close = difflib.get_close_matches(str(name), list(allowed), n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def step_scale(
    mode: str, rows: int, cols: int, *, energy: Tensor | None = None, paper_scale: float = 5.0
) -> tuple[float, Tensor | None]:
    """How long a block's step is, as a factor and, where it depends on the block, a tensor of factors.

    - `match_rms_adamw`: the update of a block has root mean square 0.2, AdamW's usual one, when at least one direction
      passes: 0.2 sqrt(rows cols / max(energy, 1)). Under a full polar factor energy = min(rows, cols), which is
      Moonlight's 0.2 sqrt(max(rows, cols)) (arXiv 2502.16982); under Pion with one passing direction it is
      s sqrt(max(rows, cols)) with s = 0.2 sqrt(min(rows, cols)). A gate that is nearly shut is not amplified.
    - `original`: sqrt(max(1, rows / cols)), Keller Jordan's.
    - `spectral`: sqrt(rows / cols), so that ||update||_{RMS -> RMS} is 1.
    - `paper`: paper_scale sqrt(max(rows, cols)), Pion's own; its RLVR runs use 5.0 for Muon and Pion alike.
    - `none`: 1.

    Args:
        mode: one of `ADJUST_LR`.
        rows: rows of a block (not of the parameter, when heads are split).
        cols: columns of a block.
        energy: measured pass energy (batch,); None counts every direction as passing, min(rows, cols).
        paper_scale: s of `paper`.

    Returns:
        (factor, factors per block (batch,) or None); the step of a block is the product.

    Raises:
        ConfigError: on an unknown mode.
    """
    if mode == "match_rms_adamw":
        if energy is None:
            return 0.2 * math.sqrt(max(rows, cols)), None
        return 0.2 * math.sqrt(rows * cols), energy.clamp(min=1.0).rsqrt()
    if mode == "original":
        return math.sqrt(max(1, rows / cols)), None
    if mode == "spectral":
        return math.sqrt(rows / cols), None
    if mode == "paper":
        return paper_scale * math.sqrt(max(rows, cols)), None
    if mode == "none":
        return 1.0, None
    raise ConfigError(f"adjust_lr={mode!r}; {nearest(mode, ADJUST_LR)}")
