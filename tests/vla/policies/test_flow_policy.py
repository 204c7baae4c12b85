"""Flow matching: the integrator, the training target and the noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grounding import ACTIONS, CHUNK, features, make_scenes
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.vla.policies.backbone.text import ByteTextProcessorStep
from rlspec.vla.policies.flow.configuration_flow import RlspecFlowConfig
from rlspec.vla.policies.flow.modeling_flow import RlspecFlowPolicy, euler, time_embedding


def build(**settings: Any) -> RlspecFlowPolicy:
    torch.manual_seed(0)
    inputs, outputs = features(64)
    given = {"input_features": inputs, "output_features": outputs, "device": "cpu", "push_to_hub": False}
    return RlspecFlowPolicy(RlspecFlowConfig(**{**given, "image_size": 64, **settings}))


def sample(rows: int = 2) -> dict[str, Any]:
    scenes = make_scenes(rows, 1, 0, 64)
    ids, mask = ByteTextProcessorStep().encode_batch(scenes.texts)
    batch: dict[str, Any] = scenes.batch(torch.arange(rows))
    return batch | {"observation.language.tokens": ids, "observation.language.attention_mask": mask}


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_along_the_exact_field_every_number_of_steps_ends_at_the_action(steps: int) -> None:
    noise, action = torch.randn(3, CHUNK, ACTIONS, dtype=torch.float64), torch.randn(3, CHUNK, ACTIONS).double()
    times: list[float] = []

    def field(x: Tensor, time: Tensor) -> Tensor:
        times.append(time[0].item())
        torch.testing.assert_close(x, time[:, None, None] * noise + (1 - time[:, None, None]) * action)
        return noise - action

    torch.testing.assert_close(euler(field, noise, steps), action)
    assert times == pytest.approx([1 - index / steps for index in range(steps)])


@pytest.mark.parametrize("steps", [1, 3])
def test_the_head_runs_once_per_denoising_step_and_the_backbone_once(steps: int) -> None:
    policy = build(num_steps=steps)
    calls = {"head": 0, "backbone": 0}
    policy.model.action_head.register_forward_hook(lambda *_: calls.update(head=calls["head"] + 1))
    policy.model.backbone.register_forward_hook(lambda *_: calls.update(backbone=calls["backbone"] + 1))
    policy.predict_action_chunk(sample())
    assert calls == {"head": steps, "backbone": 1}


def test_the_loss_is_the_squared_error_of_noise_minus_action() -> None:
    policy, batch = build(), sample()
    noise, time = torch.randn(2, CHUNK, ACTIONS), torch.tensor([0.25, 0.8])
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    policy.model.action_head.register_forward_hook(lambda _, given, out: seen.append((given[0], given[1], out)))
    batch["action_is_pad"][:, 6:] = True
    loss, _ = policy(batch, noise=noise, time=time)
    noisy, at, velocity = seen[0]
    for row in range(2):
        torch.testing.assert_close(noisy[row], time[row] * noise[row] + (1 - time[row]) * batch["action"][row])
    assert torch.equal(at, time)
    expected = ((velocity - noise + batch["action"]) ** 2)[:, :6].mean()
    torch.testing.assert_close(loss, expected)


def test_several_draws_per_observation_are_their_mean() -> None:
    policy, batch = build(time_samples=3), sample()
    noise, time = torch.randn(6, CHUNK, ACTIONS), torch.rand(6)
    together = policy(batch, noise=noise, time=time)[0]
    policy.config.time_samples = 1
    parts = [policy(batch, noise=noise[i : i + 2], time=time[i : i + 2])[0] for i in (0, 2, 4)]
    torch.testing.assert_close(together, torch.stack(parts).mean())


def test_training_times_follow_the_beta_distribution() -> None:
    """Beta(1.5, 1) has mean 0.6 and is below 0.25 with probability 0.25 ** 1.5 = 0.125."""
    torch.manual_seed(0)
    times = build()._draw_time(torch.zeros(20_000, 1, 1))
    assert times.mean().item() == pytest.approx(0.6, abs=0.01)
    assert (times < 0.25).float().mean().item() == pytest.approx(0.125, abs=0.01)
    assert times.min() > 0 and times.max() <= 1


def test_noise_has_a_seed_of_its_own_or_torchs() -> None:
    batch = sample()
    policy = build(noise_seed=3)
    first, second = policy.predict_action_chunk(batch), policy.predict_action_chunk(batch)
    policy.reset()
    torch.manual_seed(99)
    assert torch.equal(policy.predict_action_chunk(batch), first) and not torch.equal(first, second)
    free = build()
    torch.manual_seed(5)
    third = free.predict_action_chunk(batch)
    torch.manual_seed(5)
    assert torch.equal(free.predict_action_chunk(batch), third)


def test_times_that_differ_look_different() -> None:
    waves = time_embedding(torch.linspace(0, 1, 50), 64)
    assert torch.pdist(waves).min() > 0.1 and waves.abs().max() <= 1


@pytest.mark.parametrize("name", ["num_steps", "time_samples"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
        build(**{name: 0})


def test_the_default_number_of_steps_goes_by_size() -> None:
    assert build().config.num_steps == 4
    inputs, outputs = features(64)
    config = RlspecFlowConfig(size="pretrained", vlm_name="any", input_features=inputs, output_features=outputs)
    assert config.num_steps == 10
