"""Real-time chunking by the paper's formulas, an explicit Jacobian, and LeRobot's own test for it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lerobot.policies.factory import get_policy_class
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.inference.rtc import supports_rtc_inference
from peft import LoraConfig, get_peft_model
from test_flow_policy import build, sample
from torch import Tensor

from rlspec.vla.evaluation.policy_actor import register_policies
from rlspec.vla.policies.flow.modeling_flow import RlspecFlowPolicy, euler
from rlspec.vla.policies.guidance import GUIDED, Guidance, enable_guidance, published_settings

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


def test_only_policies_that_continue_a_prefix_row_by_row_are_guided() -> None:
    register_policies()
    assert all(get_policy_class(name).supports_rtc(SimpleNamespace()) for name in GUIDED)
    prepared: list[str] = []

    def policy(**settings: Any) -> SimpleNamespace:
        methods = {"init_rtc_processor": lambda: prepared.append("yes"), "requires_grad_": prepared.append}
        return SimpleNamespace(config=SimpleNamespace(**{"type": "smolvla", **settings}), **methods)

    assert enable_guidance(able := policy())
    assert prepared == [False, "yes"] and able.config.rtc_config.max_guidance_weight == 5.0
    for unfit in ({"use_relative_actions": True}, {"compile_model": True}, {"type": "groot"}, {"type": "act"}):
        assert not enable_guidance(policy(**unfit))


def test_adapters_around_a_policy_are_guided_with_it() -> None:
    policy = build(num_steps=2, chunk_size=8)
    wrapped = get_peft_model(policy, LoraConfig(target_modules=["action_in_proj"]))  # type: ignore[arg-type]
    assert enable_guidance(wrapped) and policy.config.rtc_config is not None
    prefix = torch.zeros(1, 6, policy.action_dim)
    chunk = wrapped.predict_action_chunk(sample(1), inference_delay=6, prev_chunk_left_over=prefix)
    assert chunk[:, :6].abs().mean() < 0.5 * chunk[:, 6:].abs().mean()
    assert not any(parameter.requires_grad for parameter in policy.parameters())


def test_the_settings_survive_saving(tmp_path: Path) -> None:
    policy = build(chunk_size=8, rtc_config=RTCConfig(max_guidance_weight=3.0))
    policy.save_pretrained(tmp_path)
    again = RlspecFlowPolicy.from_pretrained(tmp_path)
    assert again.config.rtc_config == policy.config.rtc_config


def test_lerobots_rollout_takes_it_with_settings_of_its_own() -> None:
    policy, batch = build(num_steps=4, chunk_size=8), sample()
    assert supports_rtc_inference(policy)
    noise, prefix = torch.randn(2, 8, policy.action_dim), torch.randn(2, 6, policy.action_dim)
    policy.config.rtc_config = RTCConfig(execution_horizon=1, max_guidance_weight=1e-9)
    weak = policy.predict_action_chunk(batch, noise=noise, inference_delay=1, prev_chunk_left_over=prefix)
    free = policy.predict_action_chunk(batch, noise=noise)
    torch.testing.assert_close(weak, free, atol=1e-5, rtol=0)
    policy.config.rtc_config = RTCConfig(enabled=False)
    off = policy.predict_action_chunk(batch, noise=noise, inference_delay=1, prev_chunk_left_over=prefix)
    torch.testing.assert_close(off, free, atol=0, rtol=0)
