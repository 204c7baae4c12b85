"""Step lengths, and what a new line of the table takes."""

from __future__ import annotations

import math

import pytest
import torch
from rule_cases import ALONE, change, in_both_arithmetics, matrices, set_gradients
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import RULES, SpectralOptimizer
from rlspec.optim.composition import Buffer, Rule, Step, ema, stage
from rlspec.optim.rules import register
from rlspec.optim.stages.filters import normalise, polar
from rlspec.optim.stages.scale import step_scale


@pytest.mark.parametrize("rule", ["muon", "pion"])
def test_heads_on_columns_are_heads_on_rows_of_the_transpose(rule: str, arithmetic: torch.dtype) -> None:
    rows, columns = matrices((8, 12)), [nn.Parameter(matrices((8, 12))[0].detach().T.clone())]
    set_gradients(rows, decay=0.9)
    columns[0].grad = rows[0].grad.T.clone()
    expected = change(rule, rows, num_heads=4, head_axis=0)[0]
    result = change(rule, columns, num_heads=4, head_axis=1)[0]
    # The transposed products sum in another order, which Keller's steps amplify; misplaced heads differ by 1 and more.
    assert float((result - expected.T).norm() / expected.norm()) < 64 * torch.finfo(arithmetic).eps


def rms(tensor: torch.Tensor) -> float:
    return tensor.square().mean().sqrt().item()


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_matched_by_rms_a_full_polar_factor_has_rms_one_fifth(shape: tuple[int, int], arithmetic: torch.dtype) -> None:
    params = matrices(shape)
    params[0].grad = torch.randn(shape)
    # Every singular value ends at 1 but for the last product's rounding, half an eps each.
    expected = pytest.approx(0.2, rel=torch.finfo(arithmetic).eps)
    assert rms(change("muon", params, schedule="polar_express", ns_steps=12)[0]) == expected


@pytest.mark.parametrize(("rank", "promotion_steps"), [(1, 0), (2, 1), (5, 2), (16, 5)])
def test_matched_by_rms_pion_has_rms_one_fifth_however_many_directions_pass(rank: int, promotion_steps: int) -> None:
    q = torch.linalg.qr(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)))[0]
    params = matrices((16, 40))
    params[0].grad = torch.linalg.qr(torch.randn(16, 16))[0][:, :rank] @ q.T[:rank]
    assert rms(change("pion", params, promotion_steps=promotion_steps)[0]) == pytest.approx(0.2, rel=2e-2)


@pytest.mark.parametrize("heads", [1, 2])
def test_matched_by_spectral_norm_pions_one_direction_moves_as_far_as_muons_and_by_rms_further(heads: int) -> None:
    shape = (32, 48)
    size = shape[0] // heads
    one_direction = torch.outer(torch.ones(32), torch.randn(48, generator=torch.Generator().manual_seed(0)))
    furthest = {}
    for mode in ("match_rms_adamw", "match_spectral_adamw"):
        params = matrices(shape, dtype=torch.float64)
        params[0].grad = one_direction.double()
        (delta,) = change("pion", params, num_heads=heads, adjust_lr=mode)
        furthest[mode] = [float(torch.linalg.matrix_norm(head, 2)) for head in delta.chunk(heads)]
    muons = 0.2 * math.sqrt(48)
    assert furthest["match_spectral_adamw"] == pytest.approx([muons] * heads, rel=1e-6)
    assert furthest["match_rms_adamw"] == pytest.approx([muons * math.sqrt(size)] * heads, rel=1e-6)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("rule", [name for name in ALONE if RULES[name].length in ("full_rank", "measured")])
def test_matched_by_spectral_norm_no_direction_moves_further_than_muons(rule: str, shape: tuple[int, int]) -> None:
    muons_own = 1.21 if RULES[rule].bounded or rule == "root" else 1.05  # Keller's overshoot; or the estimate's error
    settings: dict[str, float] = {"rank": 3} if rule == "low_rank_muon" else {}
    for decay in (0.5, 1.0):  # few directions, and all
        params = matrices(shape)
        set_gradients(params, decay=decay)
        (delta,) = change(rule, params, adjust_lr="match_spectral_adamw", promotion_steps="auto", **settings)
        assert 0 < float(torch.linalg.matrix_norm(delta, 2)) <= muons_own * 0.2 * math.sqrt(40)


