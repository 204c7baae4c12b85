"""Real-time chunking by the paper's formulas, an explicit Jacobian, and LeRobot's own test for it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.inference.rtc import supports_rtc_inference
from test_flow_policy import build, sample
from torch import Tensor

from rlspec.vla.policies.flow.modeling_flow import euler
from rlspec.vla.policies.guidance import Guidance, published_settings, take_prefixes

CHUNK, ACTIONS, DELAY, KNOWN = 10, 3, 2, 7


def guidance(prefix: Tensor, delay: int = DELAY, rows: int = 1) -> Guidance:
    return Guidance.of(prefix, delay, None, published_settings(), torch.Size((rows, CHUNK, prefix.shape[-1])))


def test_weights_are_the_papers() -> None:
    # arXiv 2506.07339, equation 5, with H - s = KNOWN
    steps = [(KNOWN - i) / (KNOWN - DELAY + 1) for i in range(DELAY, KNOWN)]
    falling = [c * (math.exp(c) - 1) / (math.e - 1) for c in steps]
    expected = torch.tensor([1.0] * DELAY + falling + [0.0] * (CHUNK - KNOWN))
    torch.testing.assert_close(guidance(torch.randn(KNOWN, ACTIONS)).weights, expected)
    assert guidance(torch.randn(40, ACTIONS), delay=40).weights.tolist() == [1.0] * CHUNK


@pytest.mark.parametrize("t", [1.0, 0.6, 0.05])
def test_the_correction_is_the_papers_with_an_explicit_jacobian(t: float) -> None:
    torch.manual_seed(0)
    x, mix = torch.randn(2, CHUNK, ACTIONS).double(), torch.randn(CHUNK * ACTIONS, CHUNK * ACTIONS).double()
    prefix = torch.randn(2, KNOWN, ACTIONS).double()
    guided = guidance(prefix, rows=2).around(lambda x, _: torch.tanh(x.flatten(1) @ mix).view_as(x))

    expected = []
    for row, known in zip(x.reshape(2, -1), prefix, strict=True):
        v = torch.tanh(row @ mix)
        jacobian = torch.eye(len(row)).double() - t * (1 - v**2)[:, None] * mix.T  # of row - t v
        target = torch.zeros(CHUNK, ACTIONS).double()
        target[:KNOWN] = known
        weights = guidance(known).weights.double().repeat_interleave(ACTIONS)
        tau = 1 - t
        r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        factor = 5.0 if tau == 0 else min(5.0, (1 - tau) / (tau * r2))
        expected.append(v - factor * (weights * (target.flatten() - (row - t * v))) @ jacobian)
    found = guided(x, torch.full((2,), t).double())
    torch.testing.assert_close(found.flatten(1), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_normal_actions_meet_what_is_committed_and_are_free_beyond() -> None:
    """Along the exact field of independent normal actions, whose posterior mean is known."""
    torch.manual_seed(1)
    noise, prefix = torch.randn(500, CHUNK, ACTIONS), torch.ones(KNOWN, ACTIONS)

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        t = time[:, None, None]
        return (x - (1 - t) * x / ((1 - t) ** 2 + t**2)) / t

    free, guided = (euler(field, noise, 50) for field in (velocity, guidance(prefix, rows=500).around(velocity)))
    error = (guided[:, :KNOWN] - prefix).square().mean((0, 2)).sqrt()
    assert error[:DELAY].max() < 0.1 < 0.8 < (free[:, :KNOWN] - prefix).square().mean((0, 2)).sqrt().min()
    assert (error.diff()[DELAY - 1 :] > 0).all()  # the further away, the freer
    torch.testing.assert_close(guided[:, KNOWN:], free[:, KNOWN:])


def test_a_policy_is_guided_by_one_pass_of_its_backbone() -> None:
    policy, batch = build(num_steps=10, chunk_size=8), sample()
    noise = torch.randn(2, 8, policy.action_dim)
    prefix = policy.predict_action_chunk(batch, noise=-noise)[:, 2:]
    calls: list[int] = []
    policy.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    free = policy.predict_action_chunk(batch, noise=noise)
    guided = policy.predict_action_chunk(batch, noise=noise, inference_delay=3, prev_chunk_left_over=prefix)
    assert len(calls) == 2
    assert not guided.requires_grad
    near, far = ((chunk[:, :3] - prefix[:, :3]).square().mean().sqrt() for chunk in (guided, free))
    assert near < 0.2 * far
    again = policy.predict_action_chunk(batch, noise=noise, inference_delay=3, prev_chunk_left_over=None)
    torch.testing.assert_close(again, free, rtol=0, atol=0)


def test_only_policies_that_can_be_guided_take_a_prefix() -> None:
    prepared: list[str] = []

    def policy(*, supports: bool, **settings: Any) -> SimpleNamespace:
        prepare = {"init_rtc_processor": lambda: prepared.append("yes")}
        return SimpleNamespace(supports_rtc=lambda: supports, config=SimpleNamespace(**settings), **prepare)

    assert take_prefixes(able := policy(supports=True))
    assert prepared == ["yes"] and able.config.rtc_config.max_guidance_weight == 5.0
    assert not take_prefixes(policy(supports=False))
    assert not take_prefixes(policy(supports=True, use_relative_actions=True))
    assert not take_prefixes(SimpleNamespace(config=SimpleNamespace()))


def test_lerobots_rollout_takes_it_with_settings_of_its_own() -> None:
    policy, batch = build(num_steps=4, chunk_size=8), sample()
    assert supports_rtc_inference(policy)
    noise, prefix = torch.randn(2, 8, policy.action_dim), torch.randn(2, 6, policy.action_dim)
    policy.config.rtc_config = RTCConfig(execution_horizon=1, max_guidance_weight=1e-9)
    weak = policy.predict_action_chunk(batch, noise=noise, inference_delay=1, prev_chunk_left_over=prefix)
    torch.testing.assert_close(weak, policy.predict_action_chunk(batch, noise=noise), atol=1e-5, rtol=0)
