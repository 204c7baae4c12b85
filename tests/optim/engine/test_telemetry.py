"""Telemetry: the numbers against what really happened, only when asked, and inactive roles found."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rlspec.optim import SpectralOptimizer


def optimizer_with_two_roles(**settings) -> tuple[SpectralOptimizer, nn.Parameter, nn.Parameter]:
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(5))
    groups = [
        {"params": [matrix], "rule": "pion", "role": "attention.q", "num_heads": 2},
        {"params": [vector], "rule": "adamw", "role": "norm"},
    ]
    return SpectralOptimizer(groups, lr=0.1, **settings), matrix, vector


def test_the_numbers_are_the_steps_own() -> None:
    optimizer, matrix, vector = optimizer_with_two_roles(weight_decay=0.3)
    passing, noise = torch.outer(torch.ones(4), torch.randn(12)), torch.randn(4, 12)
    matrix.grad, vector.grad = torch.cat([passing, noise]), torch.randn(5)
    before = matrix.detach().clone()
    optimizer.collect_telemetry = True
    optimizer.step()
    numbers = optimizer.telemetry()["attention.q"]
    change = (matrix.detach() - before).square().mean().sqrt().item()
    assert numbers["change_rms"] == pytest.approx(change, rel=1e-6)
    assert numbers["update_rms"] == pytest.approx(change / 0.1, rel=1e-6)
    assert numbers["weight_rms"] == pytest.approx(matrix.square().mean().sqrt().item(), rel=1e-6)
    heads = ((matrix.detach() - before) / 0.1).chunk(2)
    furthest = max(float(torch.linalg.matrix_norm(head, 2)) for head in heads)
    assert numbers["update_spectral"] == pytest.approx(furthest, rel=1e-3)
    row = matrix.detach()[matrix.norm(dim=1).argmax()]
    features = row / row.square().mean().sqrt()  # of all with RMS 1, those that move an entry of the output furthest
    assert numbers["weight_rms_to_inf"] == pytest.approx((matrix.detach() @ features).max().item(), rel=1e-6)
    ranks = [block.square().sum() / torch.linalg.svdvals(block)[0] ** 2 for block in (passing, noise)]
    assert numbers["stable_rank"] == pytest.approx(sum(ranks).item() / 2, rel=1e-2)
    assert numbers["pass_energy"] == pytest.approx(0.5, abs=1e-3)
    assert numbers["gated_share"] == 0.5
    assert numbers["skipped"] == 0
    assert set(optimizer.telemetry()["norm"]) == {"update_rms", "change_rms", "weight_rms", "skipped"}


@pytest.mark.parametrize(("rule", "shape"), [("adamw", (6, 4, 3)), ("sgd", (8, 5)), ("muon", (6, 4, 3))])
def test_both_sizes_of_an_update_are_told_for_every_kind_of_rule(rule: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(shape))
    optimizer = SpectralOptimizer([param], rule=rule, lr=0.5, telemetry_every=1)
    for _ in range(2):
        before, param.grad = param.detach().clone(), torch.randn(shape)
        optimizer.step()
    update = (param.detach() - before).flatten(1) / 0.5
    numbers = optimizer.telemetry()["all"]
    assert numbers["update_rms"] == pytest.approx(float(update.square().mean().sqrt()), rel=1e-5)
    assert numbers["update_spectral"] == pytest.approx(float(torch.linalg.matrix_norm(update, 2)), rel=0.03)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_estimated_of_large_matrices_is_near_what_a_decomposition_says(rule: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(300, 260, dtype=dtype))
    optimizer = SpectralOptimizer([param], rule=rule, lr=0.5, telemetry_every=1)
    before, param.grad = param.detach().clone(), torch.randn(300, 260, dtype=dtype)
    optimizer.step()
    update = (param.detach() - before).float() / 0.5
    numbers = optimizer.telemetry()["all"]
    assert numbers["update_spectral"] == pytest.approx(float(torch.linalg.matrix_norm(update, 2)), rel=0.06)
    gradient = torch.linalg.svdvals(param.grad.float())  # after one step the momentum is a multiple of it
    assert numbers["stable_rank"] == pytest.approx(float(gradient.square().sum() / gradient[0] ** 2), rel=0.12)
    rows, close = param.detach().double().norm(dim=1), 1e-5 if dtype == torch.float32 else 1e-3  # of a master copy
    assert numbers["weight_rms"] == pytest.approx(float(rows.square().mean() / 260) ** 0.5, rel=close)
    assert numbers["weight_rms_to_inf"] == pytest.approx(float(rows.max()) * 260**0.5, rel=close)


def test_nothing_is_collected_unless_asked() -> None:
    optimizer, matrix, _ = optimizer_with_two_roles()
    matrix.grad = torch.randn(8, 12)
    optimizer.step()
    assert optimizer.telemetry() == {}


def test_collecting_every_n_steps_and_only_once_on_request() -> None:
    optimizer, matrix, _ = optimizer_with_two_roles(telemetry_every=3)
    seen = []
    for _ in range(6):
        matrix.grad = torch.ones(8, 12)
        optimizer.step()
        seen.append(optimizer.telemetry().get("attention.q", {}).get("weight_rms"))
    assert seen[0] is None and seen[1] is None
    assert seen[2] == seen[3] == seen[4] != seen[5]


def test_collecting_does_not_change_the_step() -> None:
    results = []
    for every in (0, 1):
        optimizer, matrix, vector = optimizer_with_two_roles(telemetry_every=every)
        for _ in range(3):
            matrix.grad, vector.grad = torch.ones(8, 12), torch.ones(5)
            optimizer.step()
        results.append((matrix.detach(), vector.detach()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_role_whose_gate_stays_shut_is_inactive() -> None:
    optimizer, matrix, vector = optimizer_with_two_roles(momentum=0.0)
    for _ in range(5):
        matrix.grad, vector.grad = torch.randn(8, 12), torch.randn(5)
        optimizer.step()
    assert optimizer.inactive_spectral_groups(steps=5) == ["attention.q"]
    assert optimizer.inactive_spectral_groups(steps=6) == []
    matrix.grad = torch.ones(8, 12)
    optimizer.step()
    assert optimizer.inactive_spectral_groups(steps=1) == []


def test_a_role_without_gradients_or_parameters_is_inactive() -> None:
    optimizer, _, vector = optimizer_with_two_roles()
    optimizer.add_param_group({"params": [], "rule": "muon", "role": "mlp.up"})
    assert optimizer.inactive_spectral_groups() == ["mlp.up"]
    vector.grad = torch.randn(5)
    for _ in range(2):
        optimizer.step()
    assert optimizer.inactive_spectral_groups(steps=2) == ["attention.q", "mlp.up"]


def test_a_callback_gets_the_numbers_of_every_collected_step_until_it_is_removed() -> None:
    param, seen = nn.Parameter(torch.randn(6, 9)), []
    optimizer = SpectralOptimizer([param], rule="muon", role="r", lr=0.1, telemetry_every=2)
    handle = optimizer.register_telemetry_callback(lambda step, numbers: seen.append((step, numbers)))
    for step in range(1, 7):
        param.grad = torch.randn(6, 9)
        optimizer.collect_telemetry = step == 5
        if step == 6:
            handle.remove()
        optimizer.step()
    assert [step for step, _ in seen] == [2, 4, 5]
    assert all(0.15 < numbers["r"]["update_rms"] < 0.25 for _, numbers in seen)
    optimizer.register_telemetry_callback(lambda step, numbers: seen.append((step, numbers)))
    twin = copy.deepcopy(optimizer)
    twin.collect_telemetry = True
    twin.step()
    assert len(seen) == 3
    optimizer.collect_telemetry = True
    optimizer.step()
    assert [step for step, _ in seen] == [2, 4, 5, 7]