def test_muon_is_as_long_matched_by_spectral_norm_as_by_rms() -> None:
    deltas = []
    for mode in ("match_rms_adamw", "match_spectral_adamw"):
        params = matrices((8, 12))
        set_gradients(params)
        deltas += change("muon", params, adjust_lr=mode)
    assert torch.equal(*deltas)


@in_both_arithmetics
def test_a_nearly_shut_gate_is_not_amplified() -> None:
    params = matrices((32, 64))
    params[0].grad = torch.randn(32, 64)
    assert rms(change("pion", params, promotion_steps=0)[0]) < 1e-10


def test_the_papers_step_is_s_times_the_root_of_the_longer_side_of_a_block(arithmetic: torch.dtype) -> None:
    params = matrices((8, 30))
    params[0].grad = torch.outer(torch.ones(8), torch.ones(30))
    delta = change("pion", params, adjust_lr="paper", paper_scale=2.0, num_heads=2)[0]
    for head in delta.chunk(2):
        # Entries of the normalised head are rounded to half an eps, and the filter's fixed point is flat.
        expected = pytest.approx(2.0 * math.sqrt(30), rel=4 * torch.finfo(arithmetic).eps)
        assert torch.linalg.matrix_norm(head, 2).item() == expected


@pytest.mark.parametrize(
    ("mode", "rows", "cols", "expected"),
    [
        ("original", 8, 2, 2.0),
        ("original", 2, 8, 1.0),
        ("spectral", 2, 8, 0.5),
        ("match_rms_adamw", 4, 25, 1.0),
        ("match_spectral_adamw", 4, 25, 1.0),
        ("paper", 4, 9, 15.0),
        ("none", 4, 9, 1.0),
    ],
)
def test_scale_laws(mode: str, rows: int, cols: int, expected: float) -> None:
    factor, per_block = step_scale(mode, rows, cols)
    assert factor == pytest.approx(expected)
    assert per_block is None


def test_an_unknown_mode_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean match_rms_adamw"):
        step_scale("match_rms_adam", 2, 2)


@stage(buffers=lambda rows, cols, settings: {"row_moment": Buffer((rows, 1))})
def even_rows(blocks: Tensor, step: Step, *, row_beta: float = 0.9) -> Tensor:
    """Divide each row by the root of its running mean square, keep the norm (NorMuon, arXiv 2510.05491)."""
    step.state["row_moment"] = step.state["row_moment"].lerp(blocks.square().mean(2, keepdim=True), 1 - row_beta)
    rows = blocks / step.state["row_moment"].sqrt().clamp(min=1e-30)
    norms = [torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True) for tensor in (blocks, rows)]
    return rows * norms[0] / norms[1]


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_stage_of_ones_own_works_whatever_the_arithmetic_before_it(compute_dtype: str, dtype: torch.dtype) -> None:
    seen = []

    @stage()
    def watch(blocks: Tensor, step: Step) -> Tensor:
        seen.append(blocks.dtype)
        return blocks

    rule = register(Rule("watched", "a test", (normalise, even_rows, polar, watch, even_rows), "S x O", ema))
    try:
        params = matrices((8, 12), dtype=dtype)
        set_gradients(params)
        optimizer = SpectralOptimizer(params, rule="watched", compute_dtype=compute_dtype)
        optimizer.step()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert [*seen, optimizer.state[params[0]]["row_moment"].dtype] == [wide, wide]
    finally:
        del RULES[rule.name]


@in_both_arithmetics
def test_a_new_rule_is_one_line_even_with_a_second_moment() -> None:
    rule = register(Rule("rows", "a test", (normalise, polar, even_rows), "S x O", ema))
    try:
        assert rule.state_values(2, 4, 12, {}) == 2 * 4 * 12 + 2 * 4
        assert rule.options["row_beta"] == 0.9
        params, plain = matrices((8, 12), (8, 12)), matrices((8, 12), (8, 12))
        set_gradients(params)
        set_gradients(plain)
        deltas = change("rows", params, num_heads=2, row_beta=0.5)
        for delta, muon in zip(deltas, change("muon", plain, num_heads=2), strict=True):
            for rows, filtered in zip(delta.chunk(2), muon.chunk(2), strict=True):
                assert rows.norm().item() == pytest.approx(filtered.norm().item(), rel=1e-5)
                assert torch.allclose(rows.norm(dim=1), rows.norm(dim=1).mean().expand(4), rtol=1e-5)
        with pytest.raises(ConfigError, match="there is a rule 'rows' already"):
            register(rule)
    finally:
        del RULES["rows"]
