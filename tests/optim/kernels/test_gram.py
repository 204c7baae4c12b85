"""Symmetric products against whole ones, the Gram iteration against the standard one and a float64 SVD."""

from __future__ import annotations

import pytest
import torch

from rlspec.optim.kernels.gram import (
    cuts,
    gram_iteration,
    multiply_adds,
    restart_steps,
    short_gram,
    standard_iteration,
    strip_rows,
    symmetric_product,
    symmetric_share,
)
from rlspec.optim.kernels.newton_schulz import choose_method, newton_schulz
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.kernels.schedules import SCHEDULES, high_pass_schedule, keller, polar_express, transfer

SIZES = [(256, 300), (260, 257), (384, 500), (512, 512), (257, 300), (64, 80)]


def random_blocks(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_spectrum(kind: str, rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One float64 matrix with unit Frobenius norm and its SVD."""
    short = min(rows, cols)
    s = {
        "gaussian": torch.linalg.svdvals(random_blocks(rows, cols)),
        "seven decades": torch.logspace(0, -7, short, dtype=torch.float64),
        "four directions": torch.cat([torch.ones(4), torch.full((short - 4,), 1e-9)]).double(),
    }[kind]
    u, v = (torch.linalg.qr(random_blocks(size, short, seed=seed))[0] for size, seed in ((rows, 1), (cols, 2)))
    s = s / s.norm()
    return ((u * s) @ v.T)[None], u, s, v


def error(result: torch.Tensor, u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, schedule) -> float:
    """In spectral norm, against the schedule on the exact singular values."""
    return torch.linalg.matrix_norm(result[0].double() - (u * transfer(s, schedule)) @ v.T, 2).item()


@pytest.mark.parametrize(("rows", "inner"), SIZES)
def test_a_symmetric_product_is_the_whole_product_and_exactly_symmetric_off_its_diagonal_blocks(rows, inner) -> None:
    left = random_blocks(3, rows, inner)
    result = symmetric_product(left, left.mT)
    assert torch.allclose(result, left @ left.mT, rtol=0, atol=1e-11)
    for cut in range(strip_rows(rows), rows, strip_rows(rows)):
        assert torch.equal(result[:, :cut, cut:], result[:, cut:, :cut].mT)


@pytest.mark.parametrize("rows", [256, 300, 512])
def test_only_the_strips_of_the_upper_triangle_are_multiplied(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def counting(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        counted.append(left.numel() * right.shape[-1])
        return bmm(left, right, out=out)

    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", counting)
    left = random_blocks(1, rows, 40)
    symmetric_product(left, left.mT)
    assert sum(counted) == symmetric_share(rows) * rows * rows * 40
    assert symmetric_share(rows) < 0.7


@pytest.mark.parametrize("shape", [(2, 300, 512), (2, 512, 300), (2, 700, 256), (1, 256, 256)])
def test_the_gram_matrix_of_the_short_side_whatever_the_strides(shape: tuple[int, ...]) -> None:
    blocks = random_blocks(*shape)
    expected = blocks.mT @ blocks if shape[1] > shape[2] else blocks @ blocks.mT
    for view in (blocks, blocks.mT.contiguous().mT, torch.stack([blocks, blocks], -1)[..., 0]):
        assert torch.allclose(short_gram(view), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("schedule", [*(make(5) for make in SCHEDULES.values()), high_pass_schedule(2)])
@pytest.mark.parametrize("shape", [(2, 24, 70), (2, 70, 24), (2, 256, 264), (3, 1, 5), (2, 16, 16)])
def test_in_float64_gram_and_standard_agree_to_1e_12(schedule, shape: tuple[int, ...]) -> None:
    blocks = frobenius(random_blocks(*shape), torch.float64)
    standard, gram = (newton_schulz(blocks, schedule, method=method) for method in ("standard", "gram"))
    assert (standard - gram).abs().max() < 1e-12


KELLER, EXPRESS, PION = "keller", "polar_express", "pion k_p=5"


# Largest errors in spectral norm; those of the docstring of `restart_steps`, with room for other seeds.
@pytest.mark.parametrize("kind", ["gaussian", "seven decades", "four directions"])
@pytest.mark.parametrize(
    ("dtype", "tolerances"),
    [
        (torch.float64, {KELLER: 1e-12, EXPRESS: 1e-12, PION: 1e-12}),
        (torch.float32, {KELLER: 4e-4, EXPRESS: 6e-4, PION: 3e-5}),
        (torch.float16, {KELLER: 0.1, EXPRESS: 0.25, PION: 0.02}),
        (torch.bfloat16, {KELLER: 0.6, EXPRESS: 1.0, PION: 0.05}),
    ],
)
def test_auto_stays_within_the_stated_error_of_a_float64_svd(kind: str, dtype: torch.dtype, tolerances: dict) -> None:
    block, *svd = with_spectrum(kind, 64, 256)
    for name, schedule in ((KELLER, keller()), (EXPRESS, polar_express()), (PION, high_pass_schedule(5))):
        assert error(newton_schulz(block.to(dtype), schedule), *svd, schedule) < tolerances[name]


def test_on_gaussian_matrices_float32_is_far_more_accurate_than_the_bound() -> None:
    block, *svd = with_spectrum("gaussian", 64, 256)
    for schedule in (keller(), polar_express(), high_pass_schedule(3)):
        assert error(newton_schulz(block.float(), schedule, method="gram"), *svd, schedule) < 1e-4


def test_without_restarts_keller_would_be_wrong_in_float32() -> None:
    """The negative control of `restart_steps`."""
    block, *svd = with_spectrum("four directions", 256, 512)
    assert error(gram_iteration(block.float(), keller()), *svd, keller()) > 3e-3
    assert error(gram_iteration(block.float(), keller(), (2,)), *svd, keller()) < 4e-4


def test_where_the_gram_iteration_restarts() -> None:
    for schedule in (keller(), polar_express()):
        assert restart_steps(schedule, torch.float32) == (2,)
        assert restart_steps(schedule, torch.float64) == restart_steps(schedule, torch.float16) == (1, 3)
        assert restart_steps(schedule, torch.bfloat16) == (1, 2, 3, 4)
    for k_p in range(6):
        assert restart_steps(high_pass_schedule(k_p), torch.float32) == ()
        assert restart_steps(high_pass_schedule(k_p), torch.bfloat16) == tuple(range(1, min(k_p, 4) + 1))
    per_block = [(torch.ones(2, 1, 1),) * 3] * 5
    assert restart_steps(per_block, torch.float32) == ()
    assert restart_steps((), torch.float32) == ()


def test_coefficients_that_differ_between_blocks_do_in_both_methods() -> None:
    blocks = frobenius(random_blocks(2, 256, 300), torch.float64)
    schedules = high_pass_schedule(1), keller()
    mixed = [
        tuple(torch.tensor(pair, dtype=torch.float64)[:, None, None] for pair in zip(*steps, strict=True))
        for steps in zip(*schedules, strict=True)
    ]
    for method in ("standard", "gram"):
        together = newton_schulz(blocks, mixed, method=method)
        for index, schedule in enumerate(schedules):
            alone = newton_schulz(blocks[index : index + 1], schedule, method=method)
            assert (together[index] - alone[0]).abs().max() < 1e-11


def test_a_known_gram_matrix_saves_computing_it_and_changes_nothing() -> None:
    blocks = frobenius(random_blocks(2, 20, 50), torch.float64)
    for run in (standard_iteration, gram_iteration):
        assert torch.equal(run(blocks, keller(), gram=short_gram(blocks)), run(blocks, keller()))
    assert not gram_iteration(blocks, keller(), gram=torch.zeros(2, 20, 20).double()).equal(blocks)


def test_no_steps_are_the_identity() -> None:
    blocks = random_blocks(2, 4, 9)
    for method in ("standard", "gram", "auto"):
        assert torch.equal(newton_schulz(blocks, (), method=method), blocks)


@pytest.mark.parametrize("method", ["standard", "gram"])
def test_inputs_are_never_mutated(method: str) -> None:
    blocks = frobenius(random_blocks(2, 256, 280, dtype=torch.float32), torch.float32)
    gram = short_gram(blocks)
    before = blocks.clone(), gram.clone()
    for schedule in (keller(), high_pass_schedule(0)):
        newton_schulz(blocks, schedule, method=method, gram=gram)
    assert torch.equal(blocks, before[0])
    assert torch.equal(gram, before[1])


def test_counts_of_multiplications() -> None:
    """Five steps in units of short^3: the reference's 10 n/m + 5 against 2 n/m + 17, whole products."""
    for ratio in (1, 2, 8):
        unit = 128**3
        assert multiply_adds(128, 128 * ratio, 5, "standard") == (10 * ratio + 5) * unit
        assert multiply_adds(128 * ratio, 128, 5, "gram") == (2 * ratio + 17) * unit
        assert multiply_adds(128, 128 * ratio, 5, "gram", 1) == (4 * ratio + 14) * unit
    assert symmetric_share(128) == 1.0
    assert symmetric_share(1024) == 0.5625
    assert multiply_adds(1024, 1024, 1, "standard") == (2 * 0.5625 + 1) * 1024**3
    assert multiply_adds(1024, 1024, 1, "standard", cut=False) == 3 * 1024**3


def test_auto_takes_the_method_that_multiplies_less() -> None:
    def chosen(rows: int, cols: int, schedule, dtype: torch.dtype = torch.float32) -> str:
        return choose_method(torch.empty(2, rows, cols, dtype=dtype), schedule)

    assert chosen(1024, 1024, keller()) == chosen(1024, 1024, high_pass_schedule(0)) == "standard"
    assert chosen(3072, 1024, keller()) == chosen(128, 1024, high_pass_schedule(0)) == "gram"
    assert chosen(3072, 1024, keller(), torch.bfloat16) == "standard"
    assert chosen(128, 1024, high_pass_schedule(0), torch.bfloat16) == "gram"
    assert not cuts(torch.empty(1, 4, 4, dtype=torch.bfloat16))


def test_a_new_block_beside_others_changes_no_bits() -> None:
    blocks = frobenius(random_blocks(4, 256, 600, dtype=torch.float32), torch.float32)
    for schedule in (keller(), high_pass_schedule(1)):
        together = newton_schulz(blocks, schedule)
        assert torch.equal(together, torch.cat([newton_schulz(block[None], schedule) for block in blocks]))
