"""Schedules against the published bands, normalisation at extreme scales, the stable rank against an SVD."""

from __future__ import annotations

import pytest
import torch

from rlspec.optim.kernels.gram import short_gram
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import NORMALISERS, frobenius, stable_rank
from rlspec.optim.kernels.schedules import (
    PROMOTION,
    SCHEDULES,
    SUPPRESSION,
    deepseek_v4,
    high_pass_schedule,
    keller,
    polar_express,
    transfer,
    turbo_muon,
)

X = torch.linspace(0, 1, 4001, dtype=torch.float64)


def random_blocks(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_keller_lifts_everything_above_a_hundredth_into_its_band() -> None:
    lifted = transfer(X[X >= 0.01], keller())
    assert lifted.min() == pytest.approx(0.6818, abs=2e-3)
    assert lifted.max() == pytest.approx(1.1344, abs=2e-3)


@pytest.mark.parametrize(("steps", "error"), [(5, 0.124), (6, 1.2e-3), (7, 1.0e-9)])
def test_polar_express_without_safety_converges_as_published(steps: int, error: float) -> None:
    x = torch.logspace(-3, 0, 4001, dtype=torch.float64)
    assert (transfer(x, polar_express(steps, safety=1.0)) - 1).abs().max() == pytest.approx(error, rel=0.1)


def test_the_safety_factor_divides_the_argument_of_all_but_the_last_step() -> None:
    damped, raw = polar_express(5, safety=1.05), polar_express(5, safety=1.0)
    x = torch.tensor([0.3, 1.04], dtype=torch.float64)
    assert torch.allclose(transfer(x, damped[:1]), transfer(x / 1.05, raw[:1]), rtol=1e-14)
    assert damped[-1] == raw[-1]


def test_the_constraints_that_define_pions_polynomials() -> None:
    for a, b, c in (PROMOTION, SUPPRESSION):
        assert a + b + c == 1.0
        assert a + 3 * b + 5 * c == 0.0
    assert SUPPRESSION[0] == 0.0
    fixed = torch.tensor([(2 / 3) ** 0.5], dtype=torch.float64)
    assert torch.allclose(transfer(fixed, (SUPPRESSION,)), fixed, rtol=1e-15)


# Values of reference table F_{k_p}(x); independent of this code.
@pytest.mark.parametrize(
    ("promotion_steps", "x", "expected"),
    [
        (0, 0.75, 0.0132),
        (0, 0.80, 0.542),
        (1, 0.50, 0.591),
        (2, 0.25, 0.349),
        (3, 0.10, 0.154),
        (4, 0.05, 0.358),
        (5, 0.01, 0.228),
    ],
)
def test_transfer_of_the_high_pass_schedule(promotion_steps: int, x: float, expected: float) -> None:
    value = transfer(torch.tensor(x, dtype=torch.float64), high_pass_schedule(promotion_steps))
    assert value.item() == pytest.approx(expected, rel=6e-3)


@pytest.mark.parametrize("schedule", [keller(), polar_express(), high_pass_schedule(2)])
@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (2, 9, 9), (2, 1, 7), (2, 7, 1)])
def test_the_iteration_is_the_transfer_function_of_an_svd(schedule: tuple, shape: tuple[int, ...]) -> None:
    blocks = frobenius(random_blocks(*shape), torch.float64)
    u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
    expected = u @ torch.diag_embed(transfer(s, schedule)) @ vh
    assert torch.allclose(newton_schulz(blocks, schedule), expected, rtol=0, atol=1e-12)


def test_a_batch_gives_the_same_bits_as_one_block_at_a_time() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        blocks = frobenius(random_blocks(5, 16, 40), dtype)
        together = newton_schulz(blocks, keller())
        assert torch.equal(together, torch.cat([newton_schulz(block[None], keller()) for block in blocks]))


