"""The table of rules: one battery for every line of it, step lengths, and what a new line takes."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim import RULES, SpectralOptimizer
from rlspec.optim.filters import polar
from rlspec.optim.newton_schulz import PROMOTION, keller
from rlspec.optim.rules import Rule, Variance, ema, step_scale

SPECTRAL = [name for name, rule in RULES.items() if rule.spectral]
every_rule = pytest.mark.parametrize("rule", list(RULES))
every_spectral_rule = pytest.mark.parametrize("rule", SPECTRAL)


def matrices(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], seed: int = 1, scale: float = 1.0) -> None:
    """Low stable rank, so that every gate lets something pass."""
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        gradient = torch.randn(param.shape, generator=generator)
        if param.ndim > 1:
            gradient = gradient * 0.3 ** torch.arange(param.shape[-1])
        param.grad = (gradient * scale).to(param.dtype)


def change(rule: str, params: list[nn.Parameter], **settings) -> list[torch.Tensor]:
    before = [param.detach().clone() for param in params]
    SpectralOptimizer(params, rule=rule, **({"lr": 1.0} | settings)).step()
    return [param.detach() - old for param, old in zip(params, before, strict=True)]


@every_rule
def test_gradients_are_never_mutated(rule: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for nesterov in (True, False):
            params = matrices((6, 9), (9, 6), dtype=dtype)
            set_gradients(params)
            before = [param.grad.clone() for param in params]
            change(rule, params, nesterov=nesterov)
            assert all(torch.equal(param.grad, old) for param, old in zip(params, before, strict=True))


@every_rule
def test_zero_gradients_change_nothing(rule: str) -> None:
    params = matrices((6, 9), (9, 6))
    for param in params:
        param.grad = torch.zeros_like(param)
    assert not any(delta.any() for delta in change(rule, params, promotion_steps="auto"))


@every_rule
def test_a_gradient_of_none_is_left_out(rule: str) -> None:
    params = matrices((6, 9), (6, 9))
    set_gradients(params)
    params[0].grad = None
    first, second = change(rule, params, weight_decay=0.1)
    assert not first.any()
    assert second.any()


@every_rule
def test_weight_decay_is_decoupled_and_uses_the_unscaled_lr(rule: str) -> None:
    params = matrices((6, 9))
    params[0].grad = torch.zeros_like(params[0])
    start = params[0].detach().clone()
    change(rule, params, lr=0.5, weight_decay=0.1)
    assert torch.allclose(params[0], start * 0.95, rtol=1e-6)


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_gradient_skips_that_matrix_alone(rule: str, bad: float) -> None:
    params, witness = matrices((6, 9), (6, 9)), matrices((6, 9), (6, 9))
    optimizer = SpectralOptimizer(params, rule=rule, lr=1.0, weight_decay=0.1, role="r")
    reference = SpectralOptimizer(witness, rule=rule, lr=1.0, weight_decay=0.1)
    for step in range(3):
        set_gradients(params, seed=step)
        set_gradients(witness, seed=step)
        if step == 1:
            params[0].grad[2, 3] = bad
            witness[0].grad = None
            with pytest.warns(RuntimeWarning, match="parameter 0 of role r has NaN or Inf"):
                optimizer.step()
        else:
            optimizer.step()
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(params, witness, strict=True))
    assert optimizer.telemetry()["r"]["skipped"] == 1


@every_rule
def test_a_gradient_whose_norm_overflows_is_not_taken_for_a_non_finite_one(rule: str) -> None:
    params = matrices((6, 9))
    params[0].grad = torch.full((6, 9), 3e38)
    optimizer = SpectralOptimizer(params, rule=rule, lr=1.0)
    optimizer.step()
    assert optimizer.telemetry() == {}
    assert len(optimizer.state[params[0]]) > 0


@every_rule
def test_the_same_steps_give_the_same_bits_after_copying_and_pickling(rule: str) -> None:
    params = matrices((6, 9), (9, 6))
    optimizer = SpectralOptimizer(params, rule=rule, lr=0.1, promotion_steps="auto", workspace_bytes=999)
    set_gradients(params)
    optimizer.step()
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    set_gradients(params, seed=2)
    optimizer.step()
    for twin in copies:
        twins = twin.param_groups[0]["params"]
        set_gradients(twins, seed=2)
        twin.step()
        assert twin.workspace_bytes == 999
        assert all(torch.equal(a, b) for a, b in zip(params, twins, strict=True))


@every_spectral_rule
@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e8, 1e20])
def test_the_update_does_not_depend_on_the_gradients_scale(rule: str, scale: float) -> None:
    updates = []
    for factor in (1.0, scale):
        params = matrices((6, 9), (9, 6))
        set_gradients(params, scale=factor)
        updates.append(change(rule, params, promotion_steps=1))
    for plain, scaled in zip(*updates, strict=True):
        assert plain.norm() > 0.1
        assert torch.allclose(plain, scaled, atol=1e-4 * plain.abs().max().item())


@every_spectral_rule
@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1), (5, 2, 3, 3), (0, 4), (7, 7)])
def test_odd_shapes_work(rule: str, shape: tuple[int, ...]) -> None:
    params = matrices(shape)
    set_gradients(params)
    (delta,) = change(rule, params, promotion_steps="auto")
    assert delta.shape == shape
    assert delta.isfinite().all()
    assert bool(delta.any()) == (delta.numel() > 0)


@every_spectral_rule
def test_memory_layout_of_weight_and_gradient_does_not_matter(rule: str) -> None:
    plain = matrices((6, 9))
    strided = [nn.Parameter(plain[0].detach().T.contiguous().T)]
    set_gradients(plain)
    strided[0].grad = torch.stack([plain[0].grad] * 2, -1)[..., 0]
    expected, result = change(rule, plain), change(rule, strided)
    assert torch.allclose(expected[0], result[0], atol=1e-6)


@every_spectral_rule
def test_a_small_workspace_gives_the_same_bits(rule: str) -> None:
    shapes = [(8, 12)] * 5 + [(12, 8)] * 2
    results = []
    for workspace in (1 << 28, 800, 1):
        params = matrices(*shapes)
        set_gradients(params)
        change(rule, params, workspace_bytes=workspace, num_heads=2, promotion_steps="auto")
        results.append([param.detach().clone() for param in params])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@every_spectral_rule
def test_one_head_is_the_whole_matrix_and_heads_are_independent(rule: str) -> None:
    for axis in (0, 1):
        whole, heads, touched = (matrices((8, 12)) for _ in range(3))
        for params in (whole, heads, touched):
            set_gradients(params)
        one = change(rule, whole, num_heads=1, head_axis=axis)[0]
        plain = matrices((8, 12))
        set_gradients(plain)
        assert torch.equal(one, change(rule, plain)[0])
        before = change(rule, heads, num_heads=4, head_axis=axis)[0].chunk(4, axis)
        touched[0].grad.chunk(4, axis)[2].mul_(-3).add_(1)
        after = change(rule, touched, num_heads=4, head_axis=axis)[0].chunk(4, axis)
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, True]
        assert not torch.equal(one, torch.cat(before, axis))


@every_spectral_rule
def test_permuting_heads_permutes_the_update(rule: str) -> None:
    params, permuted = matrices((8, 12)), matrices((8, 12))
    set_gradients(params)
    order = [2, 0, 3, 1]
    permuted[0].grad = torch.cat([params[0].grad.chunk(4)[head] for head in order])
    expected = change(rule, params, num_heads=4)[0].chunk(4)
    result = change(rule, permuted, num_heads=4)[0].chunk(4)
    for position, head in enumerate(order):
        assert torch.allclose(result[position], expected[head], atol=1e-6)


@pytest.mark.parametrize("rule", SPECTRAL)
def test_heads_on_columns_are_heads_on_rows_of_the_transpose(rule: str) -> None:
    rows, columns = matrices((8, 12)), [nn.Parameter(matrices((8, 12))[0].detach().T.clone())]
    set_gradients(rows)
    columns[0].grad = rows[0].grad.T.clone()
    expected = change(rule, rows, num_heads=4, head_axis=0)[0]
    result = change(rule, columns, num_heads=4, head_axis=1)[0]
    assert torch.allclose(result, expected.T, atol=1e-5)


def rms(tensor: torch.Tensor) -> float:
    return tensor.square().mean().sqrt().item()


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_matched_by_rms_a_full_polar_factor_has_rms_one_fifth(shape: tuple[int, int]) -> None:
    exact = Rule("exact", "", filter=lambda: polar((PROMOTION,) * 30), momentum=ema)
    RULES["exact"] = exact
    try:
        params = matrices(shape)
        params[0].grad = torch.randn(shape)
        assert rms(change("exact", params)[0]) == pytest.approx(0.2, rel=1e-4)
    finally:
        del RULES["exact"]


@pytest.mark.parametrize(("rank", "promotion_steps"), [(1, 0), (2, 1), (5, 2), (16, 5)])
def test_matched_by_rms_pion_has_rms_one_fifth_however_many_directions_pass(rank: int, promotion_steps: int) -> None:
    q = torch.linalg.qr(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)))[0]
    params = matrices((16, 40))
    params[0].grad = torch.linalg.qr(torch.randn(16, 16))[0][:, :rank] @ q.T[:rank]
    assert rms(change("pion", params, promotion_steps=promotion_steps)[0]) == pytest.approx(0.2, rel=2e-2)


def test_a_nearly_shut_gate_is_not_amplified() -> None:
    params = matrices((32, 64))
    params[0].grad = torch.randn(32, 64)
    assert rms(change("pion", params, promotion_steps=0)[0]) < 1e-10


def test_the_papers_step_is_s_times_the_root_of_the_longer_side_of_a_block() -> None:
    params = matrices((8, 30))
    params[0].grad = torch.outer(torch.ones(8), torch.ones(30))
    delta = change("pion", params, adjust_lr="paper", paper_scale=2.0, num_heads=2)[0]
    for head in delta.chunk(2):
        assert torch.linalg.matrix_norm(head, 2).item() == pytest.approx(2.0 * math.sqrt(30), rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "rows", "cols", "expected"),
    [
        ("original", 8, 2, 2.0),
        ("original", 2, 8, 1.0),
        ("spectral", 2, 8, 0.5),
        ("match_rms_adamw", 4, 25, 1.0),
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


def test_a_new_rule_is_one_line_even_with_a_second_moment() -> None:
    """NorMuon's rows (arXiv 2510.05491): divide each row by the root of its running mean square, keep the norm."""

    def normalise_rows(filtered: torch.Tensor, state: torch.Tensor, settings) -> torch.Tensor:
        state.lerp_(filtered.square().mean(-1), 1 - settings["betas"][1])
        rows = filtered / state.sqrt().clamp(min=1e-30)[..., None]
        norms = [torch.linalg.vector_norm(blocks, dim=(1, 2), keepdim=True) for blocks in (filtered, rows)]
        return rows * norms[0] / norms[1]

    variance = Variance(lambda rows, cols: (rows,), normalise_rows)
    RULES["rows"] = Rule(
        "rows", "test", lambda ns_steps: polar(keller(ns_steps)), ("ns_steps",), ema, variance=variance
    )
    try:
        assert RULES["rows"].state_bytes(2, 4, 12) == 4 * (2 * 4 * 12 + 2 * 4)
        params, plain = matrices((8, 12), (8, 12)), matrices((8, 12), (8, 12))
        set_gradients(params)
        set_gradients(plain)
        for delta, muon in zip(change("rows", params, num_heads=2), change("muon", plain, num_heads=2), strict=True):
            for rows, filtered in zip(delta.chunk(2), muon.chunk(2), strict=True):
                assert rows.norm().item() == pytest.approx(filtered.norm().item(), rel=1e-5)
                assert torch.allclose(rows.norm(dim=1), rows.norm(dim=1).mean().expand(4), rtol=1e-5)
    finally:
        del RULES["rows"]
