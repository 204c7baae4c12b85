"""Neighbours of Adam, entry by entry: AdEMAMix with a second, slow momentum, diffGrad with a friction, and Signum.

Second moments are kept as roots, as in `second_moments.adam`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Buffer, Settings, Stage, Step, stage
from rlspec.optim.stages.scale import check_whole, nearest
from rlspec.optim.stages.second_moments import adam, averaged_root, divide


def _ademamix_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    return {name: Buffer((rows, cols)) for name in ("exp_avg", "exp_avg_slow", "exp_avg_rms")}


def _check_ademamix(*, slow_beta: float, slow_weight: float, slow_warmup: int, **_: object) -> None:
    if not 0 <= slow_beta < 1:
        raise ConfigError(f"slow_beta={slow_beta!r}: must be from 0 to below 1")
    if not slow_weight >= 0:
        raise ConfigError(f"slow_weight={slow_weight!r}: must not be negative")
    check_whole("slow_warmup", slow_warmup, least=0)


@stage(buffers=_ademamix_buffers, check=_check_ademamix)
def ademamix(
    blocks: Tensor,
    step: Step,
    *,
    betas: tuple[float, float],
    eps: float,
    slow_beta: float = 0.9999,
    slow_weight: float = 5.0,
    slow_warmup: int = 0,
) -> Tensor:
    """`(m_1 / (1 - beta_1^t) + alpha m_2) / (sqrt(v) + eps)`, m_2 an average over 10,000 steps (arXiv 2409.03137).

    alpha is `slow_weight` and m_2's decay `slow_beta`, not bias-corrected. Over `slow_warmup` steps (the paper: as many
    as the run has) alpha grows linearly and the decay from betas[0] so that its half-life does; 0: no warm-up. With
    alpha = 0 it is Adam. Published: 0.9999, alpha 5 for language models (2 in the code's signature), Adam's betas.
    """
    alpha, decay = slow_schedule(step.count, betas[0], slow_beta, slow_weight, slow_warmup)
    work = blocks.to(step.state["exp_avg"].dtype)
    fast = step.state["exp_avg"] = step.state["exp_avg"].lerp(work, 1 - betas[0])
    slow = step.state["exp_avg_slow"] = step.state["exp_avg_slow"].lerp(work, 1 - decay)
    root = step.state["exp_avg_rms"] = averaged_root(step.state["exp_avg_rms"], work.abs(), betas[1])
    mean = fast / (1 - betas[0] ** step.count) + alpha * slow
    return divide(mean, root / math.sqrt(1 - betas[1] ** step.count) + eps)


def slow_schedule(count: int, fast: float, slow: float, weight: float, warmup: int) -> tuple[float, float]:
    """AdEMAMix's alpha and beta_3 in step `count`, counted from 1.

    `beta_3 = min(exp(ln b ln s / ((1 - t) ln s + t ln b)), s)`, b = `fast`, s = `slow`, t = count / warmup.
    """
    if count >= warmup:
        return weight, slow
    share = count / warmup
    if fast == 0 or slow == 0:  # half-lives of zero: the formula's limit
        return weight * share, 0.0
    mixed = (1 - share) * math.log(slow) + share * math.log(fast)
    return weight * share, min(math.exp(math.log(fast) * math.log(slow) / mixed), slow)


def _diffgrad_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    return {name: Buffer((rows, cols)) for name in ("exp_avg", "exp_avg_rms", "last_gradient")}


@stage(buffers=_diffgrad_buffers)
def diffgrad(blocks: Tensor, step: Step, *, betas: tuple[float, float], eps: float) -> Tensor:
    """Adam's step times `sigmoid(|g_t - g_{t-1}|)`: half as long where a gradient stays (diffGrad, arXiv 1909.11015).

    The change is compared with 1 as it is, so the scale of the loss matters: at gradients of 1e-6 it is half of Adam.
    """
    friction = (blocks - step.state["last_gradient"]).abs().sigmoid()
    step.state["last_gradient"] = blocks.clone()
    return adam(blocks, step) * friction


def _signum_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    return {"exp_avg": Buffer((rows, cols))}


@stage(buffers=_signum_buffers)
def signum(blocks: Tensor, step: Step, *, momentum: float, nesterov: bool) -> Tensor:
    """Signs of the averaged gradient (arXiv 1802.04434), for compositions: with a momentum of its own."""
    work = blocks.to(step.state["exp_avg"].dtype)
    average = step.state["exp_avg"] = step.state["exp_avg"].lerp(work, 1 - momentum)
    return (work.lerp(average, momentum) if nesterov else average).sign()


def one_of(option: str, stages: Mapping[str, Stage], default: str) -> Stage:
    """A stage that is the one which an option names, with the options of all."""

    def function(blocks: Tensor, step: Step, **chosen: Any) -> Tensor:
        picked = stages[chosen[option]]
        return picked.function(blocks, step, **{name: chosen[name] for name in picked.options})

    def buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
        kept = stages[settings.get(option, default)].buffers
        return {} if kept is None else kept(rows, cols, settings)

    def check(**chosen: Any) -> None:
        if chosen[option] not in stages:
            raise ConfigError(f"{option}={chosen[option]!r}; {nearest(str(chosen[option]), stages)}")
        picked = stages[chosen[option]]
        if picked.check is not None:
            picked.check(**{name: chosen[name] for name in picked.options})

    known = {option: default}
    for entry in stages.values():
        known |= entry.options
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, keyword, default=value) for name, value in known.items()]
    function.__name__ = option
    function.__doc__ = f"`{option}`: one of {', '.join(stages)}."
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return Stage(function, buffers, check=check)


spectra_base = one_of("spectra_base", {"adam": adam, "ademamix": ademamix, "signum": signum}, default="adam")
"""What SPECTRA clips: any of its paper's three bases."""
