"""Denoising as a diffusion: its marginals against the ODE's and the data's, its density against integration."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from rlspec.vla.policies.flow.modeling_flow import euler
from rlspec.vla.policies.flow_sde import LARGEST_NOISE, chain_log_prob, draw_chain, standard_deviation, transition

WEIGHTS, MEANS, WIDTHS = (0.3, 0.7), (-1.0, 0.6), (0.25, 0.4)


def mixture(x: Tensor, time: Tensor) -> Tensor:
    """E[noise - action | x_t = x] where the actions are a mixture of two Gaussians, x (B,)."""
    time = time.to(x)
    posterior, velocity = [], []
    for weight, mean, width in zip(WEIGHTS, MEANS, WIDTHS, strict=True):
        variance = (1 - time) ** 2 * width**2 + time**2
        away = x - (1 - time) * mean
        posterior.append(math.log(weight) - 0.5 * variance.log() - away**2 / (2 * variance))
        velocity.append(time / variance * away - (mean + (1 - time) * width**2 / variance * away))
    shares = torch.stack(posterior).softmax(0)
    return (shares * torch.stack(velocity)).sum(0)


def distance(sample: Tensor, time: float) -> float:
    """Kolmogorov's, between a sample and the mixture's own marginal at a time."""
    values = sample.sort().values
    exact = torch.zeros_like(values)
    for weight, mean, width in zip(WEIGHTS, MEANS, WIDTHS, strict=True):
        deviation = math.sqrt((1 - time) ** 2 * width**2 + time**2)
        exact += weight * 0.5 * (1 + torch.erf((values - (1 - time) * mean) / deviation / math.sqrt(2)))
    ranks = torch.arange(1, len(values) + 1, dtype=values.dtype) / len(values)
    return float((ranks - exact).abs().max())


@pytest.mark.parametrize("noise_level", [0.3, 1.0, LARGEST_NOISE])
def test_the_marginals_of_a_mixture_are_those_of_the_ode_at_every_time(noise_level: float) -> None:
    count, steps = 40_000, 120
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, steps + 1, generator=generator, dtype=torch.float64)
    chain = draw_chain(mixture, noise, noise_level)
    ode = euler(mixture, noise[:, 0], steps)
    limit = 0.01  # Kolmogorov's at 1% is 0.008; 120 steps leave the rest
    assert distance(ode, 0.0) < limit
    for step in (steps // 4, steps // 2, 3 * steps // 4, steps):
        assert distance(chain[:, step], 1 - step / steps) < limit, step
    assert distance(chain[:, steps // 2] * 1.1, 0.5) > 2 * limit  # a tenth too wide would be seen


def test_the_chain_is_random_where_the_ode_is_not() -> None:
    """Without new noise the marginals would be right as well."""
    noise = torch.randn(4000, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise[:, 0] = noise[0, 0]
    assert draw_chain(mixture, noise, 1.0)[:, -1].std() > 0.3
    quiet = draw_chain(mixture, noise, 1e-6)[:, -1]
    torch.testing.assert_close(quiet, euler(mixture, noise[:, 0], 10), atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [2, 4, 10])
def test_few_steps_to_a_point_leave_its_noise_as_it_is_where_eulers_would_inflate_it(steps: int) -> None:
    """All actions are 0.7, so the velocity is (x - 0.7) / t and x_t is normal with deviation t."""
    noise = torch.randn(200_000, steps + 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    chain = draw_chain(lambda x, time: (x - 0.7) / time.to(x)[0], noise, 1.0)
    for step in range(1, steps):
        time = 1 - step / steps
        assert chain[:, step].std().item() == pytest.approx(time, rel=0.01)
        assert chain[:, step].mean().item() == pytest.approx(0.7 * (1 - time), abs=0.01)
    assert chain[:, -1].std().item() == pytest.approx(1 / steps, rel=0.01)  # the last step blurs by its own noise


def test_small_steps_are_those_of_the_published_diffusion() -> None:
    steps, step, noise_level = 10_000, 4_000, 0.5
    time, length = 0.6, 1e-4
    x, velocity = torch.tensor([0.3], dtype=torch.float64), torch.tensor([-0.8], dtype=torch.float64)
    mean, deviation = transition(x, velocity, step, steps, noise_level)
    sigma = noise_level * math.sqrt(time / (1 - time))
    drift = velocity + sigma**2 / (2 * time) * (x + (1 - time) * velocity)
    assert deviation == pytest.approx(sigma * math.sqrt(length), rel=1e-3)
    assert ((x - mean) / length).item() == pytest.approx(drift.item(), rel=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 50])
def test_no_step_draws_more_noise_than_it_has(steps: int) -> None:
    for step in range(steps):
        deviation, following = standard_deviation(step, steps, LARGEST_NOISE), 1 - (step + 1) / steps
        assert deviation > 0 and (deviation <= following + 1e-12 or step == steps - 1)


def bent(strength: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, time: torch.sin(2 * x * strength) + time.to(x).view(-1, *[1] * (x.ndim - 1)) * x


def test_the_density_of_a_chain_integrates_to_one() -> None:
    """Two steps of one number from a given start: over both, on a grid."""
    grid = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    middle, end = torch.meshgrid(grid, grid, indexing="ij")
    start = torch.full((grid.numel() ** 2,), 0.4, dtype=torch.float64)
    chain = torch.stack([start, middle.reshape(-1), end.reshape(-1)], 1)
    density = chain_log_prob(bent(torch.tensor(0.9)), chain, 1.2).sum(1).exp()
    step = float(grid[1] - grid[0])
    assert density.sum().item() * step**2 == pytest.approx(1.0, abs=1e-6)


def test_the_density_is_that_of_normal_numbers_one_by_one() -> None:
    noise = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    velocity = bent(torch.tensor(0.7, dtype=torch.float64))
    chain = draw_chain(velocity, noise, 0.8)
    found = chain_log_prob(velocity, chain, 0.8)
    for step in range(4):
        deviation = standard_deviation(step, 4, 0.8)
        for row in range(3):
            for number in range(2):
                expected = math.log(NormalDist().pdf(float(noise[row, step + 1, number])) / deviation)
                assert found[row, step, number].item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_of_the_density_is_the_finite_difference() -> None:
    strength = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    chain = draw_chain(bent(strength.detach()), noise, 0.6)

    def log_prob(value: Tensor) -> Tensor:
        return chain_log_prob(bent(value), chain, 0.6).sum()

    (gradient,) = torch.autograd.grad(log_prob(strength), strength)
    with torch.no_grad():
        difference = (log_prob(strength + 1e-5) - log_prob(strength - 1e-5)) / 2e-5
    assert gradient.item() == pytest.approx(difference.item(), rel=1e-6)
    assert abs(gradient.item()) > 0.1


def test_the_score_function_gives_the_gradient_of_the_expected_reward() -> None:
    """One step, one number: the action is normal around x - v, its square's expected slope is known."""
    count, noise_level, start, shift = 400_000, 0.5, 0.3, torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    noise[:, 0] = start

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        return shift.expand(len(x))

    chain = draw_chain(velocity, noise, noise_level).detach()
    reward = -(chain[:, -1].square())
    (chain_log_prob(velocity, chain, noise_level)[:, 0] * (reward - reward.mean())).mean().backward()
    assert shift.grad is not None
    assert shift.grad.item() == pytest.approx(2 * (start - 0.2), abs=0.01)
