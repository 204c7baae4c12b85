"""Which learning rate does the same: from one rule or length of step to another, across widths and batch sizes.

Two measures of an update U are kept equal. Its root mean square, `||U||_F / sqrt(rows cols)`, says how far weights
move: keep it to reuse a learning rate of AdamW at a fixed width (Moonlight, arXiv 2502.16982). Its operator norm from
RMS to RMS, `||U||_2 sqrt(cols / rows)`, says how far features move: keep it across widths (the spectral condition,
arXiv 2310.17813). Shapes are (rows, cols) = (out, in) of a block, heads split.
"""

from __future__ import annotations

import math

import torch

from rlspec.errors import ConfigError
from rlspec.optim.rules import get_rule
from rlspec.optim.stages.scale import MATCHED, step_scale

ADAMW_RMS = 0.2
"""Usual root mean square of AdamW's updates over lr, as Moonlight measured it; early in training it is nearer to 1."""

UNIT_VECTORS = {"row_norm": 0, "centered_row_norm": 0, "polar_then_row": 0, "column_norm": 1}
"""Rules that bring vectors to norm 1 instead of singular values -> the axis that counts them."""
NOT_MATCHED = {
    "scion": "as long as scion_radius says",
    "scion_sign": "as long as scion_radius says",
    "scion_row": "as long as scion_radius says",
}
"""Rules whose updates are no fixed multiple of AdamW's."""
OF_A_RANK = ("trion", "dion", "low_rank_muon")
"""Rules in which as many directions pass as their rank option says."""

Shape = tuple[int, int]


def update_rms(
    rule: str, shape: Shape, adjust_lr: str, *, energy: float | None = None, paper_scale: float = 5.0
) -> float:
    """Root mean square of an update, over lr.

    Args:
        rule: name in `RULES`. AdamW, and rules whose length is AdamW's own, have `ADAMW_RMS`. Of the one-sided polar
            factors: with nuclear_exponent=0, unless adjust_lr matches them.
        shape: of a block.
        adjust_lr: one of `ADJUST_LR`; AdamW has none.
        energy: directions that pass, as telemetry reports them; None: all. Needed where a gate shuts most of them
            (pion) and adjust_lr does not divide by it; rank / 2 for LoRA pairs.
        paper_scale: s of adjust_lr "paper".

    Raises:
        ConfigError: on an unknown rule or adjust_lr, on rules as long as the gradient (`auon`, `sgd`), on those of
            `NOT_MATCHED`, on a rule with a rank if its energy is needed and not given, and under match_spectral_adamw
            on rules whose singular values have to be measured.
    """
    entry = get_rule(rule)
    if entry.length == "gradient":
        raise ConfigError(
            f"rule {rule}: its updates are as long as the gradient is, so no learning rate can be matched"
        )
    if entry.length == "unit":
        return ADAMW_RMS if adjust_lr in MATCHED else 1.0
    if not entry.spectral:
        return ADAMW_RMS
    if rule in NOT_MATCHED:
        raise ConfigError(f"rule {rule}: its updates are {NOT_MATCHED[rule]}, so no learning rate can be matched")
    if adjust_lr == "match_spectral_adamw" and entry.length == "measured" and not entry.bounded:
        raise ConfigError(
            f"rule {rule}: under adjust_lr={adjust_lr!r} its length goes by each update's singular values"
        )
    if energy is None and rule in OF_A_RANK and adjust_lr != "match_rms_adamw":
        raise ConfigError(f"rule {rule}: under adjust_lr={adjust_lr!r} its length goes by its rank; give it as energy")
    rows, cols = shape
    most = shape[UNIT_VECTORS[rule]] if rule in UNIT_VECTORS else min(shape)
    passed = float(most if energy is None else energy)
    scale = _length(rule, shape, adjust_lr, passed, paper_scale)
    return scale * (ADAMW_RMS if entry.length == "own" else math.sqrt(passed / (rows * cols)))


def equivalent_lr(
    lr: float,
    rule: str,
    shape: Shape,
    from_mode: str,
    to_mode: str,
    *,
    energy: float | None = None,
    paper_scale: float = 5.0,
) -> float:
    """The learning rate under `to_mode` that moves weights as far as `lr` does under `from_mode` (RMS matching).

    Args:
        lr: known to be good.
        rule: name in `RULES` of the rule that is to be run.
        shape: of a block.
        from_mode: where lr comes from: one of `ADJUST_LR`, for the same rule, or "adamw", for AdamW.
        to_mode: likewise.
        energy: see `update_rms`.
        paper_scale: s of adjust_lr "paper".

    Raises:
        ConfigError: on an unknown rule or mode.
    """

    def rms(mode: str) -> float:
        if mode == "adamw":
            return ADAMW_RMS
        return update_rms(rule, shape, mode, energy=energy, paper_scale=paper_scale)

    return lr * rms(from_mode) / rms(to_mode)