@pytest.mark.parametrize("method", ["standard", "gram"])
@pytest.mark.parametrize("shape", [(2, 40, 90), (1, 300, 256)])
def test_bfloat16_through_float32_multiplies_nothing_else_and_rounds_as_bfloat16_does(
    method: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, schedule = frobenius(random_blocks(*shape), torch.bfloat16), high_pass_schedule(4)
    results, bmm = {}, torch.bmm
    met: set[torch.dtype] = set()
    for slow in (False, True):
        for module in ("gram", "newton_schulz"):
            monkeypatch.setattr(
                f"rlspec.optim.kernels.{module}.multiplies_slowly", lambda x, s=slow: s and x.dtype == torch.bfloat16
            )
        met.clear()
        monkeypatch.setattr(torch, "bmm", lambda left, *rest, **out: met.add(left.dtype) or bmm(left, *rest, **out))
        results[slow] = newton_schulz(blocks, schedule, method=method).double()
        assert met == ({torch.float32} if slow else {torch.bfloat16})
    exact = newton_schulz(blocks.double(), schedule)
    errors = [(results[slow] - exact).norm() / exact.norm() for slow in (False, True)]
    assert 0.5 < errors[1] / errors[0] < 1.5


def test_inputs_are_never_mutated() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        blocks = random_blocks(2, 6, 9).to(dtype)
        before = blocks.clone()
        newton_schulz(frobenius(blocks, dtype), keller())
        newton_schulz(blocks, high_pass_schedule(1))
        stable_rank(blocks)
        assert torch.equal(blocks, before)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-7, 1.0, 1e20, 1e37])
def test_frobenius_gives_unit_norm_at_any_scale_of_float32(scale: float) -> None:
    blocks = random_blocks(2, 5, 8, dtype=torch.float32) * scale
    norms = torch.linalg.vector_norm(frobenius(blocks, torch.float32), dim=(1, 2))
    assert torch.allclose(norms, torch.ones(2), rtol=1e-6)


def test_a_block_beside_one_of_extreme_size_is_normalised_as_it_is_alone() -> None:
    blocks = random_blocks(3, 5, 8, dtype=torch.float32) * torch.tensor([1e-14, 1.0, 1e30])[:, None, None]
    blocks[0, 0] *= 1e-6
    together = frobenius(blocks, torch.float32)
    assert torch.equal(together, torch.cat([frobenius(block[None], torch.float32) for block in blocks]))
    assert together[0, 0].all()


def test_an_all_zero_block_stays_zero_beside_others() -> None:
    blocks = random_blocks(2, 5, 8)
    blocks[0] = 0
    normalised = frobenius(blocks, torch.float32)
    assert not normalised[0].any()
    assert stable_rank(normalised).tolist() == [0.0, pytest.approx(stable_rank(normalised[1:]).item())]


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (1, 9), (32, 128)])
def test_stable_rank_against_an_svd(shape: tuple[int, int]) -> None:
    blocks = frobenius(random_blocks(4, *shape), torch.float64)
    top = torch.linalg.svdvals(blocks)[:, 0]
    measured = stable_rank(blocks)
    assert (measured >= top**-2 * (1 - 1e-12)).all()  # never too small
    assert torch.allclose(measured, top**-2, rtol=0.05)


def test_stable_rank_of_equal_directions_is_their_number() -> None:
    q = torch.linalg.qr(random_blocks(1, 30, 7))[0]
    assert stable_rank(frobenius(q, torch.float64)).item() == pytest.approx(7, rel=1e-12)


