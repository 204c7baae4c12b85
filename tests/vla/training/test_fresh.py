"""Parts of a pretrained policy that begin anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_cases import MadeUpSamples, make_recipe

from rlspec.errors import ConfigError
from rlspec.optim import symmetry_map
from rlspec.vla.training.fresh import renew
from rlspec.vla.training.policy import LoadedPolicy, load_policy


def load(folder: Path, *overrides: str) -> LoadedPolicy:
    policy = make_recipe(folder, *overrides).policy
    return load_policy(policy, MadeUpSamples(), device="cpu", seed=3, resume=None)  # type: ignore[arg-type]


def test_a_fresh_head_is_that_of_a_new_policy_on_the_pretrained_rest(tmp_path: Path) -> None:
    pretrained = load(tmp_path)
    new = {name: value.clone() for name, value in pretrained.policy.named_parameters()}
    with torch.no_grad():
        for parameter in pretrained.policy.parameters():
            parameter += 1.0
    pretrained.save(tmp_path / "pretrained", step=1)
    place = f"policy.path={tmp_path / 'pretrained'}"
    parts = {spec.name: spec.modality for spec in symmetry_map(pretrained.policy)}
    assert {"action", "vision"} <= set(parts.values())
    for name, value in load(tmp_path, place, "policy.fresh=[action]").policy.named_parameters():
        assert torch.equal(value, new[name] if parts[name] == "action" else new[name] + 1.0), name
    for name, value in load(tmp_path, place).policy.named_parameters():
        assert torch.equal(value, new[name] + 1.0), name


def test_a_part_that_a_policy_lacks_and_fresh_weights_without_old_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy.fresh: only of pretrained weights; add policy.path"):
        make_recipe(tmp_path, "policy.fresh=[action]")
    with pytest.raises(ConfigError, match=r"policy.fresh=action: the policy has no such part; it has none"):
        renew(torch.nn.Linear(2, 2), ["action"], torch.nn.Linear(2, 2))