def operator_norm(rule: str, shape: Shape, adjust_lr: str, *, energy: float = 1.0, paper_scale: float = 5.0) -> float:
    """RMS-to-RMS operator norm of an update in which at least one direction passes, over lr.

    AdamW's, and signum's, is that of an update whose signs are aligned with the features, `ADAMW_RMS cols`: the most
    that it can be, and in order of magnitude what it is, because gradients of one layer have few directions (Tensor
    Programs V).

    Args:
        rule: name in `RULES`, of a filter that sends singular values to 1.
        shape: of a block.
        adjust_lr: one of `ADJUST_LR`.
        energy: directions that pass; it matters for rules with a measured length (pion) under match_rms_adamw.
        paper_scale: s of adjust_lr "paper".

    Raises:
        ConfigError: on an unknown rule or adjust_lr, and on rules whose norm is not known: those with AdamW's own
            length, and row and column norms.
    """
    entry = get_rule(rule)
    rows, cols = shape
    if entry.length == "unit" or not entry.spectral and entry.length == "own":
        return update_rms(rule, shape, adjust_lr) * cols
    if entry.length in ("own", "gradient") or rule in UNIT_VECTORS:
        raise ConfigError(f"rule {rule}: the operator norm of its updates is not known; use a rule with a filter")
    return _length(rule, shape, adjust_lr, energy, paper_scale) * math.sqrt(cols / rows)


def transfer_lr(
    lr: float,
    base_shape: Shape,
    shape: Shape,
    adjust_lr: str,
    *,
    rule: str = "muon",
    energy: float = 1.0,
) -> float:
    """The learning rate at `shape` that moves features as far as `lr` does at `base_shape` (spectral condition).

    Under `spectral` it is the same. Under `match_rms_adamw` a square layer of width d has norm 0.2 sqrt(d), so the
    learning rate goes as 1 / sqrt(d); for AdamW (rule "adamw") as 1 / cols, which is muP's.

    Raises:
        ConfigError: see `operator_norm`.
    """
    before = operator_norm(rule, base_shape, adjust_lr, energy=energy)
    return lr * before / operator_norm(rule, shape, adjust_lr, energy=energy)


def transfer_weight_decay(weight_decay: float, lr: float, new_lr: float) -> float:
    """Keep `lr weight_decay`, and with it the number of steps after which a weight is forgotten.

    For rules that bound an update's spectral norm this also keeps the bound that decay puts on the weights: steps of
    norm `lr n` and decay by `lr weight_decay` cannot leave `||W|| <= n / weight_decay` (arXiv 2503.12645), and
    `transfer_lr` keeps `lr n`.

    Raises:
        ConfigError: unless new_lr is positive.
    """
    if not new_lr > 0:
        raise ConfigError(f"new_lr={new_lr}: must be positive")
    return weight_decay * lr / new_lr


def adamw_weight_decay(weight_decay: float, base_width: int, width: int) -> float:
    """AdamW's decay of matrices across widths: as sqrt(width), with lr as 1 / width; vectors have none.

    The steady state's largest singular value goes as `sqrt(lr / weight_decay) width^0.75`, an observation of "Robust
    Layerwise Scaling Rules by Proper Weight Decay Tuning" (arXiv 2510.15262): this is what keeps it constant.

    Raises:
        ConfigError: unless both widths are positive.
    """
    return weight_decay * math.sqrt(_ratio("width", base_width, width))


def batch_lr(lr: float, base_batch: int, batch: int, *, exponent: float = 0.5) -> float:
    """A starting point at another batch size: lr goes as batch^exponent.

    1/2 where the length of an update does not depend on that of the gradient (Adam, and by the same argument Muon and
    its kin: arXiv 2205.10287); 1 for plain SGD. Not a law: it ends where gradients are no longer noise.

    Raises:
        ConfigError: unless both batch sizes are positive.
    """
    return lr * _ratio("batch", base_batch, batch) ** exponent


def _ratio(name: str, base: int, new: int) -> float:
    if base <= 0 or new <= 0:
        raise ConfigError(f"base_{name}={base}, {name}={new}: must be positive")
    return new / base


def _length(rule: str, shape: Shape, adjust_lr: str, energy: float, paper_scale: float) -> float:
    if min(shape) <= 0:
        raise ConfigError(f"shape={shape}: rows and columns must be positive")
    length = get_rule(rule).length
    measured = torch.tensor([energy], dtype=torch.float64) if length == "measured" else None
    factor, factors = step_scale(adjust_lr, *shape, energy=measured, paper_scale=paper_scale, length=length)
    return factor if factors is None else factor * float(factors)
