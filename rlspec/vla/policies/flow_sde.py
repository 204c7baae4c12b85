"""Flow matching as a diffusion: denoising steps that are Gaussian, so that a chunk of actions has a density.

Paths are x_t = t noise + (1 - t) action with velocity v = E[noise - action | x_t], sampled from t = 1 to 0. The ODE's
Euler step to t' < t keeps the estimates of both ends, action = x - t v and noise = x + (1 - t) v:

    x_t' = (1 - t') action + t' noise                                         = x - (t - t') v

Here a part of the noise is drawn anew, of a size s that leaves the noise's share of x_t' what it is:

    x_t' ~ N((1 - t') action + sqrt(t'^2 - s^2) noise, s^2)                    (as DDIM, arXiv 2010.02502)
    s^2  = noise_level^2 / 2 * t'^2 (1 - ((1 - t) t' / ((1 - t') t))^2)

For small steps that is the SDE of Flow-GRPO and pi_RL (arXiv 2505.05470, 2510.25889), which has the ODE's marginals for
every diffusion sigma, here sigma_t = noise_level sqrt(t / (1 - t)) as published:

    dx = [v + sigma_t^2 / (2 t) (x + (1 - t) v)] dt + sigma_t dw

Its Euler-Maruyama step adds s^2 and takes away less, which inflates the four to ten steps of a robot's policy; this one
does not. The last step has t' = 0, where nothing may be drawn without blurring the action: there the SDE's own
s = noise_level (t - t') is kept, as without it the last velocity would have no density and learn nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""Of x (B, ...) at times (B,)."""
LARGEST_NOISE = math.sqrt(2)
"""Noise level at which all noise of a step is drawn anew (ancestral sampling)."""


def transition(x: Tensor, velocity: Tensor, step: int, steps: int, noise_level: float) -> tuple[Tensor, float]:
    """Mean (B, ...) and standard deviation of what follows x (B, ...) in step `step` of `steps`, counted from 0."""
    time, following = 1 - step / steps, 1 - (step + 1) / steps
    deviation = standard_deviation(step, steps, noise_level)
    action, noise = x - time * velocity, x + (1 - time) * velocity
    kept = math.sqrt(max(following**2 - deviation**2, 0.0))
    return (1 - following) * action + kept * noise, deviation


def standard_deviation(step: int, steps: int, noise_level: float) -> float:
    """Of what is drawn in a step, see above."""
    time, following = 1 - step / steps, 1 - (step + 1) / steps
    if step == steps - 1:
        return noise_level / steps
    shrinks = (1 - time) * following / ((1 - following) * time)
    return noise_level / math.sqrt(2) * following * math.sqrt(1 - shrinks**2)


def draw_chain(velocity: Velocity, noise: Tensor, noise_level: float) -> Tensor:
    """From noise to actions, (B, K + 1, ...): x at time 1, then after each of K steps.

    Args:
        velocity: of x at a time.
        noise: (B, K + 1, ...) standard normal: x at time 1, and what each step draws.
        noise_level: in (0, sqrt 2].
    """
    steps = noise.shape[1] - 1
    chain = [noise[:, 0]]
    for step in range(steps):
        mean, deviation = transition(chain[-1], _at(velocity, chain[-1], step, steps), step, steps, noise_level)
        chain.append(mean + deviation * noise[:, step + 1])
    return torch.stack(chain, 1)


def chain_log_prob(velocity: Velocity, chain: Tensor, noise_level: float) -> Tensor:
    """Log-density of each drawn number given the chain before it, (B, K, ...) in float64; x at time 1 is given."""
    steps = chain.shape[1] - 1
    found = []
    for step in range(steps):
        x = chain[:, step]
        mean, deviation = transition(x, _at(velocity, x, step, steps), step, steps, noise_level)
        found.append(normal_log_prob(chain[:, step + 1], mean, math.log(deviation)))
    return torch.stack(found, 1)


def normal_log_prob(value: Tensor, mean: Tensor, log_deviation: Tensor | float) -> Tensor:
    """Of independent normal numbers, in float64: sums over a chunk have hundreds of terms."""
    scale = log_deviation.double() if isinstance(log_deviation, Tensor) else torch.tensor(log_deviation).double()
    standard = (value.double() - mean.double()) * torch.exp(-scale).to(value.device)
    return -0.5 * standard.square() - scale.to(value.device) - 0.5 * math.log(2 * math.pi)


def _at(velocity: Velocity, x: Tensor, step: int, steps: int) -> Tensor:
    return velocity(x, torch.full((len(x),), 1 - step / steps, dtype=torch.float32, device=x.device))
