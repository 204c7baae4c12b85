"""What the tests of LoRA pairs share: pairs with gradients, one way to run a rule, and gauges."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlspec.optim.composition import Pair, PairStage, Step
from rlspec.optim.stages.lora import LORA_MUON, LORA_PION
from rlspec.optim.stages.lora_adaptive import ADAPRE_LORA, LORA_RITE

RANK, IN, OUT, SCALING = 4, 24, 16, 2.0
SETTINGS: dict[str, Any] = {
    "normalise": "frobenius",
    "ns_steps": 5,
    "promotion_steps": 1,
    "weight_decay": 0.0,
    "betas": (0.9, 0.99),
    "product_floor": 0.0,
}
RULES = {"muon": LORA_MUON, "pion": LORA_PION, "rite": LORA_RITE, "adapre": ADAPRE_LORA}
ROTATING = ("muon", "pion", "rite")


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_pair(rank: int = RANK, rows: int = OUT, cols: int = IN, batch: int = 3, seed: int = 0, **changes: Any) -> Pair:
    """Factors of a well-conditioned product, and the gradients that a gradient of W would give them."""
    a, b = draw(batch, rank, cols, seed=seed), draw(batch, rows, rank, seed=seed + 1)
    gradient = draw(batch, rows, cols, seed=seed + 2)
    g_a, g_b = SCALING * b.mT @ gradient, SCALING * gradient @ a.mT
    return Pair(**({"a": a, "b": b, "direction_a": g_a, "direction_b": g_b, "gradient_a": g_a, "gradient_b": g_b,
                    "scaling": SCALING} | changes))  # fmt: skip


def make_step(
    lr: float = 1e-3, count: int = 1, length: float = 1.0, dtype: torch.dtype = torch.float64, **settings: Any
) -> Step:
    return Step(SETTINGS | settings, lr, length, count, dtype)


def with_state(stage: PairStage, pair: Pair, step: Step) -> Step:
    (batch, rank, cols), rows = pair.a.shape, pair.b.shape[1]
    dtype = torch.promote_types(pair.a.dtype, torch.float32)
    for buffers, shape in ((stage.buffers_a, (rank, cols)), (stage.buffers_b, (rows, rank))):
        for name, buffer in (buffers(*shape, step.settings) if buffers else {}).items():
            step.state[name] = buffer.new(batch, dtype, pair.a.device)
    return step


def run(stage: PairStage, pair: Pair, step: Step) -> tuple[Tensor, Tensor]:
    return stage(pair, step if step.state else with_state(stage, pair, step))


def change(pair: Pair, updates: tuple[Tensor, Tensor]) -> Tensor:
    """To first order: s (B dA + dB A)."""
    return pair.scaling * (pair.b @ updates[0] + updates[1] @ pair.a)


def gauge(pair: Pair, t: Tensor) -> Pair:
    """The same W in other factors, with gradients and momenta as the chain rule carries them."""
    back = torch.linalg.inv(t)
    return Pair(
        t @ pair.a, pair.b @ back, back.mT @ pair.direction_a, pair.direction_b @ t.mT,
        back.mT @ pair.gradient_a, pair.gradient_b @ t.mT, pair.scaling,
    )  # fmt: skip


def conditioned(condition: float, seed: int, rank: int = RANK) -> Tensor:
    left, _, right = torch.linalg.svd(draw(rank, rank, seed=seed))
    return left @ torch.diag(torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)) @ right


def relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


def polar(x: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v


def inverse_root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.rsqrt()[:, None, :] @ vectors.mT
