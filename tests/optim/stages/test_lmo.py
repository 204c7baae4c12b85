"""Scion against pytorch-optimizer's code, its norms against their definitions, and its bound on the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer

RULES = ("scion", "scion_sign", "scion_row")
SHAPES = [(6, 10), (10, 6)]


def gradients(shape: tuple[int, int], count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def run(start: Tensor, given: list[Tensor], rule: str, **settings: object) -> Tensor:
    param = nn.Parameter(start.clone())
    optimizer = SpectralOptimizer([param], rule=rule, **({"lr": 0.01, "momentum": 0.9} | settings))  # type: ignore[arg-type]
    for gradient in given:
        param.grad = gradient.clone()
        optimizer.step()
    return param.detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize(
    ("rule", "norm", "options"),
    [
        ("scion", "SPECTRAL", {}),
        ("scion_sign", "SIGN", {}),
        ("scion_row", "ROW", {}),
        ("scion_row", "COL", {"scion_tokens": True}),
    ],
)
def test_scion_is_that_of_pytorch_optimizer(
    shape: tuple[int, int], constrained: bool, rule: str, norm: str, options: dict[str, object]
) -> None:
    from pytorch_optimizer import SCION
    from pytorch_optimizer.optimizer.scion import LMONorm

    start, given = torch.ones(shape, dtype=torch.float64), gradients(shape)
    ours = run(start, given, rule, weight_decay=float(constrained), scion_radius=7.0, **options)
    param = nn.Parameter(start.clone())
    kwargs = {"transpose": True} if norm == "COL" else {}  # of embeddings, stored as tokens x width
    theirs = SCION(
        [param], lr=0.01, momentum=0.1, constraint=constrained, norm_type=LMONorm[norm], norm_kwargs=kwargs, scale=7.0
    )
    for gradient in given:
        param.grad = gradient.clone()
        theirs.step()
    # Its Newton-Schulz iterations are in bfloat16.
    tolerance = 2e-2 if rule == "scion" else 1e-7
    assert (ours - param.detach()).norm() < tolerance * (ours - start).norm()


def rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_has_its_norm_equal_to_the_radius(shape: tuple[int, int]) -> None:
    start, given = torch.zeros(shape, dtype=torch.float64), gradients(shape, count=1)
    rows, cols = shape

    def step(rule: str, **options: object) -> Tensor:
        return run(start, given, rule, lr=1.0, scion_radius=3.0, **options)

    hidden = step("scion", schedule="polar_express", ns_steps=12)
    assert torch.linalg.matrix_norm(hidden, 2) * math.sqrt(cols / rows) == pytest.approx(3.0)
    output = step("scion_row")
    assert (output.norm(dim=1).max() * math.sqrt(cols)).item() == pytest.approx(3.0)
    assert all(rms(row) == pytest.approx(3.0) for row in step("scion_row", scion_tokens=True))
    signs = step("scion_sign")
    features = torch.randint(0, 2, (cols,), generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    assert ((signs * signs.sign()) @ features.abs()).max().item() == pytest.approx(3.0)


@pytest.mark.parametrize("rule", RULES)
def test_constrained_weights_never_leave_the_ball_and_unconstrained_ones_do(rule: str) -> None:
    drift = gradients((6, 10), count=1) * 60

    def size(weight: Tensor) -> float:
        if rule == "scion":
            return (torch.linalg.matrix_norm(weight, 2) * math.sqrt(10 / 6)).item()
        return (weight.abs().max() * 10 if rule == "scion_sign" else weight.norm(dim=1).max() * math.sqrt(10)).item()

    settings: dict[str, object] = {"lr": 0.1, "scion_radius": 2.0}
    if rule == "scion":
        settings |= {"schedule": "polar_express", "ns_steps": 12}
    start = torch.zeros(6, 10, dtype=torch.float64)
    assert 1.9 < size(run(start, drift, rule, weight_decay=1.0, **settings)) <= 2.0 + 1e-9
    assert size(run(start, drift, rule, **settings)) > 5


def test_hidden_scion_is_muon_with_the_spectral_length_and_the_radius_in_the_learning_rate() -> None:
    start, given = torch.ones(6, 10, dtype=torch.float64), gradients((6, 10))
    scion = run(start, given, "scion", lr=0.01, weight_decay=1.0, scion_radius=7.0)
    muon = run(start, given, "muon", lr=0.07, weight_decay=1 / 7, adjust_lr="spectral")
    assert torch.allclose(scion, muon, rtol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_a_radius_that_is_not_positive_is_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match="scion_radius=0"):
        run(torch.zeros(4, 4), [], rule, scion_radius=0)
