"""AdEMAMix and diffGrad against pytorch-optimizer's code and plain loops, and the three bases of SPECTRA."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.stages.adam_variants import slow_schedule

SHAPES = [(), (7,), (6, 9), (2, 3, 3)]
BETAS = (0.9, 0.95)


def gradients(shape: tuple[int, ...], count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def run(make: object, given: list[Tensor]) -> Tensor:
    param = nn.Parameter(torch.ones_like(given[0]))
    optimizer = make([param])  # type: ignore[operator]
    for gradient in given:
        param.grad = gradient.clone()
        optimizer.step()
    return param.detach()


def ours(given: list[Tensor], rule: str, **settings: object) -> Tensor:
    return run(
        lambda params: SpectralOptimizer(params, rule=rule, **({"lr": 0.1, "betas": BETAS} | settings)),  # type: ignore[arg-type]
        given,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", [0, 5, 20])
def test_ademamix_is_that_of_pytorch_optimizer(shape: tuple[int, ...], warmup: int) -> None:
    from pytorch_optimizer import AdEMAMix

    given = gradients(shape)
    options = {"lr": 0.1, "betas": (*BETAS, 0.99), "alpha": 3.0, "t_alpha_beta3": warmup or None}
    theirs = run(lambda params: AdEMAMix(params, weight_decay=0.2, weight_decouple=True, **options), given)
    settings = {"slow_beta": 0.99, "slow_weight": 3.0, "slow_warmup": warmup, "weight_decay": 0.2}
    assert torch.allclose(ours(given, "ademamix", **settings), theirs, rtol=1e-10)


def test_ademamix_without_the_slow_momentum_is_adamw() -> None:
    given = gradients((6, 9))
    plain = run(lambda params: torch.optim.AdamW(params, lr=0.1, betas=BETAS, weight_decay=0.0), given)
    assert torch.allclose(ours(given, "ademamix", slow_weight=0.0), plain, rtol=1e-12)


def test_the_slow_half_life_grows_linearly_in_warm_up_and_then_stays() -> None:
    def half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta)

    schedule = [slow_schedule(count, 0.9, 0.999, 4.0, 100) for count in (25, 50, 100, 300)]
    assert [alpha for alpha, _ in schedule] == [1.0, 2.0, 4.0, 4.0]
    start, end = half_life(0.9), half_life(0.999)
    found = [half_life(beta) for _, beta in schedule]
    assert found == pytest.approx([start + share * (end - start) for share in (0.25, 0.5, 1, 1)], rel=1e-9)
    assert slow_schedule(1, 0.0, 0.999, 4.0, 4) == (1.0, 0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_diffgrad_is_that_of_pytorch_optimizer(shape: tuple[int, ...]) -> None:
    from pytorch_optimizer import DiffGrad

    given = gradients(shape)
    theirs = run(lambda params: DiffGrad(params, lr=0.1, betas=BETAS, weight_decay=0.2, eps=0.0), given)
    assert torch.allclose(ours(given, "diffgrad", weight_decay=0.2, eps=0.0), theirs, rtol=1e-10)


def test_diffgrad_of_a_gradient_that_stays_is_half_of_adam() -> None:
    given = gradients((6, 9), count=1) * 6
    last = ours(given, "diffgrad") - ours(given[:-1], "diffgrad")
    adam = [run(lambda params: torch.optim.Adam(params, lr=0.1, betas=BETAS), given[:end]) for end in (6, 5)]
    assert torch.allclose(last, (adam[0] - adam[1]) / 2, rtol=1e-10)


def clipped(update: Tensor, clip: float) -> Tensor:
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    return u @ torch.diag(s / (1 + (s / clip) ** 2).sqrt()) @ vh


@pytest.mark.parametrize(
    ("base", "nesterov"), [("adam", False), ("ademamix", False), ("signum", False), ("signum", True)]
)
def test_spectra_clips_the_steps_of_each_base(base: str, nesterov: bool) -> None:
    given = gradients((6, 9))
    settings = {"eps": 0.0, "momentum": 0.8, "nesterov": nesterov, "lr": 1.0}
    if base == "ademamix":
        settings |= {"slow_beta": 0.9, "slow_weight": 2.0}
    plain = {"adam": "adamw", "signum": "signum"}.get(base, base)
    alone = [ours(given[:end], plain, adjust_lr="none", **settings) for end in range(len(given) + 1) if end]
    alone.insert(0, torch.ones(6, 9, dtype=torch.float64))
    expected = torch.ones(6, 9, dtype=torch.float64)
    for before, after in zip(alone, alone[1:], strict=False):
        expected = expected - clipped(before - after, 1.5)
    found = ours(given, "spectra", spectra_base=base, spectral_clip=1.5, **settings)
    assert torch.allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("ademamix", {"slow_beta": 1.0}),
        ("ademamix", {"slow_weight": -1.0}),
        ("ademamix", {"slow_warmup": 1.5}),
        ("spectra", {"spectra_base": "adamw"}),
        ("spectra", {"slow_weight": -1.0, "spectra_base": "ademamix"}),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(rule: str, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ours(gradients((4, 4), count=1), rule, **settings)
