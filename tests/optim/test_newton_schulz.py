"""Schedules against the published bands, normalisation at extreme scales, the stable rank against an SVD."""

from __future__ import annotations

import pytest
import torch

from rlspec.optim.newton_schulz import (
    PROMOTION,
    SUPPRESSION,
    frobenius,
    high_pass_schedule,
    keller,
    newton_schulz,
    polar_express,
    stable_rank,
    transfer,
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
