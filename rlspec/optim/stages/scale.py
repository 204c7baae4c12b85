"""How long a step is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

from torch import Tensor

from rlspec.errors import ConfigError, nearest
from rlspec.optim.composition import Length
from rlspec.optim.settings import AdjustLr

MATCHED = ("match_rms_adamw", "match_spectral_adamw")
"""Modes in which one learning rate of AdamW's serves every rule."""
ADJUST_LR: tuple[str, ...] = get_args(AdjustLr)
SIZED: Mapping[Length, float] = {"unit": 0.2, "own": 1.0, "gradient": 1.0}
"""Lengths that do not depend on directions -> the factor that matches them to AdamW's, as far as one can."""


def check_whole(name: str, value: int, least: int = 1) -> None:
    """Raises ConfigError unless an option is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r}: must be an integer of at least {least}")


def step_scale(
    mode: str,
    rows: int,
    cols: int,
    *,
    energy: Tensor | None = None,
    top: Tensor | None = None,
    paper_scale: float = 5.0,
    length: Length = "full_rank",
) -> tuple[float, Tensor | None]:
    """How long a block's step is, as a factor and, where it depends on the block, a tensor of factors.

    - `match_rms_adamw`: the update of a block has root mean square 0.2, AdamW's usual one, when at least one direction
      passes: 0.2 sqrt(rows cols / max(energy, 1)). Under a full polar factor energy = min(rows, cols), which is
      Moonlight's 0.2 sqrt(max(rows, cols)) (arXiv 2502.16982); under Pion with one passing direction it is
      s sqrt(max(rows, cols)) with s = 0.2 sqrt(min(rows, cols)): that direction moves sqrt(min(rows, cols)) times as
      far as Muon moves any, 11 times in a head of 128 x 2048 and 30 times in a matrix of 896 x 896. A gate that is
      nearly shut is not amplified.
    - `match_spectral_adamw`: no direction moves further than under Muon with AdamW's root mean square, 0.2
      sqrt(max(rows, cols)), over the largest singular value where that is above 1. The one direction of Pion moves as
      far as Muon's, so that the root mean square is 0.2 / sqrt(min(rows, cols)): 0.018 and 0.007 in these examples.
      For Muon both are the same.
      In both, entries of size 1 (`length` "unit") become 0.2; an update that has AdamW's size by itself ("own"), or
      the gradient's ("gradient"), keeps it.
    - `original`: sqrt(max(1, rows / cols)), Keller Jordan's.
    - `spectral`: sqrt(rows / cols), so that ||update||_{RMS -> RMS} is 1.
    - `paper`: paper_scale sqrt(max(rows, cols)), Pion's own; its RLVR runs use 5.0 for Muon and Pion alike, those of
      VLA-Adapter 0.2, which is `match_spectral_adamw` for both.
    - `none`: 1.

    Args:
        mode: one of `ADJUST_LR`.
        rows: rows of a block (not of the parameter, when heads are split).
        cols: columns of a block.
        energy: measured pass energy (batch,); None counts every direction as passing, min(rows, cols).
        top: measured largest singular value (batch,); None: 1.
        paper_scale: s of `paper`.
        length: of the rule, see `rlspec.optim.composition.Rule`.

    Returns:
        (factor, factors per block (batch,) or None); the step of a block is the product.

    Raises:
        ConfigError: on an unknown mode.
    """
    if mode in MATCHED:
        if length in SIZED:
            return SIZED[length], None
        if mode == "match_spectral_adamw":
            return 0.2 * math.sqrt(max(rows, cols)), None if top is None else top.clamp(min=1.0).reciprocal()
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
