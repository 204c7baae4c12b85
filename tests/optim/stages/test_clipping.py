"""SPECTRA's soft clipping and the bounds on weights against float64 singular value decompositions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.stages.clipping import soft_clip_blocks
from rlspec.optim.stages.constraints import constrain, top_triple

SHAPES = [(7, 5), (5, 7), (6, 6), (1, 6), (6, 1), (1, 1)]
F32, F64 = torch.float32, torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def mapped(blocks: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    left, values, right = torch.linalg.svd(blocks, full_matrices=False)
    return (left * function(values)[:, None, :]) @ right


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found.to(F64) - expected).norm(dim=(1, 2)) / expected.norm(dim=(1, 2))).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clip", [0.3, 1.0, 10.0])
def test_singular_values_are_mapped_exactly(shape: tuple[int, int], clip: float) -> None:
    blocks = random(3, *shape)
    expected = mapped(blocks, lambda s: s / (1 + (s / clip) ** 2).sqrt())
    assert relative(soft_clip_blocks(blocks, clip), expected) < 1e-12
    assert relative(soft_clip_blocks(blocks.float(), clip), expected) < 1e-4  # eps (1 + (4 / 0.3)^2), with room
    assert float(torch.linalg.matrix_norm(soft_clip_blocks(blocks, clip), 2).max()) < clip


def test_the_limits_are_the_identity_and_the_polar_factor() -> None:
    blocks = random(3, 7, 5)
    assert relative(soft_clip_blocks(blocks, 1e8), blocks) < 1e-14
    assert relative(soft_clip_blocks(blocks.float(), 1e8), blocks) < 1e-6
    polar = mapped(blocks, torch.ones_like)
    assert relative(soft_clip_blocks(blocks, 1e-8) / 1e-8, polar) < 1e-10


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e20, 1e36])
def test_the_scale_of_blocks_and_bound_together_does_not_matter(scale: float) -> None:
    blocks = random(2, 5, 4).float()
    found = soft_clip_blocks(blocks * scale, 2.0 * scale) / scale
    assert relative(found, soft_clip_blocks(blocks, 2.0).to(F64)) < 1e-5


def test_bounds_may_differ_between_blocks_and_zeros_stay_zeros() -> None:
    blocks = torch.cat([random(2, 5, 4), torch.zeros(1, 5, 4, dtype=F64)])
    found = soft_clip_blocks(blocks, torch.tensor([0.5, 2.0, 1.0], dtype=F64))
    assert torch.equal(found[:1], soft_clip_blocks(blocks[:1], 0.5))
    assert relative(found[1:2], soft_clip_blocks(blocks[1:2], 2.0)) < 1e-14
    assert not found[2].any()
    assert soft_clip_blocks(blocks.bfloat16(), 1.0).dtype == torch.bfloat16
    assert soft_clip_blocks(torch.zeros(2, 0, 4), 1.0).shape == (2, 0, 4)


def spectra_loop(gradients: list[Tensor], start: Tensor, clip: float, lr: float, decay: float, alpha: float) -> Tensor:
    weight, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        update = (first / (1 - 0.9**t)) / ((second / (1 - 0.95**t)).sqrt() + 1e-8)
        clipped = mapped(update[None], lambda s: s / (1 + (s / clip) ** 2).sqrt())[0]
        weight = weight * (1 - lr * decay) - alpha * lr * clipped
    return weight


@pytest.mark.parametrize(("adjust_lr", "alpha"), [("match_rms_adamw", 1.0), ("original", (9 / 4) ** 0.5)])
def test_spectra_is_adam_clipped(adjust_lr: str, alpha: float) -> None:
    gradients, start = [random(9, 4, seed=seed) for seed in range(5)], random(9, 4, seed=9)
    param = nn.Parameter(start.clone())
    optimizer = SpectralOptimizer(
        [param], rule="spectra", lr=0.1, betas=(0.9, 0.95), weight_decay=0.2, adjust_lr=adjust_lr, spectral_clip=1.5
    )
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()
    expected = spectra_loop(gradients, start, 1.5, 0.1, 0.2, alpha)
    assert float((param.detach() - expected).norm() / (expected - start).norm()) < 1e-12


def test_in_spectras_warm_up_the_bound_times_the_rate_is_constant() -> None:
    param = nn.Parameter(torch.zeros(9, 4, dtype=torch.float64))
    optimizer = SpectralOptimizer([param], rule="spectra", lr=0.5, spectral_clip=0.01, clip_warmup=4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [0.25, 0.5, 0.75, 1.0, 0.5][step])
    moved = []
    for seed in range(5):
        before, param.grad = param.detach().clone(), random(9, 4, seed=seed)
        optimizer.step()
        schedule.step() if seed < 4 else None
        moved.append(float(torch.linalg.matrix_norm(param.detach() - before, 2)))
    assert moved == pytest.approx([0.005, 0.005, 0.005, 0.005, 0.0025], rel=0.01)


@pytest.mark.parametrize("rule", ["muon", "spectra", "row_norm"])
def test_any_rule_can_be_clipped_before_and_after(rule: str) -> None:
    def change(gradient: Tensor, **settings: float) -> Tensor:
        param = nn.Parameter(torch.zeros_like(gradient))
        optimizer = SpectralOptimizer([param], rule=rule, lr=1.0, **settings)  # type: ignore[arg-type]
        param.grad = gradient.clone()
        optimizer.step()
        return param.detach()

    gradient = random(7, 5)
    plain = change(gradient)
    after = mapped(plain[None], lambda s: s / (1 + (s / 0.4) ** 2).sqrt())
    assert relative(change(gradient, update_clip=0.4)[None], after) < 1e-11
    before = mapped(gradient[None], lambda s: s / (1 + (s / 0.4) ** 2).sqrt())[0]
    assert torch.allclose(change(gradient, gradient_clip=0.4), change(before), rtol=1e-9)


def weights(dtype: torch.dtype) -> Tensor:
    """Singular values from 0.1 to 3, none within a percent of 1; the last matrix stays below 1."""
    left, right = torch.linalg.qr(random(3, 24, 16)).Q, torch.linalg.qr(random(3, 16, 16, seed=1)).Q
    values = torch.linspace(0.1, 3, 16, dtype=F64) * torch.tensor([[1.0], [0.7], [0.3]], dtype=F64)
    return ((left * values[:, None, :]) @ right.mT).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-11), (F32, 1e-5)])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_hard_cap_takes_the_smaller_of_singular_value_and_cap(
    dtype: torch.dtype, tolerance: float, transposed: bool
) -> None:
    blocks = weights(dtype).mT if transposed else weights(dtype)
    capped = constrain(blocks, 1.0)
    assert relative(capped, mapped(blocks.to(F64), lambda s: s.clamp(max=1.0))) < tolerance
    assert torch.equal(capped[2], blocks[2])


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_a_cap_applied_in_every_step_holds_and_leaves_the_rest_alone(method: str) -> None:
    param = nn.Parameter(weights(F32)[0].clone())
    optimizer = SpectralOptimizer([param], rule="muon", lr=0.02, adjust_lr="none", spectral_cap=1.0, cap_method=method)
    for seed in range(5):
        param.grad = random(24, 16, seed=seed).float()
        optimizer.step()
        assert float(torch.linalg.matrix_norm(param.detach(), 2)) < 1.001


def test_normalising_scales_and_the_hammer_sets_only_the_largest() -> None:
    blocks = weights(F64)
    tops = torch.linalg.matrix_norm(blocks, 2)[:, None, None]
    # The next singular value is 6% smaller: 64 power iterations leave (1 - 0.06)^256 of it in the square.
    assert relative(constrain(blocks, 1.0, "normalise"), blocks / tops.clamp(min=1.0)) < 1e-5
    assert torch.equal(constrain(blocks, 1.0, "normalise")[2], blocks[2])
    largest = torch.arange(16) == 0
    expected = mapped(blocks, lambda s: torch.where(largest & (s > 1), 1.0, s))
    assert relative(constrain(blocks, 1.0, "hammer"), expected) < 1e-2
    assert torch.equal(constrain(blocks, 1.0, "hammer")[2], blocks[2])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_top_triple_is_the_decompositions(shape: tuple[int, int]) -> None:
    size = min(shape)
    left, right = torch.linalg.qr(random(2, shape[0], size)).Q, torch.linalg.qr(random(2, shape[1], size, seed=1)).Q
    blocks = (left * (0.5 ** torch.arange(size, dtype=F64))) @ right.mT * 1e-12
    near, top, far = top_triple(blocks)
    assert torch.allclose(top[:, 0, 0], torch.full((2,), 1e-12, dtype=F64), rtol=1e-12)
    assert torch.allclose(near @ far.mT, left[:, :, :1] @ right[:, :, :1].mT, atol=1e-12)


def overshooting(by: float, dtype: torch.dtype) -> Tensor:
    """Singular values from 0.1 to 1 + by, with a gap below the top one; the last matrix stays below 1."""
    left, right = torch.linalg.qr(random(2, 24, 16)).Q, torch.linalg.qr(random(2, 16, 16, seed=1)).Q
    values = torch.linspace(0.1, 0.9, 16, dtype=F64).repeat(2, 1)
    values[0, -1] = 1 + by
    return ((left * values[:, None, :]) @ right.mT).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (F32, 1e-5)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("by", [0.001, 0.1, 0.29, 2.0])
def test_the_soft_cap_takes_the_largest_to_cap_by_the_papers_polynomial(
    dtype: torch.dtype, tolerance: float, transposed: bool, by: float
) -> None:
    blocks = overshooting(by, dtype)
    blocks = blocks.mT if transposed else blocks
    capped = constrain(blocks, 1.0, "soft")
    top = min(1 + by, 1.3)
    # The root that the paper solves for: k - 3 a^2 k^5 + 3 a^3 k^7 - a^4 k^9 = cap.
    found = [
        root.real
        for root in np.roots([-(top**9), 3 * top**7, -3 * top**5, 0.0, top - 1.0])
        if abs(root.imag) < 1e-6 and 0 < root.real <= 1 / top**2
    ]
    strength = min(found)

    def soft(values: Tensor) -> Tensor:
        x = values * top / (1 + by)
        x = x - strength * x**3
        return x + strength * x**3

    assert relative(capped[:1], mapped(blocks[:1].to(F64), soft)) < tolerance
    assert torch.linalg.matrix_norm(capped[0].to(F64), 2).item() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(capped[1], blocks[1])


def test_the_soft_cap_keeps_the_order_of_singular_values() -> None:
    left, right = torch.linalg.qr(random(1, 40, 40)).Q, torch.linalg.qr(random(1, 40, 40, seed=1)).Q
    values = torch.linspace(0.1, 1.3, 40, dtype=F64)
    capped = constrain((left * values) @ right.mT, 1.0, "soft")
    after = (left.mT @ capped @ right)[0].diagonal()
    assert (after.diff() > 0).all()
    assert after[-1].item() == pytest.approx(1.0, abs=1e-2)  # the top two are 3% apart


@pytest.mark.parametrize("method", ["hard", "soft", "normalise", "hammer"])
def test_zero_and_empty_weights_stay_as_they_are(method: str) -> None:
    assert torch.equal(constrain(torch.zeros(2, 3, 4), 1.0, method), torch.zeros(2, 3, 4))
    assert constrain(torch.zeros(2, 0, 4), 1.0, method).shape == (2, 0, 4)
    assert constrain(random(2, 3, 4).bfloat16(), 1.0, method).dtype == torch.bfloat16


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="cap_method='hrad'; did you mean hard"):
        constrain(torch.zeros(1, 2, 2), 1.0, "hrad")
    with pytest.raises(ConfigError, match="spectral_cap=0"):
        constrain(torch.zeros(1, 2, 2), 0.0)
    with pytest.raises(ConfigError, match="spectral_clip=0"):
        SpectralOptimizer([nn.Parameter(torch.zeros(2, 2))], rule="spectra", spectral_clip=0.0)
