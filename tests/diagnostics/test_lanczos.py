"""Lanczos on operators with known spectra, and Hessians against curvlinops and against all second derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from subjects import given_gradients
from torch import Tensor, nn

from rlspec.diagnostics.measures.lanczos import Ritz, bulk_edges, density, lanczos, pooled, probe, trace
from rlspec.diagnostics.studies import curvature
from rlspec.diagnostics.studies.curvature import Hessian, step_of
from rlspec.diagnostics.subject import Part, Subject
from rlspec.optim import build_optimizer, symmetry_map


def diagonal(values: Tensor, steps: int, probes: int = 1) -> list[Ritz]:
    generator = torch.Generator().manual_seed(0)
    return [lanczos(lambda v: values * v, probe(len(values), generator, values), steps) for _ in range(probes)]


def test_a_diagonal_quadratic_gives_its_eigenvalues_with_their_shares() -> None:
    values = torch.tensor([-2.0] * 3 + [0.0] * 90 + [1.0] * 5 + [50.0] * 2, dtype=torch.float64)
    (found,) = diagonal(values, 20)
    assert found.values.tolist() == pytest.approx([-2, 0, 1, 50], abs=1e-8)
    assert found.weights.tolist() == pytest.approx([0.03, 0.9, 0.05, 0.02])
    assert trace([found], 100)[0] == pytest.approx(float(values.sum()))


def test_extreme_eigenvalues_come_first_and_moments_are_exact() -> None:
    values = torch.linspace(0, 1, 500, dtype=torch.float64)
    values[-1], values[0] = 10.0, -5.0
    (found,) = diagonal(values, 25)
    assert [float(found.values[-1]), float(found.values[0])] == pytest.approx([10, -5], abs=1e-6)
    for power in range(6):
        wanted = float((values**power).mean())
        assert float((found.weights * found.values**power).sum()) == pytest.approx(wanted, rel=1e-9)


def test_outliers_lie_beyond_the_bulk_and_the_density_is_one() -> None:
    values = torch.cat(
        [torch.linspace(-1, 1, 400, dtype=torch.float64), torch.tensor([30.0, 40.0], dtype=torch.float64)]
    )
    ritz = pooled(diagonal(values, 40, probes=3))
    low, high = bulk_edges(ritz)
    assert -4 < low < -1 and 1 < high < 4
    points = torch.linspace(-3, 45, 6000, dtype=torch.float64)
    assert float(torch.trapezoid(density(ritz, points, 0.2), points)) == pytest.approx(1.0, abs=1e-3)


def test_the_trace_has_the_error_that_it_says() -> None:
    matrix = torch.randn(60, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = matrix + matrix.T
    generator = torch.Generator().manual_seed(2)
    found = [lanczos(lambda v: matrix @ v, probe(60, generator, matrix), 10) for _ in range(200)]
    value, error = trace(found, 60)
    assert abs(value - float(matrix.trace())) < 4 * error
    exact = (2 * (matrix.square().sum() - matrix.diagonal().square().sum())).sqrt() / 200**0.5
    assert error == pytest.approx(float(exact), rel=0.2)


def small() -> tuple[Subject, nn.Module, list[tuple[Tensor, Tensor]]]:
    """A classifier with two parts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    data = [(torch.randn(10, 5, dtype=torch.float64), torch.randint(0, 3, (10,))) for _ in range(2)]
    subject = given_gradients([torch.ones(2, 2)])
    subject.model, subject.mapping = model, symmetry_map(model, rule="muon")
    subject.parts = [Part(pair, "pair") for pair in data]
    subject.loss = lambda pair: nn.functional.cross_entropy(model(pair[0]), pair[1])
    return subject, model, data


def test_products_are_those_of_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    subject, model, data = small()
    operator = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False
    )
    hessian = Hessian(subject, subject.parts)
    vector = torch.randn(hessian.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(hessian.product(vector), operator @ vector)


def test_the_whole_spectrum_of_a_small_hessian_is_found() -> None:
    subject, model, _ = small()
    hessian = Hessian(subject, subject.parts)
    matrix = torch.stack([hessian.product(row) for row in torch.eye(hessian.size, dtype=torch.float64)])
    wanted = torch.linalg.eigvalsh(matrix)
    start = torch.randn(hessian.size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = lanczos(hessian.product, start, hessian.size)
    assert [float(found.values[0]), float(found.values[-1])] == pytest.approx([float(wanted[0]), float(wanted[-1])])
    assert float(wanted.sum()) == pytest.approx(float(matrix.trace()))


def test_the_step_of_a_rule_is_what_its_optimizer_adds_and_leaves_the_model_alone() -> None:
    subject, model, _ = small()
    hessian = Hessian(subject, subject.parts)
    before = [value.detach().clone() for value in model.parameters()]
    step = step_of(hessian, lambda each: build_optimizer(each, rule="sgd", lr=0.25, momentum=0.0), model)
    torch.testing.assert_close(step, -hessian.flat)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_sharpness_and_the_best_rate_are_those_of_the_quadratic() -> None:
    curve = torch.tensor([1.0, 4.0, 9.0, 0.0, 2.0, 5.0], dtype=torch.float64).view(2, 3)
    subject = given_gradients([torch.ones(2, 3)])
    weight = subject.model[0].weight
    subject.loss = lambda _: (0.5 * curve * weight.square()).sum()
    rows = {row["step"]: row for row in curvature.study(subject).numbers["steps"]}
    gradient = (curve * weight).detach()
    assert rows["sgd"]["cosine to -g"] == pytest.approx(1.0)
    sharpness = float((curve * gradient.square()).sum() / gradient.square().sum())
    assert rows["sgd"]["sharpness"] == pytest.approx(sharpness)
    assert rows["sgd"]["largest rate"] == pytest.approx(1 / sharpness)
    signs = gradient.sign()
    wanted = float((curve * signs.square()).sum() / signs.square().sum())
    assert rows["adamw"]["sharpness"] == pytest.approx(wanted, rel=1e-5)
    assert np.isfinite(rows["muon"]["sharpness"])
