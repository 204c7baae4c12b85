"""From a learning rate that is good elsewhere to one for every parameter here, by the rules of `rlspec.optim.transfer`.

Rule to rule: weights move as far (RMS). Batch: lr goes as the root of its size, for plain SGD as its size. Width:
features move as far (spectral condition), for AdamW as 1 / cols; of matrices of attention and MLP alone, because
vectors and embeddings keep theirs. Weight decay, where it is given: `lr weight_decay` stays, for AdamW's matrices
across widths as sqrt(width). Starting points, no laws: the run prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim.map.spec import ParameterSpec
from rlspec.optim.map.symmetry import SPECTRAL_ROLES
from rlspec.optim.rules import get_rule
from rlspec.optim.settings import KnownRate
from rlspec.optim.transfer import adamw_weight_decay, batch_lr, transfer_lr, transfer_weight_decay, update_rms


@dataclass(frozen=True)
class Here:
    """What the run to be is like.

    Attributes:
        settings: of the optimizer.
        batch: what a step is made of; None: unknown.
        width: hidden size of the model; None: unknown.
    """

    settings: Mapping[str, Any]
    batch: int | None = None
    width: int | None = None


def hidden_size(model: nn.Module) -> int | None:
    """The width that a transformers config says, of the language model where it is nested."""
    config = getattr(model, "config", None)
    found = getattr(getattr(config, "text_config", config), "hidden_size", None)
    return found if isinstance(found, int) else None


def carried_over(known: KnownRate, spec: ParameterSpec, here: Here) -> tuple[float, float | None]:
    """Learning rate and weight decay of a parameter; None: the optimizer's own decay.

    Raises:
        ConfigError: naming what is not known, of the run or of the rule.
    """
    try:
        ratio = _rule_ratio(known, spec, here)
        if known.width is not None:
            ratio *= _width_ratio(known, spec, here)
    except ConfigError as error:
        raise ConfigError(f"lr_from: {spec.name}: {error}") from error
    lr = known.lr * ratio
    if known.batch is not None:
        if here.batch is None:
            raise ConfigError("lr_from.batch: the size of this run's batch is not known here; give batch")
        exponent = 1.0 if get_rule(spec.rule).length == "gradient" else 0.5
        lr = batch_lr(lr, known.batch, here.batch, exponent=exponent)
    return lr, _weight_decay(known, spec, here, lr)


def _reference(known: KnownRate, spec: ParameterSpec) -> str:
    """The rule that the parameter had there."""
    return known.rule if _is_matrix(spec) or not get_rule(known.rule).spectral else "adamw"


def _is_matrix(spec: ParameterSpec) -> bool:
    return bool(spec.matrices) or spec.role.partition(".")[0] in SPECTRAL_ROLES


def _length(spec: ParameterSpec, here: Here) -> dict[str, Any]:
    """How long steps are here: adjust_lr and paper_scale, of the role where it says so."""
    changes = spec.override.changes if spec.override is not None else {}
    return {name: changes.get(name, here.settings[name]) for name in ("adjust_lr", "paper_scale")}


def _rule_ratio(known: KnownRate, spec: ParameterSpec, here: Here) -> float:
    there, length = _reference(known, spec), _length(spec, here)
    same = {"adjust_lr": known.adjust_lr, "paper_scale": known.paper_scale} == length
    if there == spec.rule and (same or get_rule(there).length in ("gradient", "own") or not get_rule(there).spectral):
        return 1.0
    if get_rule(spec.rule).kind == "pair" and get_rule(spec.rule).length != "own":
        raise ConfigError(f"rule {spec.rule} moves LoRA pairs, whose learning rate no other rule's tells")
    shape = _shape(known, spec, here)

    def rms(rule: str, adjust_lr: str, paper_scale: float) -> float:
        energy = known.energy if get_rule(rule).length == "measured" else None
        return update_rms(rule, shape, adjust_lr, energy=energy, paper_scale=paper_scale)

    return rms(there, known.adjust_lr, known.paper_scale) / rms(spec.rule, **length)


def _width_ratio(known: KnownRate, spec: ParameterSpec, here: Here) -> float:
    if not _is_matrix(spec) or len(spec.shape) < 2:
        return 1.0
    adjust_lr, energy = _length(spec, here)["adjust_lr"], known.energy if known.energy is not None else 1.0
    return transfer_lr(1.0, _shape(known, spec, here), spec.block, adjust_lr, rule=spec.rule, energy=energy)


def _shape(known: KnownRate, spec: ParameterSpec, here: Here) -> tuple[int, int]:
    """Of a block there: both sides go with the width, but for that of a head."""
    if known.width is None or len(spec.shape) < 2:
        return spec.block
    if here.width is None:
        raise ConfigError("the width of this model is not known (config.hidden_size); leave width out")
    heads = spec.num_heads > 1
    return tuple(  # type: ignore[return-value]
        size if heads and axis == spec.head_axis else max(1, round(size * known.width / here.width))
        for axis, size in enumerate(spec.block)
    )


def _weight_decay(known: KnownRate, spec: ParameterSpec, here: Here, lr: float) -> float | None:
    if known.weight_decay is None:
        return None
    if not spec.decays:
        return 0.0
    if known.width is not None and here.width is not None and not get_rule(spec.rule).spectral and _is_matrix(spec):
        return adamw_weight_decay(known.weight_decay, known.width, here.width)
    return transfer_weight_decay(known.weight_decay, known.lr, lr)


def describe(known: KnownRate, groups: list[dict[str, Any]], here: Here) -> str:
    """What was computed, a line per role and learning rate: for the start of a run."""
    elsewhere = [f"{known.rule} at {known.lr:g}"]
    elsewhere += [f"batch {known.batch} (here {here.batch})"] if known.batch is not None else []
    elsewhere += [f"width {known.width} (here {here.width})"] if known.width is not None else []
    rows: dict[tuple[str, str, float, float], int] = {}
    for group in groups:
        key = (group["role"], group["rule"], group["lr"], group["weight_decay"])
        rows[key] = rows.get(key, 0) + len(group["params"])
    lines = [f"learning rates from {', '.join(elsewhere)}:"]
    for (role, rule, lr, decay), count in rows.items():
        lines.append(f"  {role:16} {rule:12} lr {lr:.3g}  weight decay {decay:.3g}  ({count} tensors)")
    return "\n".join(lines)
