"""Shampoo and SOAP against plain float64 loops of their papers' formulas and against pytorch-optimizer's code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer

SHAPES = [(8, 8), (6, 10), (10, 6), (1, 7)]
BETAS = (0.9, 0.95)


def gradients(shape: tuple[int, int], count: int = 12, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def run(given: list[Tensor], rule: str, **settings: object) -> Tensor:
    param = nn.Parameter(torch.zeros_like(given[0]))
    optimizer = SpectralOptimizer([param], rule=rule, **({"lr": 1.0, "betas": BETAS} | settings))  # type: ignore[arg-type]
    for gradient in given:
        param.grad = gradient.clone()
        optimizer.step()
    return param.detach()


def peer(given: list[Tensor], make: type, **settings: object) -> Tensor:
    param = nn.Parameter(torch.zeros_like(given[0]))
    optimizer = make([param], lr=1.0, weight_decay=0.0, **settings)
    for gradient in given:
        param.grad = gradient.clone()
        optimizer.step()
    return param.detach()


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > 1e-13 * values.max()
    return vectors[:, kept] @ torch.diag(values[kept] ** exponent) @ vectors[:, kept].T


def shampoo_loop(given: list[Tensor], beta: float, graft: str, exponent: float, period: int) -> Tensor:
    """Distributed Shampoo's formulas on one matrix, without a damping."""
    rows, cols = given[0].shape
    left, right = torch.zeros(rows, rows).double(), torch.zeros(cols, cols).double()
    weight, average, square = (torch.zeros(rows, cols).double() for _ in range(3))
    fresh = 1.0 if beta == 1 else 1 - beta
    for step, gradient in enumerate(given, start=1):
        left = beta * left + fresh * gradient @ gradient.T
        right = beta * right + fresh * gradient.T @ gradient
        average = BETAS[0] * average + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        mean = average / (1 - BETAS[0] ** step)
        grafted = mean / (square / (1 - BETAS[1] ** step)).sqrt() if graft == "adam" else mean
        correction = 1.0 if beta == 1 else 1 - beta**step
        if step % period == 0 or (step == 1 and graft == "none"):
            roots = power(left / correction, -exponent), power(right / correction, -exponent)
        if graft != "none" and step < period:
            weight -= grafted
            continue
        update = roots[0] @ mean @ roots[1]
        weight -= update if graft == "none" else update * grafted.norm() / update.norm()
    return weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("beta", "period"), [(0.8, 1), (1.0, 1), (0.8, 4)])
@pytest.mark.parametrize("graft", ["adam", "sgd", "none"])
def test_shampoo_is_the_papers_loop(shape: tuple[int, int], beta: float, period: int, graft: str) -> None:
    given = gradients(shape)
    options = {"shampoo_beta": beta, "shampoo_graft": graft, "shampoo_period": period, "shampoo_eps": 0.0}
    ours = run(given, "shampoo", eps=0.0, **options)
    assert torch.allclose(ours, shampoo_loop(given, beta, graft, 0.25, period), rtol=1e-6, atol=1e-9)


def test_a_half_on_both_sides_is_the_exponent_that_the_official_guide_advises() -> None:
    given = gradients((8, 8))
    ours = run(given, "shampoo", eps=0.0, shampoo_exponent=0.5, shampoo_beta=0.8, shampoo_eps=0.0)
    assert torch.allclose(ours, shampoo_loop(given, 0.8, "adam", 0.5, 1), rtol=1e-6, atol=1e-9)


def test_shampoo_of_sums_without_graft_is_that_of_pytorch_optimizer() -> None:
    from pytorch_optimizer import Shampoo

    given = gradients((8, 8))
    ours = run(given, "shampoo", betas=(0.0, 0.95), shampoo_beta=1.0, shampoo_graft="none", shampoo_eps=0.0)
    assert torch.allclose(ours, peer(given, Shampoo, matrix_eps=1e-14), rtol=1e-5, atol=1e-7)


