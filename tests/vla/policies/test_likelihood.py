"""Chunks of actions as draws of a policy: what is drawn, how dense it is, and which parameters it moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grounding import ACTIONS, CHUNK, features, make_scenes
from lerobot.configs import FeatureType, PolicyFeature
from tiny_smolvla import tiny_settings
from torch import Tensor
from torch.distributions import Normal

from rlspec.contract.policies import WITH_LIKELIHOOD
from rlspec.errors import ConfigError
from rlspec.vla import RlspecPI05Config, RlspecSmolVLAConfig
from rlspec.vla.policies.adapter.configuration_adapter import RlspecAdapterConfig
from rlspec.vla.policies.adapter.modeling_adapter import RlspecAdapterPolicy
from rlspec.vla.policies.backbone.text import ByteTextProcessorStep
from rlspec.vla.policies.flow.configuration_flow import RlspecFlowConfig
from rlspec.vla.policies.flow.modeling_flow import RlspecFlowPolicy
from rlspec.vla.policies.flow_sde import chain_log_prob
from rlspec.vla.policies.likelihood import distribution_of
from rlspec.vla.policies.pi05.modeling_pi05 import RlspecPI05Policy
from rlspec.vla.policies.smolvla.modeling_smolvla import RlspecSmolVLAPolicy

Case = tuple[Any, dict[str, Any]]  # a policy and a batch
STD = 0.2


def table(kind: str, **settings: Any) -> Case:
    torch.manual_seed(0)
    inputs, outputs = features(64)
    given = {"input_features": inputs, "output_features": outputs, "device": "cpu", "push_to_hub": False}
    given |= {"image_size": 64, **settings}
    scenes = make_scenes(3, 1, 0, 64)
    ids, mask = ByteTextProcessorStep().encode_batch(scenes.texts)
    batch: dict[str, Any] = scenes.batch(torch.arange(3))
    batch |= {"observation.language.tokens": ids, "observation.language.attention_mask": mask}
    if kind == "flow":
        return RlspecFlowPolicy(RlspecFlowConfig(**given)).eval(), batch
    return RlspecAdapterPolicy(RlspecAdapterConfig(**given, action_std=STD)).eval(), batch


def words(size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    kinds = {
        "input_features": {
            "observation.images.external": PolicyFeature(FeatureType.VISUAL, (3, size, size)),
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
    }
    generator = torch.Generator().manual_seed(1)
    batch = {
        "observation.images.external": torch.rand(3, 3, size, size, generator=generator),
        "observation.state": torch.randn(3, 8, generator=generator),
        "observation.language.tokens": torch.randint(0, 250, (3, 12), generator=generator),
        "observation.language.attention_mask": torch.ones(3, 12, dtype=torch.bool),
    }
    return kinds, batch


@pytest.fixture
def case(tiny_vlm: Path, tiny_pi05: dict[str, Any]) -> Callable[[str], Case]:
    def make(kind: str) -> Case:
        if kind in ("flow", "adapter"):
            return table(kind)
        torch.manual_seed(0)
        if kind == "smolvla":
            kinds, batch = words(64)
            return RlspecSmolVLAPolicy(RlspecSmolVLAConfig(**tiny_settings(tiny_vlm), **kinds)).eval(), batch
        kinds, batch = words(56)
        return RlspecPI05Policy(RlspecPI05Config(**tiny_pi05, **kinds)).eval(), batch

    return make


def noise_for(policy: Any, noise_level: float = 0.5, rows: int = 3) -> Tensor:
    shape = distribution_of(policy, noise_level).shape
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("kind", ["flow", "smolvla", "pi05"])
def test_without_new_noise_a_draw_is_the_policys_own_chunk(kind: str, case: Callable[[str], Case]) -> None:
    policy, batch = case(kind)
    noise = noise_for(policy)
    drawn = distribution_of(policy, 1e-6).draw(batch, noise)
    expected = policy.predict_action_chunk(dict(batch), noise=noise[:, 0])
    torch.testing.assert_close(drawn[:, -1, :, : expected.shape[2]], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["flow", "smolvla", "pi05", "adapter"])
def test_the_ratio_of_an_unchanged_policy_is_one_and_a_changed_ones_is_not(
    kind: str, case: Callable[[str], Case]
) -> None:
    policy, batch = case(kind)
    distribution = distribution_of(policy, 0.5)
    draws = distribution.draw(batch, noise_for(policy))
    with torch.no_grad():
        before = distribution.log_prob(batch, draws)
    again = distribution.log_prob(batch, draws)
    assert before.dtype == torch.float64 and before.shape == (3,)
    torch.testing.assert_close((again - before).exp(), torch.ones(3).double(), atol=1e-6, rtol=0)
    again.sum().backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert any("action" in name for name in moved)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.grad is not None and parameter.grad.norm() > 0:
                parameter += 1e-4 * parameter.grad / parameter.grad.norm()
        assert (distribution.log_prob(batch, draws) - before).sum() > 0


def test_a_flow_policys_density_is_its_chains_over_what_is_carried_out() -> None:
    policy, batch = table("flow", n_action_steps=5)
    distribution = distribution_of(policy, 0.5)
    draws = distribution.draw(batch, noise_for(policy))
    assert draws.shape == (3, 5, CHUNK, ACTIONS)
    draws[:, -1, 5:] += 1.0  # of rows that nobody carries out
    chains = chain_log_prob(policy.velocity_field(batch), draws, 0.5)
    expected = torch.stack([sum(chains[row, step, :5].sum() for step in range(4)) for row in range(3)])  # type: ignore
    torch.testing.assert_close(distribution.log_prob(batch, draws), expected, atol=1e-3, rtol=1e-5)


def test_a_regression_head_draws_from_a_gaussian_whose_scale_is_learnt() -> None:
    policy, batch = table("adapter")
    distribution = distribution_of(policy, 0.5)
    noise = noise_for(policy)
    draws = distribution.draw(batch, noise)
    mean = policy.predict_action_chunk(batch)
    torch.testing.assert_close(draws[:, 0], mean + STD * noise[:, 0])
    found = distribution.log_prob(batch, draws)
    expected = Normal(mean.double(), STD).log_prob(draws[:, 0].double()).sum((1, 2))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-6)
    found.sum().backward()
    slope = (noise.double().square() - 1).sum((0, 1, 2))  # of log N(x; mean, s) in log s
    torch.testing.assert_close(policy.log_scale.grad.double(), slope, atol=1e-3, rtol=1e-4)
    assert "model.action_head.log_scale" in policy.state_dict()


def test_the_scale_is_a_parameter_of_the_action_part_and_only_where_it_is_asked_for() -> None:
    from rlspec.optim import symmetry_map

    policy, _ = table("adapter")
    (spec,) = [spec for spec in symmetry_map(policy) if spec.name.endswith("log_scale")]
    assert spec.modality == "action"
    with pytest.raises(ConfigError, match="action_std=0 must be above 0"):
        RlspecAdapterConfig(action_std=0)


def test_a_policy_without_a_likelihood_is_refused_with_those_that_have_one() -> None:
    bare = SimpleNamespace(config=SimpleNamespace(type="act"))
    with pytest.raises(ConfigError) as caught:
        distribution_of(bare, 0.5)
    assert "policy.type=act" in str(caught.value) and all(name in str(caught.value) for name in WITH_LIKELIHOOD)
