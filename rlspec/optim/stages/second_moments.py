"""Second moments around a filter: which variance adapts the size of an update, and over what it is averaged.

| variance | rule | kept per block | equivariant under |
|---|---|---|---|
| scalar | namo, adago | 1 | O x O |
| columns | namo_d | cols | O x S |
| rows | normuon | rows | S x O |
| rows x columns | factored_muon, factored_pion | rows + cols | S x S |
| elementwise | adamuon, adam | rows cols | S x S |

Moments are kept as roots (root mean squares) where they are of gradients, and averaged by `hypot`, so that gradients
from 1e-20 to 1e20 neither underflow nor overflow; nothing is added to them by default, because gradients in
reinforcement learning are about 1e-6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Buffer, Buffers, Settings, Step, stage
from rlspec.optim.kernels.blocks import nonzero, per_block, widened

NORMALISED_EPS = 1e-10
"""NorMuon's, added to the root of moments of filtered blocks, whose entries do not depend on the gradient's size."""
ADAMUON_EPS = 1e-8
"""AdaMuon's, likewise."""


def root_mean_square(blocks: Tensor, dims: tuple[int, ...] = (1, 2)) -> Tensor:
    """Over `dims`, which are kept, in float32 or wider; never above the largest entry, so it cannot overflow."""
    work = widened(blocks)
    peak = work.abs().amax(dims, keepdim=True)
    scaled = work / nonzero(peak)
    return peak * scaled.square().mean(dims, keepdim=True).sqrt()