def test_shampoo_grafted_onto_sgd_is_the_scalable_one_of_pytorch_optimizer() -> None:
    from pytorch_optimizer import ScalableShampoo
    from pytorch_optimizer.optimizer.shampoo import LayerWiseGrafting

    given = gradients((8, 8))
    theirs = peer(
        given,
        ScalableShampoo,
        betas=(0.0, 0.8),
        nesterov=False,
        moving_average_for_momentum=True,
        start_preconditioning_step=1,
        preconditioning_compute_steps=1,
        graft_type=LayerWiseGrafting.SGD,
        shape_interpretation=False,
        use_svd=True,
        matrix_eps=1e-14,
    )
    ours = run(given, "shampoo", betas=(0.0, 0.8), shampoo_graft="sgd", shampoo_eps=0.0)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_the_first_step_of_both_is_the_gradients_polar_factor(shape: tuple[int, int]) -> None:
    given = gradients(shape, count=1)
    u, _, vh = torch.linalg.svd(given[0], full_matrices=False)
    assert torch.allclose(-run(given, "shampoo", shampoo_graft="none"), u @ vh, atol=1e-9)
    assert torch.allclose(-run(given, "soap", basis_eps=0.0), u @ vh, atol=1e-9)


@pytest.mark.parametrize("long", [0, 1])
def test_a_side_above_the_limit_is_left_as_it_is_and_costs_no_memory(long: int) -> None:
    given = gradients((6, 10) if long else (10, 6))
    kept = power(sum(g.T @ g if not long else g @ g.T for g in given[:1]), -0.5)
    step = run(given[:1], "shampoo", shampoo_graft="none", shampoo_eps=0.0, max_precondition_dim=8)
    assert torch.allclose(-step, kept @ given[0] if long else given[0] @ kept, rtol=1e-6)
    for rule in ("shampoo", "soap"):
        param = nn.Parameter(torch.zeros_like(given[0]))
        param.grad = given[0].clone()
        optimizer = SpectralOptimizer([param], rule=rule, max_precondition_dim=8)
        optimizer.step()
        assert param.detach().any()
        assert sum(name.startswith(("row_", "column_")) for name in optimizer.state[param]) == 2


def test_a_root_that_is_older_than_a_gradient_does_not_blow_it_up() -> None:
    first, second = torch.zeros(6, 10), torch.zeros(6, 10)
    first[0, 0], second[1, 1], second[0, 0] = 1.0, 1.0, 1.0
    param = nn.Parameter(torch.zeros(6, 10))
    optimizer = SpectralOptimizer(
        [param], rule="shampoo", lr=1.0, shampoo_graft="none", shampoo_period=50, betas=(0.0, 0.9)
    )
    for gradient in (first, second):
        param.grad, before = gradient, param.detach().clone()
        optimizer.step()
    assert (param.detach() - before).abs().max() < 2