BANDS = {
    "keller": (5, 0.6818, 1.1344),
    "quintic": (5, 0.2285, 1.0),
    "polar_express": (5, 0.8695, 1.1244),
    "nanogpt_polar_express": (5, 0.8589, 1.1411),
    "you": (5, 0.9778, 1.0318),
    "cans": (5, 0.8844, 1.1198),
    "turbo_muon": (4, 0.8659, 1.0844),
    "deepseek_v4": (10, 1.0, 1.0005),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_lifts_a_hundredth_and_more_into_its_band(name: str) -> None:
    steps, low, high = BANDS[name]
    x = torch.linspace(0.0118, 1, 200001, dtype=torch.float64)
    lifted = transfer(x, SCHEDULES[name](steps))
    assert low - 2e-3 < lifted.min() < low + 0.04
    assert high - 2e-3 < lifted.max() < high + 2e-3


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_on_a_matrix_is_its_transfer_on_a_float64_svd_and_stays_so_in_bf16(name: str) -> None:
    schedule = SCHEDULES[name](5)
    blocks = frobenius(random_blocks(2, 30, 50), torch.float64)
    u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
    expected = u @ torch.diag_embed(transfer(s, schedule)) @ vh
    assert (newton_schulz(blocks, schedule) - expected).abs().max() < 1e-12
    for dtype, tolerance in ((torch.float32, 2e-3), (torch.bfloat16, 0.4)):
        error = torch.linalg.matrix_norm(newton_schulz(blocks.to(dtype), schedule).double() - expected, 2)
        assert error.max() < tolerance


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_longer_schedule_converges_further(name: str) -> None:
    x = torch.linspace(0.05, 1, 999, dtype=torch.float64)
    published = BANDS[name][0]
    errors = [(transfer(x, SCHEDULES[name](steps)) - 1).abs().max() for steps in (published, published + 3)]
    assert name in ("keller", "deepseek_v4") or errors[1] < 0.1 * errors[0]
    assert len(SCHEDULES[name](published + 3)) == published + 3
    assert SCHEDULES[name](0) == ()


def test_deepseek_v4_ends_in_two_stabilising_steps_however_many_there_are() -> None:
    assert deepseek_v4(10) == keller(8) + ((2.0, -1.5, 0.5),) * 2
    assert deepseek_v4(5)[:3] == keller(3)
    assert deepseek_v4(1) == ((2.0, -1.5, 0.5),)


def test_turbo_muon_as_published_turns_the_largest_singular_values_around_and_ours_does_not() -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert transfer(one, turbo_muon(safety=1.0)).item() < -0.8
    assert transfer(one, turbo_muon()).item() > 0.86


WORKING = [name for name in NORMALISERS if name not in ("none", "torch")]


@pytest.mark.parametrize("name", WORKING)
@pytest.mark.parametrize("scale", [1e-20, 1e-7, 1.0, 1e20])
@pytest.mark.parametrize("shape", [(2, 9, 20), (2, 20, 9), (2, 1, 6), (2, 300, 260)])
def test_normalisers_do_not_see_the_scale_and_do_not_mutate(name: str, scale: float, shape: tuple[int, ...]) -> None:
    blocks = random_blocks(*shape, dtype=torch.float32)
    scaled = blocks * scale
    before = scaled.clone()
    result = NORMALISERS[name](scaled, torch.float32)
    assert torch.equal(scaled, before)
    assert torch.allclose(result, NORMALISERS[name](blocks, torch.float32), rtol=1e-5, atol=1e-7)
    assert NORMALISERS[name](blocks, torch.bfloat16).dtype == torch.bfloat16


def test_what_the_normalisers_make_one() -> None:
    blocks = random_blocks(3, 12, 40) * 0.8 ** torch.arange(40)
    values = {name: torch.linalg.svdvals(NORMALISERS[name](blocks, torch.float64)) for name in NORMALISERS}
    assert torch.allclose(values["frobenius"].square().sum(1), torch.ones(3).double())
    assert torch.allclose(values["schatten4"].pow(4).sum(1), torch.ones(3).double())
    assert torch.allclose(values["spectral"][:, 0], torch.full((3,), 1 / 1.02).double(), rtol=5e-3)
    assert (values["aol"][:, 0] <= 1 + 1e-12).all()
    assert (values["aol"][:, 0] > 0.5).all()
    assert torch.equal(NORMALISERS["none"](blocks, torch.float64), blocks)


@pytest.mark.parametrize("shape", [(12, 40), (128, 1024), (64, 64)])
def test_the_spectral_normaliser_on_noise_leaves_nothing_above_the_basin_of_any_schedule(shape) -> None:
    top = torch.linalg.svdvals(NORMALISERS["spectral"](random_blocks(4, *shape), torch.float64))[:, 0]
    assert top.max() < 1.03
    assert top.min() > 0.97


def test_aol_divides_rows_of_wide_and_columns_of_tall_blocks() -> None:
    blocks = random_blocks(2, 5, 11)
    wide = NORMALISERS["aol"](blocks, torch.float64)
    unit = frobenius(blocks, torch.float64)
    expected = unit / (unit @ unit.mT).abs().sum(2, keepdim=True).sqrt()
    assert torch.allclose(wide, expected, rtol=1e-12)
    assert torch.allclose(NORMALISERS["aol"](blocks.mT, torch.float64), wide.mT, rtol=1e-12)


@pytest.mark.parametrize("name", WORKING)
def test_normalisers_leave_zero_blocks_zero(name: str) -> None:
    blocks = random_blocks(2, 5, 8, dtype=torch.float32)
    blocks[1] = 0
    result = NORMALISERS[name](blocks, torch.float32)
    assert result[0].any()
    assert not result[1].any()


def test_a_known_gram_matrix_gives_the_same_stable_rank() -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 0.02)):
        blocks = frobenius(random_blocks(4, 30, 50), dtype)
        assert torch.allclose(stable_rank(blocks, short_gram(blocks)), stable_rank(blocks), rtol=tolerance)
