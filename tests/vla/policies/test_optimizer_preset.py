"""Every policy of ours asks for the optimizer that recipes have as `optim=vla_pion`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rlspec.config.rules import preset
from rlspec.vla import RlspecSmolVLAConfig, SpectralOptimizerConfig
from rlspec.vla.policies.adapter.configuration_adapter import RlspecAdapterConfig
from rlspec.vla.policies.flow.configuration_flow import RlspecFlowConfig
from rlspec.vla.policies.pi05.configuration_pi05 import RlspecPI05Config

POLICIES = (RlspecAdapterConfig, RlspecFlowConfig, RlspecPI05Config, RlspecSmolVLAConfig)
OWN = {"lr", "betas", "eps", "weight_decay", "grad_clip_norm"}
"""What the policy says."""


@pytest.mark.parametrize("kind", POLICIES)
def test_it_is_the_recipes_vla_pion_and_the_policys_own_rate_and_decay(kind: Any) -> None:
    config = kind(device="cpu")
    found = dataclasses.asdict(config.get_optimizer_preset())
    wanted = dataclasses.asdict(SpectralOptimizerConfig()) | preset("vla_pion")
    wanted.pop("name")
    assert {name: value for name, value in found.items() if name not in OWN} == {
        name: value for name, value in wanted.items() if name not in OWN
    }
    assert (found["lr"], found["weight_decay"]) == (config.optimizer_lr, config.optimizer_weight_decay)
    assert found["grad_clip_norm"] == config.optimizer_grad_clip_norm


@pytest.mark.parametrize("kind", POLICIES)
def test_what_a_user_sets_wins(kind: Any) -> None:
    config = kind(
        device="cpu", optimizer_rule="normuon", optimizer_roles="", optimizer_promotion_steps=2.0,
        optimizer_adjust_lr="match_spectral_adamw", optimizer_paper_scale=2.0,
    )  # fmt: skip
    found = config.get_optimizer_preset()
    assert (found.rule, found.roles, found.promotion_steps) == ("normuon", None, 2.0)
    assert (found.adjust_lr, found.paper_scale) == ("match_spectral_adamw", 2.0)
