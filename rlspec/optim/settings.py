"""The optimizer's settings, declared once: recipes, LeRobot's config, the builder and the checks read them off here.

Needs no library, torch included, so that a recipe is checked before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from math import inf
from numbers import Real
from typing import Any, Literal, get_type_hints

from rlspec.errors import ConfigError

AdjustLr = Literal["match_rms_adamw", "match_spectral_adamw", "original", "spectral", "paper", "none"]
PromotionSteps = float | Literal["auto"]
Split = Literal["heads", "whole"]
Whose = Literal["ours", "paper"]


def _number(default: Any, **limits: float) -> Any:
    """A number within limits: `ge` at least, `gt` above, `lt` below."""
    return field(default=default, metadata=limits)


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Of a parameter group. Every rule takes those that it has; bounds on singular values are for matrices.

    Learning rate and rule are not among them: every entrance has its own default for these.

    Attributes:
        weight_decay: decoupled.
        betas: of AdamW and of rules with Adam in them.
        eps: of AdamW and of rules with Adam in them.
        momentum: of rules that average gradients.
        nesterov: of rules that average gradients.
        ns_steps: Newton-Schulz iterations.
        promotion_steps: Pion's k_p, 0 to ns_steps, also between whole numbers; auto: per block, the fewest with which
            its top direction passes.
        adjust_lr: length of a step, see `rlspec.optim.stages.scale.step_scale`.
        paper_scale: s of adjust_lr "paper".
        normalise: what a singular value is measured against, see `rlspec.optim.kernels.normalisers`.
        compute_dtype: of the iterations; auto is bfloat16 on CUDA, else float32; float64 for float64 parameters.
        state_dtype: of momentum buffers; bfloat16 halves them, with stochastic rounding.
        gradient_clip: soft bound on the singular values of gradients before the momentum (SPECTRA); 0: none. Around
            AdamW's updates use rule `spectra`.
        update_clip: soft bound on those of updates, in units of lr (SPECTRA around any rule); 0: none.
        spectral_cap: bound on the singular values of the weights themselves, after every step; 0: none.
        cap_method: how, see `rlspec.optim.stages.constraints.constrain`; `hammer` bounds the largest one alone.
    """

    weight_decay: float = _number(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = _number(1e-8, ge=0)
    momentum: float = _number(0.95, ge=0, lt=1)
    nesterov: bool = False
    ns_steps: int = _number(5, ge=1)
    promotion_steps: PromotionSteps = 0.0
    adjust_lr: AdjustLr = "match_rms_adamw"
    paper_scale: float = _number(5.0, gt=0)
    normalise: Literal["frobenius", "spectral", "schatten4", "aol", "none", "torch"] = "frobenius"
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32", "float64"] = "auto"
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_clip: float = _number(0.0, ge=0)
    update_clip: float = _number(0.0, ge=0)
    spectral_cap: float = _number(0.0, ge=0)
    cap_method: Literal["hard", "soft", "normalise", "hammer"] = "hard"


@dataclass(frozen=True, kw_only=True)
class Running:
    """How the optimizer runs; nothing of it changes an update, only whether there is one.

    Attributes:
        workspace_bytes: bound on the float32 values updated in one batch (at least one parameter); on a CPU batches
            also end at `engine.batches.CPU_BATCH_BYTES`, to stay in its cache. A step's peak extra memory is 4 to 9
            times the largest batch for most rules, more where a stage keeps square matrices of the long side (fismo),
            and once more for bf16 parameters, whose gradients are cast batch by batch.
        telemetry_every: collect telemetry every so many steps, for `telemetry()` and the callbacks of
            `register_telemetry_callback`; 0: only on request (`collect_telemetry = True`).
        check_finite: look for NaN and Inf. It reads every gradient once more, a fifth of an AdamW step on a CPU; turn
            it off where something else has looked already, such as a GradScaler or the norm of all gradients.
        skip_zero_gradients: leave a step out, with its weight decay, in which every gradient on every process is 0
            exactly, as GRPO's is where no group's rewards differ. torch's optimizers step on along their momentum; one
            that normalises it does so at full length, for as long as nothing new comes.
    """

    workspace_bytes: int = _number(1 << 28, ge=0)
    telemetry_every: int = _number(0, ge=0)
    check_finite: bool = True
    skip_zero_gradients: bool = False


@dataclass(frozen=True, kw_only=True)
class KnownRate:
    """A learning rate that is known to be good elsewhere, see `rlspec.optim.known_rate`.

    Attributes:
        lr: that learning rate.
        rule: of the matrices there; what was no matrix had AdamW, if that rule is one of matrices.
        adjust_lr: length of its steps.
        paper_scale: s of adjust_lr "paper".
        energy: directions that passed there and pass here, of rules with a filter; None: all.
        batch: what a step there was made of, in what this run counts (prompts, samples); None: as much as here.
        width: hidden size of the model there; None: as here.
        weight_decay: there; None: the optimizer's own, as it is.
    """

    lr: float = _number(1e-6, gt=0)
    rule: str = "adamw"
    adjust_lr: AdjustLr = "match_rms_adamw"
    paper_scale: float = _number(5.0, gt=0)
    energy: float | None = _number(None, gt=0)
    batch: int | None = _number(None, ge=1)
    width: int | None = _number(None, ge=1)
    weight_decay: float | None = _number(None, ge=0)


@dataclass(frozen=True, kw_only=True)
class RoleChanges:
    """Of a role, a part of the model or a parameter, over the optimizer's; None leaves it.

    Attributes:
        rule: name of a rule.
        lr_scale: factor of the learning rate; those of a role and a pattern multiply.
        weight_decay: decoupled.
        promotion_steps: of Pion's filter.
        adjust_lr: length of the step.
        split: heads or whole.
        stacked: the first axis counts matrices, as of experts; False: all axes after the first are one.
        num_heads: blocks that heads make of a matrix, all projections counted.
        parts: projections fused into it, of equal size.
        head_axis: which axis these cut, 0 rows (outputs) or 1 columns.
        transposed: it is stored (in, out).
    """

    rule: str | None = None
    lr_scale: float = _number(1.0, gt=0)
    weight_decay: float | None = _number(None, ge=0)
    promotion_steps: PromotionSteps | None = None
    adjust_lr: AdjustLr | None = None
    split: Split | None = None
    stacked: bool | None = None
    num_heads: int | None = _number(None, ge=1)
    parts: int | None = _number(None, ge=1)
    head_axis: int | None = _number(None, ge=0, le=1)
    transposed: bool | None = None


def defaults(*declarations: type) -> dict[str, Any]:
    """Name -> default of every setting, in order."""
    return {entry.name: entry.default for declared in declarations for entry in fields(declared)}


@cache
def declared_types(declaration: type) -> dict[str, Any]:
    """Name -> type of every setting."""
    return get_type_hints(declaration)


def limits(declaration: type) -> dict[str, dict[str, float]]:
    """Name -> limits of every number."""
    return {entry.name: dict(entry.metadata) for entry in fields(declaration) if entry.metadata}


def check_positive(name: str, value: Any, *, zero: bool = False) -> None:
    """Refuse what is no finite number above 0, or at least 0 with `zero`.

    Raises:
        ConfigError: naming it.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= value < inf or (value == 0 and not zero):
        raise ConfigError(f"{name}={value!r}; must be a number {'of at least' if zero else 'above'} 0")
