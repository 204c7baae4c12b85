"""ROOT: the outlier clip against torch.quantile and a plain loop, its bound on spikes, and Muon as its limit."""

from __future__ import annotations

import pytest
import torch

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.composition import Step
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.kernels.schedules import KELLER
from rlspec.optim.kernels.shape_fit import fit_quintic
from rlspec.optim.stages.outliers import (
    FITTED,
    clip_outliers,
    fitted_polar,
    magnitude_quantile,
    smallest,
    smallest_by_bits,
)


def random_blocks(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def updates(gradients: torch.Tensor, **settings: object) -> torch.Tensor:
    """What ROOT with lr 1 and adjust_lr none subtracts in every step: (steps, rows, cols)."""
    param = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = SpectralOptimizer([param], lr=1.0, **{"rule": "root", "adjust_lr": "none"} | settings)  # type: ignore[arg-type]
    taken = []
    for gradient in gradients:
        before = param.detach().clone()
        param.grad = gradient.clone()
        optimizer.step()
        taken.append(before - param.detach())
    return torch.stack(taken)


def clip(blocks: torch.Tensor, quantile: float = 0.9) -> torch.Tensor:
    return clip_outliers(blocks, Step({"outlier_quantile": quantile}, 1.0, 1.0, 1, blocks.dtype))


@pytest.fixture
def muons_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FITTED, (8, 12), KELLER)


def polar_factor(matrix: torch.Tensor) -> torch.Tensor:
    """Five steps fitted to the shape, on exact singular values."""
    a, b, c = fit_quintic(*sorted(matrix.shape), 5)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    x = s / s.norm()
    for _ in range(5):
        x = a * x + b * x**3 + c * x**5
    return u @ torch.diag(x) @ vh


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("shape", [(7, 11), (11, 7)])
def test_root_equals_the_papers_formulas(shape: tuple[int, int], nesterov: bool) -> None:
    gradients, ball, expected = random_blocks(5, *shape), torch.zeros(shape).double(), []
    for gradient in gradients:
        ball = 0.9 * ball + gradient
        direction = gradient + 0.9 * ball if nesterov else ball
        limit = torch.quantile(direction.abs(), 0.9)
        outliers = direction.sign() * (direction.abs() - limit).clamp(min=0)
        expected.append(polar_factor(direction - outliers))
    ours = updates(gradients, momentum=0.9, nesterov=nesterov)
    assert (ours - torch.stack(expected)).abs().max() < 1e-12


