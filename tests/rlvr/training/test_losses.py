"""GMPO's loss against a plain Python loop, against TRL's where that is right, and in its limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlspec.rlvr.training.losses import geometric_mean_ratio, gmpo_loss


def batch(seed: int = 0, spread: float = 0.6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(6, 5, generator=generator, dtype=torch.float64) * 3
    old = logps + spread * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.5, -0.7, 0.0, 0.3, -2.0, 0.9], dtype=torch.float64)
    mask = torch.ones(6, 5, dtype=torch.long)
    mask[1, 3:] = 0
    mask[4, 1:] = 0
    return logps, old, advantages, mask


def plain_gmpo(
    logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float, ratio: Tensor | None = None
) -> float:
    """The paper's formula, token by token, in ratio space."""
    losses = []
    for row in range(len(advantages)):
        advantage, product, count = advantages[row].item(), 1.0, 0
        for token in range(logps.shape[1]):
            if not mask[row, token]:
                continue
            r = math.exp(logps[row, token].item() - old[row, token].item())
            if advantage > 0:
                r = min(r, math.exp(high))
            elif advantage < 0:
                r = max(r, math.exp(-low))
            product *= r * (1.0 if ratio is None else ratio[row, token].item())
            count += 1
        losses.append(-advantage * product ** (1 / count) if count else 0.0)
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("low", "high"), [(0.4, 0.4), (0.1, 0.7)])
def test_the_loss_is_the_papers_formula(low: float, high: float) -> None:
    data = batch()
    terms = gmpo_loss(*data, epsilon_low=low, epsilon_high=high)
    assert terms.loss.item() == pytest.approx(plain_gmpo(*data, low, high), rel=1e-12)


def test_the_gradient_is_that_of_the_formula_and_zero_where_a_token_is_clipped() -> None:
    logps, old, advantages, mask = batch()
    logps.requires_grad_()
    terms = gmpo_loss(logps, old, advantages, mask)
    (gradient,) = torch.autograd.grad(terms.loss, logps)
    step = 1e-6
    for row in range(6):
        for token in range(5):
            moved = [logps.detach().clone() for _ in range(2)]
            moved[0][row, token] += step
            moved[1][row, token] -= step
            up, down = (plain_gmpo(values, old, advantages, mask, 0.4, 0.4) for values in moved)
            assert gradient[row, token].item() == pytest.approx((up - down) / (2 * step), abs=1e-7)
    assert terms.clipped.any()
    assert (gradient[terms.clipped] == 0).all()


def test_a_sequence_without_tokens_contributes_nothing_and_no_nan() -> None:
    logps, old, advantages, mask = batch()
    mask[0] = 0
    logps.requires_grad_()
    terms = gmpo_loss(logps, old, advantages, mask)
    terms.loss.backward()
    assert torch.isfinite(logps.grad).all()
    assert terms.loss.item() == pytest.approx(plain_gmpo(logps, old, advantages, mask, 0.4, 0.4), rel=1e-12)


def test_on_policy_its_gradient_is_sequence_mean_grpos() -> None:
    logps, _, advantages, mask = batch()
    logps.requires_grad_()
    (gmpo,) = torch.autograd.grad(gmpo_loss(logps, logps.detach(), advantages, mask).loss, logps)
    ratio = torch.exp(logps - logps.detach())
    grpo_loss = -(ratio * advantages[:, None] * mask).sum(-1) / mask.sum(-1)
    (grpo,) = torch.autograd.grad(grpo_loss.mean(), logps)
    torch.testing.assert_close(gmpo, grpo, rtol=1e-12, atol=1e-15)


def test_a_rollout_engines_token_ratios_enter_as_their_geometric_mean() -> None:
    data = batch()
    ratio = torch.rand(6, 5, dtype=torch.float64) + 0.5
    terms = gmpo_loss(*data, sampling_ratio=ratio)
    assert terms.loss.item() == pytest.approx(plain_gmpo(*data, 0.4, 0.4, ratio), rel=1e-12)


def test_a_sequence_ratio_counts_like_its_tokens_and_zero_removes_the_sequence() -> None:
    mask = batch()[3]
    ratio = torch.rand(6, 5, dtype=torch.float64) + 0.5
    product = torch.where(mask.bool(), ratio, 1.0).prod(-1, keepdim=True)
    torch.testing.assert_close(geometric_mean_ratio(product, mask.double()), geometric_mean_ratio(ratio, mask.double()))
    product[2] = 0
    assert geometric_mean_ratio(product, mask.double())[2] == 0


def test_padding_is_never_counted_as_clipped() -> None:
    logps, old, advantages, mask = batch(spread=50.0)
    terms = gmpo_loss(logps, old, advantages, mask)
    assert not (terms.clipped & (mask == 0)).any()
    assert terms.clipped[1, :3].any() or terms.clipped[0].any()
