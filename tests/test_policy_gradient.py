"""Advantages and clipping that language models and robots' policies share, against plain loops and a bandit."""

from __future__ import annotations

import math

import pytest
import torch

from rlspec.policy_gradient import approx_kl, bound_log_ratio, clipped_surrogate, group_advantages


def test_advantages_are_rewards_less_the_mean_over_the_deviation_of_their_group() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    mean = 0.6
    deviation = math.sqrt(sum((value - mean) ** 2 for value in rewards.tolist()) / 4)
    expected = torch.tensor([(value - mean) / deviation for value in rewards.tolist()])
    torch.testing.assert_close(group_advantages(rewards), expected)
    torch.testing.assert_close(group_advantages(rewards, scale="none"), rewards - 0.6)


def test_groups_are_rows_and_trls_scales_are_those_of_the_group_and_of_the_batch() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    by_group = group_advantages(rewards, epsilon=1e-4)
    assert by_group[0].tolist() == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3])
    assert by_group[1].tolist() == [0, 0, 0, 0]
    assert group_advantages(rewards, scale="none")[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    batch = group_advantages(rewards, scale="batch", epsilon=1e-4)
    assert batch[0, 0] == pytest.approx(0.75 / (float(rewards.std()) + 1e-4))


@pytest.mark.parametrize(
    "rewards", [[1.0, 1.0, 1.0], [0.0, 0.0], [0.1, 0.1, 0.1], [math.nan, 1.0], [math.nan, 1.0, 1.0]]
)
def test_a_group_without_spread_teaches_nothing(rewards: list[float]) -> None:
    assert torch.equal(group_advantages(torch.tensor(rewards)), torch.zeros(len(rewards)))


def test_a_sample_without_reward_is_left_out_of_its_group() -> None:
    found = group_advantages(torch.tensor([1.0, math.nan, 0.0, 0.0]))
    torch.testing.assert_close(found[[0, 2, 3]], group_advantages(torch.tensor([1.0, 0.0, 0.0])))
    assert found[1] == 0


def test_the_surrogate_is_ppos_minimum_of_both_products_and_clipped_ones_have_no_gradient() -> None:
    ratios = [0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 3.0]
    log_ratio = torch.tensor(ratios, dtype=torch.float64).log().repeat(3).requires_grad_()
    advantages = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64).repeat_interleave(len(ratios))
    loss, clipped = clipped_surrogate(log_ratio, advantages, clip_low=0.2, clip_high=0.28)
    expected = [
        -min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
        for ratio, advantage in zip(log_ratio.detach().exp().tolist(), advantages.tolist(), strict=True)
    ]
    torch.testing.assert_close(loss.detach(), torch.tensor(expected, dtype=torch.float64))
    loss.sum().backward()
    assert log_ratio.grad is not None
    assert clipped.tolist() == [*[ratio > 1.28 for ratio in ratios], *[ratio < 0.8 for ratio in ratios], *[False] * 7]
    assert torch.equal(clipped | (advantages == 0), log_ratio.grad == 0)


def test_only_the_side_that_the_sign_would_exploit_is_bounded() -> None:
    log_ratio = torch.tensor([[-2.0, 2.0], [-2.0, 2.0]])
    bounded, _ = bound_log_ratio(log_ratio, torch.tensor([[1.0], [-1.0]]), -0.4, 0.3)
    torch.testing.assert_close(bounded, torch.tensor([[-2.0, 0.3], [-0.4, 2.0]]))


def test_the_estimate_of_the_divergence_has_the_right_mean_and_no_negative_part() -> None:
    generator = torch.Generator().manual_seed(0)
    shift = 0.3  # of N(0, 1): the divergence is shift^2 / 2
    old = torch.randn(400_000, generator=generator, dtype=torch.float64)
    each = approx_kl(shift * old - shift**2 / 2)
    assert each.min() >= 0
    assert each.mean() == pytest.approx(shift**2 / 2, rel=0.02)


def test_the_gradient_of_the_loss_is_reinforces_on_a_bandit_with_a_known_answer() -> None:
    """Three arms, softmax: the gradient of the expected reward is p_k (r_k - mean reward)."""
    rewards = torch.tensor([0.2, 1.0, 0.5], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    probabilities = logits.detach().softmax(0)
    baseline = probabilities @ rewards
    log_prob = logits.log_softmax(0)
    loss, clipped = clipped_surrogate(log_prob - log_prob.detach(), rewards - baseline, clip_low=0.2, clip_high=0.28)
    (probabilities * loss).sum().backward()  # the expectation over arms, without sampling
    assert not clipped.any()
    torch.testing.assert_close(logits.grad, -probabilities * (rewards - baseline))