@pytest.mark.parametrize("quantile", [1e-3, 0.25, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 1, 6), (2, 7, 11), (1, 40, 25)])
def test_the_quantile_is_torchs_where_torch_has_one(shape: tuple[int, ...], quantile: float) -> None:
    blocks = random_blocks(*shape)
    expected = torch.quantile(blocks.abs().flatten(1), quantile, dim=1)
    assert (magnitude_quantile(blocks, quantile) - expected).abs().max() < 1e-14


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.77, 0.9])
def test_the_quantile_is_right_when_magnitudes_repeat(quantile: float) -> None:
    blocks = random_blocks(5, 6, 7).mul(2).round()
    expected = torch.quantile(blocks.abs().flatten(1), quantile, dim=1)
    assert torch.equal(magnitude_quantile(blocks, quantile), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", [1, 2, 30, 41, 42])
def test_selection_by_bits_as_on_cuda_is_exact(dtype: torch.dtype, place: int) -> None:
    magnitudes = random_blocks(6, 42).abs().to(dtype) * torch.logspace(-37, 37, 6).to(dtype)[:, None]
    magnitudes[0, :5] = 0.0
    magnitudes[1, :20] = magnitudes[1, 0]
    expected = magnitudes.sort(dim=1).values[:, place - 1]
    assert torch.equal(smallest_by_bits(magnitudes, place), expected)
    assert torch.equal(smallest(magnitudes, place), expected)


def test_the_quantile_of_a_large_block_is_within_a_part_in_ten_thousand_of_torchs() -> None:
    blocks = random_blocks(2, 300, 400)
    expected = torch.quantile(blocks.abs().flatten(1), 0.9, dim=1)
    assert ((magnitude_quantile(blocks, 0.9) - expected) / expected).abs().max() < 1e-4
    assert clip(blocks).abs().amax() <= expected.max()


def test_clipped_and_outliers_add_up_to_the_momentum_and_a_tenth_is_touched() -> None:
    blocks = random_blocks(3, 20, 30)
    clipped, limit = clip(blocks), torch.quantile(blocks.abs().flatten(1), 0.9, dim=1)[:, None, None]
    outliers = blocks.sign() * (blocks.abs() - limit).clamp(min=0)
    assert (clipped + outliers - blocks).abs().max() < 1e-14
    assert ((clipped != blocks).sum((1, 2)) == 60).all()


def test_every_block_has_a_quantile_of_its_own() -> None:
    blocks = random_blocks(2, 8, 9) * torch.tensor([1.0, 1e3]).double()[:, None, None]
    assert torch.equal(clip(blocks), torch.cat([clip(blocks[:1]), clip(blocks[1:])]))


@pytest.mark.usefixtures("muons_coefficients")
def test_without_outliers_root_is_muon() -> None:
    gradients = random_blocks(1, 8, 12).sign()
    assert (updates(gradients) - updates(gradients, rule="muon")).abs().max() < 1e-13


@pytest.mark.usefixtures("muons_coefficients")
def test_without_clipping_root_is_muon_with_heavy_ball_momentum() -> None:
    gradients = random_blocks(4, 8, 12)
    muon = updates(gradients, rule="muon", momentum=0.95)
    assert (updates(gradients, outlier_quantile=1.0) - muon).abs().max() < 1e-12


def test_one_spike_changes_roots_update_boundedly_where_muon_follows_it_alone() -> None:
    gradients = random_blocks(1, 24, 32)
    spiked = gradients.clone()
    spiked[0, 3, 5] = 1e6
    moved = (updates(spiked) - updates(gradients)).norm() / updates(gradients).norm()
    muon = updates(gradients, rule="muon")
    moved_muon = (updates(spiked, rule="muon") - muon).norm() / muon.norm()
    assert moved < 0.25
    assert moved_muon > 0.9
    assert (updates(spiked) - updates(spiked.clamp(max=1e3))).norm() < 1e-12


def test_a_block_that_is_nearly_all_zeros_is_not_clamped_to_nothing() -> None:
    sparse = torch.zeros(1, 10, 12, dtype=torch.float64)
    sparse[0, 2, 3] = -4.0
    assert torch.equal(clip(sparse), sparse)
    assert updates(sparse)[0, 2, 3] < -0.5
    assert not updates(torch.zeros(1, 10, 12).double()).any()


def test_root_commutes_with_signed_permutations_and_with_no_rotation() -> None:
    gradients = random_blocks(3, 8, 12)
    plain = updates(gradients)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    permuted = torch.eye(8, dtype=torch.float64)[order] * random_blocks(8).sign()
    rotated = torch.linalg.qr(random_blocks(8, 8, seed=2))[0]
    assert (updates(permuted @ gradients) - permuted @ plain).abs().max() < 1e-12
    assert (updates(rotated @ gradients) - rotated @ plain).abs().max() > 0.05


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e4, 1e20])
def test_root_takes_the_same_steps_at_every_scale_of_the_gradient(scale: float) -> None:
    gradients = random_blocks(3, 8, 12).float()
    ours = updates(gradients * scale, compute_dtype="float32")
    assert (ours - updates(gradients, compute_dtype="float32")).abs().max() < 1e-4


def test_published_shapes_use_their_fitted_coefficients_in_either_orientation(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = FITTED[2048, 8192]
    monkeypatch.setitem(FITTED, (6, 9), fitted)
    for blocks in (frobenius(random_blocks(1, 6, 9), torch.float64), frobenius(random_blocks(1, 9, 6), torch.float64)):
        ours = fitted_polar(blocks, Step({"ns_steps": 5}, 1.0, 1.0, 1, torch.float64))
        assert torch.equal(ours, newton_schulz(blocks, (fitted,) * 5))
        assert not torch.allclose(ours, newton_schulz(blocks, (KELLER,) * 5))


@pytest.mark.parametrize(("shape", "share"), [(shape, 0.05 * (shape == (2048, 2048))) for shape in sorted(FITTED)])
def test_fitted_coefficients_keep_spectra_near_one_but_for_one_shapes_published_slip(
    shape: tuple[int, int], share: float
) -> None:
    x = torch.linspace(0.01, 1, 20000, dtype=torch.float64)
    a, b, c = FITTED[shape]
    for _ in range(5):
        x = a * x + b * x**3 + c * x**5
    assert x.min() > 0.77
    assert (x > 1.23).double().mean() <= share
    assert x.max() < 3.32


@pytest.mark.parametrize("quantile", [0.0, -0.1, 1.5])
def test_a_quantile_that_cannot_work_is_refused_by_name(quantile: float) -> None:
    with pytest.raises(ConfigError, match="outlier_quantile"):
        updates(random_blocks(1, 4, 4), outlier_quantile=quantile)