def soap_loop(given: list[Tensor], beta: float, period: int, skip: bool) -> Tensor:
    """SOAP's formulas on one matrix whose first gradient has full rank, without an epsilon."""
    first, second = BETAS
    rows, cols = given[0].shape
    left, right = given[0] @ given[0].T * (1 - beta), given[0].T @ given[0] * (1 - beta)
    row, column = torch.linalg.eigh(left)[1].flip(1), torch.linalg.eigh(right)[1].flip(1)
    weight, average, square = (torch.zeros(rows, cols).double() for _ in range(3))
    for count, gradient in enumerate(given[1:] if skip else given, start=1):
        seen = row.T @ gradient @ column
        average = first * average + (1 - first) * gradient
        mean = row.T @ average @ column
        if count == 1 and not skip:
            seen, mean = torch.diag(seen.diagonal()), torch.diag(mean.diagonal())
        square = second * square + (1 - second) * seen**2
        ratio = torch.nan_to_num(mean / square.sqrt())
        weight -= (1 - second**count) ** 0.5 / (1 - first**count) * row @ ratio @ column.T
        index = count if skip else count - 1
        if index == 0:
            continue
        left = beta * left + (1 - beta) * gradient @ gradient.T
        right = beta * right + (1 - beta) * gradient.T @ gradient
        if index % period == 0:
            by_row, by_column = (row * (left @ row)).sum(0), (column * (right @ column)).sum(0)
            row_order, column_order = by_row.argsort(descending=True), by_column.argsort(descending=True)
            row = torch.linalg.qr((left @ row)[:, row_order]).Q
            column = torch.linalg.qr((right @ column)[:, column_order]).Q
            square = square[row_order][:, column_order]
    return weight


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("beta", [0.95, 0.7])
def test_soap_is_the_papers_loop(beta: float, period: int, skip: bool) -> None:
    given = gradients((8, 8))
    ours = run(given, "soap", shampoo_beta=beta, soap_period=period, soap_skip_first=skip, basis_eps=0.0)
    assert torch.allclose(ours, soap_loop(given, beta, period, skip), rtol=1e-6, atol=1e-8)


def test_soap_that_skips_its_first_step_is_that_of_pytorch_optimizer() -> None:
    from pytorch_optimizer import SOAP

    given = gradients((8, 8))
    theirs = peer(given, SOAP, betas=BETAS, precondition_frequency=3, eps=0.0)
    ours = run(given, "soap", soap_period=3, soap_skip_first=True, basis_eps=0.0)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)  # its QR decompositions are in float32


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_bases_stay_orthonormal_and_converge_to_eigenvectors(shape: tuple[int, int]) -> None:
    spectrum = torch.diag(0.7 ** torch.arange(min(shape)).double())
    generator = torch.Generator().manual_seed(1)
    param = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = SpectralOptimizer([param], rule="soap", soap_period=1, betas=(0.9, 0.99))
    for _ in range(300):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        param.grad = spectrum @ noise if shape[0] < shape[1] else noise @ spectrum
        optimizer.step()
    side = "row" if shape[0] < shape[1] else "column"
    for name in ("row", "column"):
        basis = optimizer.state[param][f"{name}_basis"][0]
        assert torch.allclose(basis.T @ basis, torch.eye(len(basis)).double(), atol=1e-12)
    basis, covariance = (optimizer.state[param][f"{side}_{kept}"][0] for kept in ("basis", "covariance"))
    turned = basis.T @ covariance @ basis
    assert (turned - torch.diag(turned.diagonal())).norm() < 0.05 * turned.norm()
    assert torch.equal(turned.diagonal().argsort(descending=True), torch.arange(min(shape)))


def test_gradients_of_low_rank_leave_no_noise_in_other_directions() -> None:
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(40, 3, generator=generator), torch.randn(3, 60, generator=generator)
    param = nn.Parameter(torch.zeros(40, 60))
    optimizer = SpectralOptimizer([param], rule="soap", lr=1.0, soap_period=2)
    for _ in range(5):
        param.grad = left @ torch.randn(3, 3, generator=generator) @ right
        optimizer.step()
    own, other = torch.linalg.qr(left.double())[0], torch.linalg.qr(right.T.double())[0]
    moved = param.detach().double()
    assert (moved - own @ own.T @ moved @ other @ other.T).norm() < 0.03 * moved.norm()


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("shampoo", {"shampoo_graft": "adamw"}),
        ("shampoo", {"shampoo_exponent": 0.0}),
        ("shampoo", {"shampoo_period": 0}),
        ("shampoo", {"shampoo_eps": -1.0}),
        ("soap", {"soap_period": 1.5}),
        ("soap", {"shampoo_beta": 1.1}),
        ("soap", {"basis_eps": 1.0}),
        ("soap", {"max_precondition_dim": 0}),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(rule: str, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        run(gradients((4, 4), count=1), rule, **settings)
