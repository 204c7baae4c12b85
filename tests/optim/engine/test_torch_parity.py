"""Bit for bit: Muon against torch.optim.Muon, the AdamW groups against torch.optim.AdamW."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from rlspec.optim import SpectralOptimizer

SHAPES = [(12, 40), (40, 12), (16, 16), (12, 40), (1, 9), (9, 1)]


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()
    return [param.detach().clone() for param in params]


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("ns_steps", [3, 5])
def test_muon_equals_torch_muon_bitwise(adjust_lr: str, nesterov: bool, weight_decay: float, ns_steps: int) -> None:
    common = {"lr": 0.02, "weight_decay": weight_decay, "momentum": 0.9, "nesterov": nesterov, "ns_steps": ns_steps}
    theirs, ours = parameters(*SHAPES), parameters(*SHAPES)
    expected = run(torch.optim.Muon(theirs, adjust_lr_fn=adjust_lr, **common), theirs)
    parity = {"rule": "muon", "adjust_lr": adjust_lr, "normalise": "torch", "compute_dtype": "bfloat16"}
    result = run(SpectralOptimizer(ours, **parity, **common), ours)
    assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))


@pytest.mark.parametrize(
    "schedule",
    [lambda each: OneCycleLR(each, 0.02, total_steps=8), lambda each: CyclicLR(each, 1e-3, 0.02, step_size_up=3)],
    ids=["OneCycleLR", "CyclicLR"],
)
def test_a_scheduler_that_cycles_the_momentum_cycles_that_of_matrices(schedule: Callable[..., LRScheduler]) -> None:
    def scheduled(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> list[torch.Tensor]:
        scheduler = schedule(optimizer)
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return run(optimizer, params, steps=7)

    theirs, ours = parameters(*SHAPES), parameters(*SHAPES)
    expected = scheduled(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1), theirs)
    parity = {"adjust_lr": "original", "normalise": "torch", "compute_dtype": "bfloat16", "nesterov": True}
    result = scheduled(SpectralOptimizer(ours, rule="muon", lr=0.02, weight_decay=0.1, **parity), ours)
    assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))


def kellers(gradient: torch.Tensor) -> torch.Tensor:
    """Five of Keller Jordan's steps on singular values, in float64, at his length."""
    u, s, vh = torch.linalg.svd(gradient.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return max(1.0, gradient.shape[0] / gradient.shape[1]) ** 0.5 * (u * s) @ vh


def test_by_default_muon_is_nearer_to_its_formula_than_torch_muon_and_in_bf16_as_near(arithmetic: torch.dtype) -> None:
    theirs, ours = parameters(*SHAPES[:4]), parameters(*SHAPES[:4])
    expected = run(torch.optim.Muon(theirs, lr=1.0, weight_decay=0.0, nesterov=False), theirs, 1)
    result = run(SpectralOptimizer(ours, lr=1.0, adjust_lr="original"), ours, 1)
    for start, param, a, b in zip(parameters(*SHAPES[:4]), ours, expected, result, strict=True):
        exact = kellers(param.grad)
        error_a, error_b = (float((start.detach() - new - exact).norm() / exact.norm()) for new in (a, b))
        # About one eps per iteration: a few 1e-2 for torch, which computes in bfloat16 always.
        assert 1e-3 < error_a < 5 * torch.finfo(torch.bfloat16).eps
        assert error_b < (1e-5 if arithmetic == torch.float32 else 5 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_equals_torch_adamw_bitwise(weight_decay: float, dtype: torch.dtype) -> None:
    shapes = [(12, 40), (7,), (), (3, 2, 2, 2)]
    common = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": weight_decay}
    theirs, ours = parameters(*shapes, dtype=dtype), parameters(*shapes, dtype=dtype)
    expected = run(torch.optim.AdamW(theirs, fused=True, **common), theirs)
    result = run(SpectralOptimizer(ours, rule="adamw", **common), ours)
    assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))


def test_adamw_at_extreme_gradients_does_what_torch_does() -> None:
    for scale in (1e-20, 1e20):
        theirs, ours = parameters((4, 5)), parameters((4, 5))
        theirs[0].grad, ours[0].grad = torch.full((4, 5), scale), torch.full((4, 5), scale)
        torch.optim.AdamW(theirs).step()
        SpectralOptimizer(ours, rule="adamw", weight_decay=1e-2).step()
        assert torch.equal(theirs[0], ours[0])


def test_a_small_model_trains_to_the_same_weights_as_with_torch() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    theirs = copy.deepcopy(ours)
    x, y = torch.randn(20, 6), torch.randn(20, 3)
    ours_optimizer = SpectralOptimizer(ours.named_parameters(), rule="adamw", lr=1e-2, weight_decay=0.01)
    theirs_optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.01, fused=True)
    for model, optimizer in ((ours, ours_optimizer), (theirs, theirs_optimizer)):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