def averaged_root(root: Tensor, new: Tensor, beta: float) -> Tensor:
    """Root of `beta root^2 + (1 - beta) new^2`."""
    return torch.hypot(math.sqrt(beta) * root, math.sqrt(1 - beta) * new)


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, and 0 where the denominator is 0."""
    return numerator / torch.where(denominator > 0, denominator, torch.inf)


def _check_betas(**options: float) -> None:
    for name in ("variance_beta", "column_clamp"):
        if name in options and not 0 <= options[name] <= 1 or options.get("variance_beta") == 1:
            raise ConfigError(f"{name}={options.get(name)}: must lie in [0, 1], variance_beta below 1")
    for name in ("variance_eps", "norm_bound", "step_floor", "norm_start", "brake"):
        if not options.get(name, 0.0) >= 0:
            raise ConfigError(f"{name}={options[name]}: must not be negative")


def _buffer(name: str, *axes: str) -> Buffers:
    """One buffer of zeros whose shape is made of `rows` and `cols`; an axis that is averaged over is 1."""

    def buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
        return {name: Buffer((rows if "rows" in axes else 1, cols if "cols" in axes else 1))}

    return buffers


def _adaptive_ratio(
    blocks: Tensor, step: Step, momentum: float, beta: float, eps: float, dims: tuple[int, ...]
) -> Tensor:
    """Root mean square of the bias-corrected momentum over that of the gradient, over `dims`."""
    assert step.gradient is not None
    found = step.state["gradient_rms"]
    root = averaged_root(found, root_mean_square(step.gradient, dims).to(found.dtype), beta)
    step.state["gradient_rms"] = root
    correction = math.sqrt(1 - beta**step.count) / (1 - momentum**step.count)
    averaged_over = math.sqrt(math.prod(blocks.shape[dim] for dim in dims))  # eps is the paper's: added to a norm
    return correction * divide(root_mean_square(blocks, dims), root + eps / averaged_over)


@stage(_buffer("gradient_rms"), reads_gradient=True, check=_check_betas, sets_decay=True)
def norm_ratio(
    blocks: Tensor, step: Step, *, momentum: float, variance_beta: float = 0.99, variance_eps: float = 0.0
) -> Tensor:
    """Before the filter: NAMO's adaptive learning rate over lr, into `Step.decay` (arXiv 2602.17080).

    `sqrt(1 - beta2^t) / (1 - beta1^t) ||M|| / (sqrt(v) + eps)`, v the average of ||G||_F^2. It is 1 in the first step
    (1 + beta1 with Nesterov's form), and about sqrt((1 - beta1) / (1 + beta1)) when gradients are noise.
    `variance_eps` is 1e-8 in the paper: gradients of norm 1e-6 would feel it, so it is 0 here.
    """
    step.decay = _adaptive_ratio(blocks, step, momentum, variance_beta, variance_eps, (1, 2))
    return blocks


@stage(_buffer("gradient_rms", "cols"), reads_gradient=True, check=_check_betas, sets_decay=True)
def column_ratios(
    blocks: Tensor,
    step: Step,
    *,
    momentum: float,
    variance_beta: float = 0.99,
    variance_eps: float = 0.0,
    column_clamp: float = 0.75,
) -> Tensor:
    """Before the filter: NAMO-D's adaptive learning rate of every column, over lr, into `Step.decay`.

    As `norm_ratio`, of columns, then clamped to [c, 1 / c] times their mean, c = `column_clamp` (0: no clamp).
    """
    ratios = _adaptive_ratio(blocks, step, momentum, variance_beta, variance_eps, (1,))
    if column_clamp > 0:
        mean = ratios.mean(2, keepdim=True)
        ratios = ratios.clamp(min=column_clamp * mean, max=mean / column_clamp)
    step.decay = ratios
    return blocks


@stage()
def follow_ratio(blocks: Tensor, step: Step) -> Tensor:
    """After the filter: times `norm_ratio` or `column_ratios`, so that no step is longer than the polar factor itself.

    The adaptive rate, NAMO-D's of every column, is at most 1 in the weight decay, and at most 1 with the length of
    `adjust_lr` in the update.
    """
    assert step.decay is not None
    ratio = step.decay
    if step.lr > 0:
        step.decay = ratio.clamp(max=1 / step.lr)
        ratio = ratio.clamp(max=1 / (step.lr * step.length))
    return blocks * ratio


def _adapted(blocks: Tensor, deviation: Tensor) -> Tensor:
    """Blocks over their standard deviation, with the Frobenius norm that they came with."""
    adapted = blocks / (deviation + NORMALISED_EPS)
    before, after = root_mean_square(blocks), root_mean_square(adapted)
    return adapted * divide(before, after)


@stage(_buffer("variance", "rows"), check=_check_betas)
def row_variance(blocks: Tensor, step: Step, *, variance_beta: float = 0.95) -> Tensor:
    """After the filter: divide rows by the root of their average square, keep the Frobenius norm (NorMuon).

    No bias correction: a common factor cancels (arXiv 2510.05491). In the first step all rows come out equally long.
    """
    blocks = widened(blocks)
    variance = step.state["variance"].lerp(blocks.square().mean(2, keepdim=True), 1 - variance_beta)
    step.state["variance"] = variance
    return _adapted(blocks, variance.sqrt())


def _two_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    return {"row_variance": Buffer((rows, 1)), "column_variance": Buffer((1, cols))}


@stage(_two_buffers, check=_check_betas)
def factored_variance(blocks: Tensor, step: Step, *, variance_beta: float = 0.95) -> Tensor:
    """After the filter: divide by Adafactor's rank-one variance, keep the Frobenius norm.

    V = R C / mean(R), R and C the averages of the squares over rows and columns: the cheapest variance that made up the
    difference to the full one in "What Really Matters in Matrix-Whitening Optimizers?" (arXiv 2510.25000).
    """
    blocks = widened(blocks)
    square = blocks.square()
    rows = step.state["row_variance"].lerp(square.mean(2, keepdim=True), 1 - variance_beta)
    columns = step.state["column_variance"].lerp(square.mean(1, keepdim=True), 1 - variance_beta)
    step.state["row_variance"], step.state["column_variance"] = rows, columns
    return _adapted(blocks, rows.sqrt() * divide(columns, rows.mean(1, keepdim=True)).sqrt())


@stage()
def signs(blocks: Tensor, step: Step) -> Tensor:
    """Before the filter: signs of the momentum (AdaMuon)."""
    return blocks.sign()


@stage(_buffer("variance", "rows", "cols"), check=_check_betas)
def elementwise_variance(blocks: Tensor, step: Step, *, variance_beta: float = 0.95) -> Tensor:
    """After the filter: divide entries by the root of their average square (AdaMuon, arXiv 2507.11005).

    The result has the Frobenius norm of a polar factor of full rank, sqrt(min(rows, cols)), so that
    `adjust_lr="match_rms_adamw"` gives the paper's root mean square of 0.2 exactly.
    """
    blocks = widened(blocks)
    variance = step.state["variance"].lerp(blocks.square(), 1 - variance_beta)
    step.state["variance"] = variance
    adapted = blocks / (variance.sqrt() + ADAMUON_EPS)
    return adapted * divide(per_block(max(blocks.shape[1:]) ** -0.5, adapted), root_mean_square(adapted))


@stage(_buffer("gradient_norm"), reads_gradient=True, check=_check_betas)
def accumulated_norm(
    blocks: Tensor, step: Step, *, norm_bound: float = 10.0, norm_start: float = 1e-6, step_floor: float = 0.01
) -> Tensor:
    """After the filter: AdaGrad's step from the norms of all gradients so far (AdaGO, arXiv 2509.02981).

    The learning rate is lr `max(step_floor, min(||G||, gamma) / sqrt(v_0^2 + sum min(||G||, gamma)^2))`: lr / sqrt(t)
    for gradients of constant norm. gamma = `norm_bound`, v_0 = `norm_start` and the gradients are compared as they are,
    so the scale of the loss matters; the floor is in units of lr (5e-4 at the paper's 5e-2).
    """
    assert step.gradient is not None
    found = step.state["gradient_norm"]
    size = math.sqrt(math.prod(blocks.shape[1:]))
    norm = (root_mean_square(step.gradient).to(found.dtype) * size).clamp(max=norm_bound)
    total = torch.hypot(found, norm)
    step.state["gradient_norm"] = total
    return blocks * divide(norm, total.hypot(per_block(norm_start, total))).clamp(min=step_floor)


@stage(check=_check_betas)
def cosh_brake(blocks: Tensor, step: Step, *, brake: float = 1.5) -> Tensor:
    """Divide by the root mean square of cosh(brake X / ||X||_F) (AuON, arXiv 2509.24320).

    That is 1 + brake^2 / (2 N) for N entries: 1.018 at 64 and 1.000001 at a million, so it does nothing on real layers.
    Alone (`auon`) it leaves Nesterov's SGD, whose length is the gradient's, and behind Newton-Schulz (`hybrid_auon`)
    Muon. Here to reproduce the paper, not because it helps.
    """
    work = widened(blocks)
    relative = divide(work, root_mean_square(work)) * (brake / math.sqrt(max(1, math.prod(blocks.shape[1:]))))
    return blocks / root_mean_square(relative.cosh()).to(blocks.dtype)


def _adam_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    return {"exp_avg": Buffer((rows, cols)), "exp_avg_rms": Buffer((rows, cols))}


@stage(_adam_buffers)
def adam(blocks: Tensor, step: Step, *, betas: tuple[float, float], eps: float) -> Tensor:
    """Adam's direction from gradients, bias-corrected as in torch.optim.AdamW, for compositions.

    The second moment is kept as its root, which differs from torch's by rounding and does not underflow.
    """
    first, second = betas
    average = step.state["exp_avg"].lerp(blocks.to(step.state["exp_avg"].dtype), 1 - first)
    root = averaged_root(step.state["exp_avg_rms"], blocks.to(average.dtype).abs(), second)
    step.state["exp_avg"], step.state["exp_avg_rms"] = average, root
    return divide(average, root / math.sqrt(1 - second**step.count) + eps) / (1 - first**step.count)
