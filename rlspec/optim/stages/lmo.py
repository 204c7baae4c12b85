"""Scion: the step to the far side of a norm ball, by the layer's own norm (arXiv 2502.07529).

    W <- (1 - lr weight_decay) W - lr radius lmo(M)

| rule | for | norm | lmo(M) |
|---|---|---|---|
| scion | hidden matrices | RMS -> RMS | sqrt(rows / cols) times the polar factor |
| scion_sign | embeddings and heads, tied ones too | 1 -> infinity | signs / cols |
| scion_row | heads | RMS -> infinity | rows of norm 1 / sqrt(cols) |
| | embeddings, `scion_tokens=True` | 1 -> RMS | rows of root mean square 1 |

`weight_decay=1` is the constrained variant, a Frank-Wolfe step: weights that start inside the ball of `scion_radius`
stay inside. Without decay it is the unconstrained one. Published for nanoGPT: constrained, radius 50 for hidden
matrices and 3000 for the tied head, which are the defaults here, momentum 0.9, lr 2^-12. The radius is the length of
the step: leave adjust_lr at match_rms_adamw, which does not change it.
"""

from __future__ import annotations

import math

from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Step, stage
from rlspec.optim.stages.bases import unit


def _check(*, scion_radius: float, **_: object) -> None:
    if not scion_radius > 0:
        raise ConfigError(f"scion_radius={scion_radius!r}: must be positive")


@stage(check=_check)
def spectral_ball(blocks: Tensor, step: Step, *, scion_radius: float = 50.0) -> Tensor:
    """Of a polar factor: times `scion_radius sqrt(rows / cols)`, so that its norm from RMS to RMS is the radius."""
    return blocks * (scion_radius * math.sqrt(blocks.shape[1] / max(1, blocks.shape[2])))


@stage(check=_check)
def sign_ball(blocks: Tensor, step: Step, *, scion_radius: float = 3000.0) -> Tensor:
    """Signs, each `scion_radius / cols`."""
    return blocks.sign() * (scion_radius / max(1, blocks.shape[2]))


@stage(check=_check)
def row_ball(blocks: Tensor, step: Step, *, scion_radius: float = 3000.0, scion_tokens: bool = False) -> Tensor:
    """Rows of norm `scion_radius / sqrt(cols)`, or, of embeddings, of that root mean square; rows of zeros stay."""
    cols = max(1, blocks.shape[2])
    return unit(blocks, 2) * (scion_radius * math.sqrt(cols if scion_tokens else 1 / cols))
