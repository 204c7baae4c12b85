"""One battery for every line of the table: hostile gradients, shapes, splits, dtypes, and the symmetry it claims."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_cases import (
    ADAPTIVE_DECAY,
    ALONE,
    AS_LONG_AS_THE_GRADIENT,
    NAMES,
    PAIRS,
    change,
    every_rule,
    every_rule_alone,
    in_both_arithmetics,
    matrices,
    params_for,
    same_bits,
    set_gradients,
    shapes_for,
    spanning,
    train,
)
from torch import nn

from rlspec.optim import RULES, SpectralOptimizer
from rlspec.optim.composition import ema
from rlspec.optim.engine.batches import follow_weights, initial_state


@every_rule
def test_gradients_are_never_mutated(rule: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for nesterov in (True, False):
            params = params_for(rule, dtype)
            set_gradients(params)
            before = [param.grad.clone() for param in params]
            change(rule, params, nesterov=nesterov)
            assert all(torch.equal(param.grad, old) for param, old in zip(params, before, strict=True))


@in_both_arithmetics
@every_rule
def test_zero_gradients_change_nothing(rule: str) -> None:
    params = params_for(rule)
    for param in params:
        param.grad = torch.zeros_like(param)
    start = [param.detach().clone() for param in params]
    optimizer = SpectralOptimizer(params, rule=rule, lr=1.0, promotion_steps="auto")
    for _ in range(3):
        optimizer.step()
    assert same_bits(params, start)


@in_both_arithmetics
@every_rule
def test_after_zero_gradients_a_real_one_still_moves(rule: str) -> None:
    params = params_for(rule)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer = SpectralOptimizer(params, rule=rule, lr=1.0, promotion_steps="auto")
    optimizer.step()
    start = [param.detach().clone() for param in params]
    set_gradients(params)
    optimizer.step()
    for param, old in zip(params, start, strict=True):
        assert param.isfinite().all()
        assert not torch.equal(param, old)


@every_rule
def test_a_gradient_of_none_is_left_out(rule: str) -> None:
    params = params_for(rule)
    set_gradients(params)
    params[0].grad = None
    deltas = change(rule, params, weight_decay=0.1)
    partner = 1 if rule in PAIRS else 0  # a LoRA pair moves together
    assert not deltas[0].any()
    assert not deltas[partner].any()
    assert deltas[2].any()


@in_both_arithmetics
@every_rule
def test_weight_decay_is_decoupled_and_uses_the_unscaled_lr(rule: str) -> None:
    params = params_for(rule)
    for param in params:
        param.grad = torch.zeros_like(param)
    start = [param.detach().clone() for param in params]
    change(rule, params, lr=0.5, weight_decay=0.1)
    factor = 1.0 if rule in ADAPTIVE_DECAY else math.sqrt(0.95) if rule in PAIRS else 0.95
    for param, old in zip(params, start, strict=True):
        assert torch.allclose(param, old * factor, rtol=1e-6)


def snapshot(optimizer: SpectralOptimizer, param: nn.Parameter) -> list[torch.Tensor]:
    kept = [value for name, value in optimizer.state[param].items() if name != "step"]
    return [tensor.detach().clone() for tensor in (param, *kept)]


def unchanged(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("rule", "bad", "on_device"), spanning(NAMES, list(product([math.nan, math.inf, -math.inf], [False, True])))
)
def test_a_non_finite_gradient_skips_that_matrix_alone(
    rule: str, bad: float, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_device:  # as on CUDA, where nothing waits for the flags
        monkeypatch.setattr(SpectralOptimizer, "_defers", lambda self, param: True)
    params, witness = params_for(rule), params_for(rule)
    common = {"rule": rule, "lr": 0.1, "weight_decay": 0.1, "nesterov": True}
    optimizer, reference = SpectralOptimizer(params, role="r", **common), SpectralOptimizer(witness, **common)
    with pytest.warns(RuntimeWarning, match="parameter 0 of role r has NaN or Inf"):
        for step in range(4):
            set_gradients(params, seed=step)
            set_gradients(witness, seed=step)
            if step == 1:
                params[0].grad[2, 3] = bad
                for param in witness if rule == "adamw" and on_device else witness[: 2 if rule in PAIRS else 1]:
                    param.grad = None
            before = snapshot(optimizer, params[0])
            optimizer.step()
            reference.step()
            assert (step == 1) == unchanged(before, snapshot(optimizer, params[0]))
    if not on_device:  # there a masked matrix counts its step, so that Adam's bias corrections are one ahead
        assert same_bits(params, witness)
    assert optimizer.telemetry()["r"]["skipped"] == 1
    assert all(value.isfinite().all() for state in optimizer.state.values() for value in state.values())


@in_both_arithmetics
@every_rule
def test_masking_on_the_device_gives_the_bits_of_the_host(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host, device = params_for(rule), params_for(rule)
    train(rule, host, weight_decay=0.1, nesterov=True)
    monkeypatch.setattr(SpectralOptimizer, "_defers", lambda self, param: True)
    train(rule, device, weight_decay=0.1, nesterov=True)
    for ours, theirs in zip(host, device, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@in_both_arithmetics
@every_rule
def test_a_gradient_whose_norm_overflows_is_not_taken_for_a_non_finite_one(rule: str) -> None:
    params = params_for(rule)
    for param in params:
        param.grad = torch.full_like(param, 1e37)
    optimizer = SpectralOptimizer(params, rule=rule, lr=1.0)
    optimizer.step()
    assert optimizer.telemetry() == {}
    assert all(len(optimizer.state[param]) > 0 for param in params)
    assert all(param.isfinite().all() for param in params)


@in_both_arithmetics
@pytest.mark.parametrize(("rule", "scale"), spanning(NAMES, [1e-20, 1e-8, 1e-4, 1e4, 1e20]))
def test_the_update_does_not_depend_on_the_gradients_scale(rule: str, scale: float) -> None:
    plain, scaled = params_for(rule), params_for(rule)
    start = params_for(rule)
    options = {"eps": 0.0} if "eps" in RULES[rule].options else {}
    train(rule, plain, promotion_steps=2, decay=0.7, **options)
    train(rule, scaled, promotion_steps=2, decay=0.7, scale=scale, **options)
    trained = zip(plain, scaled, start, strict=True)
    differences = [((a - b).double().norm() / (a - old).double().norm()).item() for a, b, old in trained]
    if rule in AS_LONG_AS_THE_GRADIENT:
        assert max(differences) == pytest.approx(abs(scale - 1), rel=1e-3)
    elif rule == "diffgrad":  # it compares the gradient's change with 1
        assert 0.1 < max(differences) < 1
    elif rule == "adago":  # blind to it between v_0 and the clip gamma, which are absolute
        assert max(differences) < 1e-4 if scale == 1e-4 else max(differences) > 0.05
    elif rule != "adamw" or 1e-8 <= scale <= 1e4:  # torch's AdamW squares its gradients as they are
        assert max(differences) < 2e-3


@in_both_arithmetics
@every_rule_alone
@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1), (5, 2, 3, 3), (0, 4), (7, 7)])
def test_odd_shapes_work(rule: str, shape: tuple[int, ...]) -> None:
    params = matrices(shape)
    set_gradients(params)
    (delta,) = change(rule, params, promotion_steps="auto")
    assert delta.shape == shape
    assert delta.isfinite().all()
    centered_away = rule.startswith("centered") and shape in ((1, 8), (1, 1))  # a single row is its own mean
    assert bool(delta.any()) == (delta.numel() > 0 and not centered_away)


@in_both_arithmetics
@every_rule_alone
def test_a_stack_of_experts_is_so_many_matrices(rule: str) -> None:
    stacked, single = matrices((3, 6, 9)), []
    set_gradients(stacked)
    for expert in range(3):
        single.append(nn.Parameter(stacked[0].detach()[expert].clone()))
        single[-1].grad = stacked[0].grad[expert].clone()
    (delta,) = change(rule, stacked, stacked=True)
    for part, alone in zip(delta, change(rule, single), strict=True):
        assert torch.allclose(part, alone, atol=1e-6)


@in_both_arithmetics
@every_rule_alone
def test_memory_layout_of_weight_and_gradient_does_not_matter(rule: str) -> None:
    plain = matrices((6, 9))
    strided = [nn.Parameter(plain[0].detach().T.contiguous().T)]
    set_gradients(plain)
    strided[0].grad = torch.stack([plain[0].grad] * 2, -1)[..., 0]
    expected, result = change(rule, plain), change(rule, strided)
    assert torch.allclose(expected[0], result[0], atol=1e-5)


@in_both_arithmetics
@every_rule
def test_a_small_workspace_changes_nothing(rule: str) -> None:
    shapes = shapes_for(rule) * 3
    results = []
    for workspace in (1 << 28, 800, 1):
        params = matrices(*shapes)
        heads = {} if rule in PAIRS else {"num_heads": 3}
        train(rule, params, workspace_bytes=workspace, promotion_steps="auto", **heads)
        results.append(params)
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)


@in_both_arithmetics
@every_rule_alone
@pytest.mark.parametrize("axis", [0, 1])
def test_one_head_is_the_whole_matrix_and_heads_are_independent(rule: str, axis: int) -> None:
    plain, whole, heads, touched = (matrices((8, 12)) for _ in range(4))
    for params in (plain, whole, heads, touched):
        set_gradients(params)
    one = change(rule, whole, num_heads=1, head_axis=axis)[0]
    assert torch.equal(one, change(rule, plain)[0])
    before = change(rule, heads, num_heads=4, head_axis=axis)[0].chunk(4, axis)
    touched[0].grad.chunk(4, axis)[2].mul_(-3).add_(1)
    after = change(rule, touched, num_heads=4, head_axis=axis)[0].chunk(4, axis)
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)]
    assert same == [True, True, False, True]


@in_both_arithmetics
@every_rule_alone
def test_permuting_heads_permutes_the_update(rule: str) -> None:
    params, permuted = matrices((8, 12)), matrices((8, 12))
    set_gradients(params)
    order = [2, 0, 3, 1]
    permuted[0].grad = torch.cat([params[0].grad.chunk(4)[head] for head in order])
    expected = change(rule, params, num_heads=4)[0].chunk(4)
    result = change(rule, permuted, num_heads=4)[0].chunk(4)
    for position, head in enumerate(order):
        assert torch.allclose(result[position], expected[head], atol=1e-5)


LARGER = {"-": "D", "D": "S", "P": "S", "S": "O"}
"""The next larger group: none, signs or permutations, both, rotations and reflections."""


def element(group: str, size: int, generator: torch.Generator) -> torch.Tensor:
    if group == "O":
        return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    signs = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1 if group in "DS" else torch.ones(size)
    order = torch.randperm(size, generator=generator) if group in "PS" else torch.arange(size)
    return torch.eye(size, dtype=torch.float64)[order] * signs.double()


def equivariance_error(rule: str, left: str, right: str, shape: tuple[int, int] = (6, 10)) -> float:
    """Relative difference between moving the gradients of three steps and moving what they changed."""
    generator = torch.Generator().manual_seed(3)
    rows, cols = element(left, shape[0], generator), element(right, shape[1], generator)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    gradients = [gradient * 0.6 ** torch.arange(shape[1]) for gradient in gradients]
    results = []
    for moved in (False, True):
        param = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        optimizer = SpectralOptimizer([param], rule=rule, lr=1.0, promotion_steps=2, nesterov=True)
        for gradient in gradients:
            param.grad = rows @ gradient @ cols if moved else gradient.clone()
            optimizer.step()
        results.append(param.detach())
    return ((rows @ results[0] @ cols - results[1]).norm() / results[1].norm()).item()


def claimed(rule: str, shape: tuple[int, int]) -> tuple[str, str]:
    """The groups that act on rows and columns."""
    first, _, second = RULES[rule].symmetry.partition(" x ")
    assert {first, second} <= {*LARGER, "O"}
    swapped = RULES[rule].sides == "short x long" and shape[0] > shape[1]
    return (second, first) if swapped else (first, second)


@every_rule_alone
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_a_rule_is_equivariant_under_the_group_that_it_claims(rule: str, shape: tuple[int, int]) -> None:
    assert equivariance_error(rule, *claimed(rule, shape), shape) < 2e-13


@every_rule_alone
@pytest.mark.parametrize("side", [0, 1])
def test_and_under_no_larger_one(rule: str, side: int) -> None:
    errors = []
    for shape in ((6, 10), (10, 6)):
        groups = list(claimed(rule, shape))
        where = side if claimed(rule, shape) == claimed(rule, (6, 10)) else 1 - side
        if groups[where] == "O":
            return
        groups[1 - where], groups[where] = "-", LARGER[groups[where]]
        errors.append(equivariance_error(rule, *groups, shape))
    # A brake that only just depends on the entries, and a rule of which only the length does.
    inert = {"auon": 1e-3, "hybrid_auon": 1e-4, "shampoo": 5e-3}
    assert max(errors) > inert.get(rule, 0.05)


@pytest.mark.parametrize("rule", [name for name in ALONE if RULES[name].momentum is ema and not RULES[name].before])
@pytest.mark.parametrize("nesterov", [True, False])
def test_no_stage_touches_the_momentum(rule: str, nesterov: bool) -> None:
    params = params_for(rule)
    averages = [torch.zeros_like(param) for param in params]
    optimizer = SpectralOptimizer(params, rule=rule, lr=0.1, momentum=0.9, nesterov=nesterov)
    for step in range(3):
        set_gradients(params, seed=step)
        averages = [average.lerp(param.grad, 1 - 0.9) for average, param in zip(averages, params, strict=True)]
        optimizer.step()
    kept = [optimizer.state[param]["momentum_buffer"] for param in params]
    assert all(torch.equal(a, b) for a, b in zip(kept, averages, strict=True))


@every_rule
def test_state_takes_the_bytes_that_the_table_says(rule: str) -> None:
    params = params_for(rule)
    optimizer = train(rule, params, steps=1)
    for position, param in enumerate(params):
        factor = ("a", "b")[position % 2] if rule in PAIRS else ""
        values = RULES[rule].state_values(1, *param.shape, optimizer.param_groups[0], factor)
        kept = sum(tensor.numel() for name, tensor in optimizer.state[param].items() if name != "step")
        assert kept == values


@every_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_float32_state_and_masters(rule: str, dtype: torch.dtype) -> None:
    params = params_for(rule, dtype)
    optimizer = train(rule, params, lr=1e-6)
    for param in params:
        state = optimizer.state[param]
        assert {value.dtype for value in state.values()} == {torch.float32}
        assert torch.equal(state["master"].to(dtype), param)


CASTS = [(torch.float32, torch.bfloat16), (torch.float32, torch.float64), (torch.float64, torch.float16)]


@every_rule
@pytest.mark.parametrize(("before", "after"), [*CASTS, *((after, before) for before, after in CASTS)])
def test_a_model_that_is_cast_between_steps_keeps_its_momentum(
    rule: str, before: torch.dtype, after: torch.dtype
) -> None:
    params = params_for(rule, before)
    optimizer = train(rule, params, steps=2, lr=1e-4)
    kept = [{name: value.double() for name, value in optimizer.state[param].items()} for param in params]
    weights = [state.get("master", param.detach()).double() for state, param in zip(kept, params, strict=True)]
    for param in params:
        param.data = param.data.to(after)
        param.grad = None
    follow_weights(optimizer.param_groups, optimizer.state)
    for position, param in enumerate(params):
        state, fresh = optimizer.state[param], initial_state(param, optimizer.param_groups[0], position)
        assert {name: value.dtype for name, value in state.items()} == {name: v.dtype for name, v in fresh.items()}
        for name in state.keys() - {"master"}:
            torch.testing.assert_close(state[name].double(), kept[position][name], rtol=1e-6, atol=0)
        if before not in (torch.bfloat16, torch.float16):
            continue
        torch.testing.assert_close(param.double(), weights[position], rtol=1e-7, atol=0)  # not its rounding
    set_gradients(params, seed=9)
    optimizer.step()
    assert all(param.dtype == after and bool(param.isfinite().all()) for param in params)


@in_both_arithmetics
@every_rule
def test_telemetry_has_the_same_numbers_for_every_rule(rule: str) -> None:
    params = params_for(rule)
    optimizer = SpectralOptimizer(params, rule=rule, role="r", lr=0.1, promotion_steps="auto", telemetry_every=2)
    for step in range(2):
        set_gradients(params, seed=step)
        optimizer.step()
        assert bool(optimizer.telemetry()) == (step == 1)
    numbers = optimizer.telemetry()["r"]
    expected = {"update_rms", "update_spectral", "change_rms", "weight_rms", "weight_rms_to_inf"}
    expected |= {"stable_rank", "pass_energy", "gated_share", "skipped"}
    assert numbers.keys() == expected
    assert all(math.isfinite(value) for value in numbers.values())
    assert numbers["change_rms"] == pytest.approx(0.1 * numbers["update_rms"], rel=1e-5)
    assert 1 <= numbers["stable_rank"] <= 6
    assert numbers["gated_share"] == 0


@in_both_arithmetics
@pytest.mark.parametrize("rule", [name for name in ALONE if RULES[name].momentum is not None])
def test_momentum_in_bfloat16_with_stochastic_rounding_stays_near_float32(rule: str) -> None:
    exact, rounded, start = (params_for(rule) for _ in range(3))
    train(rule, exact, steps=8, promotion_steps=2)
    optimizer = train(rule, rounded, steps=8, promotion_steps=2, state_dtype="bfloat16")
    assert all(state["momentum_buffer"].dtype == torch.bfloat16 for state in optimizer.state.values())
    assert rule in ("adamuon", "signum") or not same_bits(rounded, exact)  # which take signs: rounding keeps them
    for ours, theirs, old in zip(rounded, exact, start, strict=True):
        assert (ours - theirs).norm() < 0.2 * (theirs - old).norm()


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(ALONE),
    shape=shapes,
    heads=st.integers(1, 3),
    axis=st.integers(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    arithmetic=st.sampled_from(["auto", "bfloat16"]),
    seed=st.integers(0, 99),
)
def test_a_batch_is_so_many_parameters_alone(
    rule: str, shape: tuple[int, int], heads: int, axis: int, dtype: torch.dtype, arithmetic: str, seed: int
) -> None:
    size = tuple(length * heads if axis == position else length for position, length in enumerate(shape))
    together, alone = matrices(size, size, dtype=dtype, seed=seed), matrices(size, size, dtype=dtype, seed=seed)
    layout = {"num_heads": heads, "head_axis": axis, "promotion_steps": 1, "lr": 0.1, "compute_dtype": arithmetic}
    set_gradients(together, seed=seed)
    set_gradients(alone, seed=seed)
    SpectralOptimizer(together, rule=rule, **layout).step()
    for param in alone:
        SpectralOptimizer([param], rule=rule, **layout).step()
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.isfinite().all()
        assert torch.allclose(ours, theirs, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-4)
