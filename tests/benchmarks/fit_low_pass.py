"""Fit the five odd quintics of `rlspec.optim.kernels.schedules.LOW_PASS`: `python tests/benchmarks/fit_low_pass.py`.

The composition should take singular values in [.05, .45] to 1 and those in [.55, 1] to 0 (cut-off tau = .5). L-BFGS-B
on the mean squared error from many random starts around the classic quintic, the best refined on higher powers of the
error; intermediate values above 1.2 are penalised, so that rounding is not amplified. Prints the coefficients and
their largest and mean errors. Takes about a minute.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.optimize import minimize

STEPS, TAU, MARGIN, LOWEST = 5, 0.5, 0.05, 0.05
PASS = torch.linspace(LOWEST, TAU - MARGIN, 200, dtype=torch.float64)
STOP = torch.linspace(TAU + MARGIN, 1.0, 200, dtype=torch.float64)
START = [(1.875, -1.25, 0.375)] * STEPS


def compose(coefficients: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The composition, and how far intermediate values exceed 1.2, squared and averaged."""
    excess = torch.zeros((), dtype=x.dtype)
    for a, b, c in coefficients.reshape(STEPS, 3):
        x = a * x + b * x**3 + c * x**5
        excess = excess + (x.abs() - 1.2).clamp(min=0).square().mean()
    return x, excess


def loss_and_gradient(flat: np.ndarray, power: int) -> tuple[float, np.ndarray]:
    coefficients = torch.tensor(flat, requires_grad=True)
    x, excess = compose(coefficients, torch.cat([PASS, STOP]))
    target = torch.cat([torch.ones_like(PASS), torch.zeros_like(STOP)])
    loss = (x - target).abs().pow(power).mean() + 10 * excess
    loss.backward()
    return loss.item(), coefficients.grad.numpy()


def errors(flat: np.ndarray) -> tuple[float, float]:
    with torch.no_grad():
        coefficients = torch.tensor(flat)
        error = torch.cat([compose(coefficients, PASS)[0] - 1, compose(coefficients, STOP)[0]]).abs()
    return error.max().item(), error.mean().item()


def fit(starts: int, seed: int) -> np.ndarray:
    generator, found = np.random.default_rng(seed), []
    for _ in range(starts):
        start = np.array(START).ravel() + generator.normal(scale=1.0, size=3 * STEPS)
        found.append(minimize(loss_and_gradient, start, args=(2,), jac=True, method="L-BFGS-B"))
    found.sort(key=lambda result: result.fun)
    candidates = []
    for start in found[:8]:  # higher powers bring the largest error down
        refined = start.x
        for power in (4, 8):
            options = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-15}
            refined = minimize(
                loss_and_gradient, refined, args=(power,), jac=True, method="L-BFGS-B", options=options
            ).x
            candidates.append(refined)
    return min((np.round(each, 4) for each in candidates), key=lambda each: errors(each)[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    coefficients = fit(arguments.starts, arguments.seed)
    for row in coefficients.reshape(STEPS, 3):
        print(tuple(row.tolist()))
    print("largest error {:.3f}, mean {:.4f}".format(*errors(coefficients.ravel())))
