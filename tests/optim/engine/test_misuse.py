"""What people get wrong is answered in one line with the remedy, before anything has moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rlspec.errors import CheckpointError, ConfigError
from rlspec.optim import SpectralOptimizer, build_optimizer


def matrix(rows: int = 8) -> nn.Parameter:
    param = nn.Parameter(torch.randn(rows, 6, generator=torch.Generator().manual_seed(0)))
    param.grad = torch.ones_like(param)
    return param


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": "1e-3"},
        {"lr": None},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"lr": torch.tensor([1e-3, 1e-3])},
        {"weight_decay": None},
        {"momentum": "x"},
        {"eps": -1.0},
        {"paper_scale": 0},
        {"scaling": -1.0},
        {"ns_steps": 0},
        {"ns_steps": 2.5},
        {"ns_steps": "5"},
        {"num_heads": 1.5},
        {"num_heads": True},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9,)},
        {"betas": 0.9},
        {"workspace_bytes": -1},
        {"telemetry_every": -1},
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}=.* must") as refusal:
        SpectralOptimizer([matrix()], **settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"num_head": 4}, "no key 'num_head'; did you mean num_heads"),
        ({"shedule": "cans"}, "no key 'shedule'; did you mean schedule"),
        ({"rule": "adamw", "schedule": "cans"}, "a group of rule adamw has no key 'schedule'"),
    ],
)
def test_a_key_of_a_group_that_would_be_ignored_is_refused(group: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SpectralOptimizer([{"params": [matrix()], **group}])
    optimizer = SpectralOptimizer([matrix()])
    with pytest.raises(ConfigError, match=words):
        optimizer.add_param_group({"params": [matrix()], **group})
    assert len(optimizer.param_groups) == 1


def test_groups_of_another_optimizer_and_keys_of_schedulers_are_taken() -> None:
    first = SpectralOptimizer([matrix()], momentum=0.5)
    torch.optim.lr_scheduler.OneCycleLR(first, max_lr=0.1, total_steps=5)
    assert SpectralOptimizer(first.param_groups).param_groups[0]["momentum"] == 0.5


def test_a_misspelt_setting_names_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="unknown option 'weight_dcay' for adamw; did you mean weight_decay"):
        SpectralOptimizer([matrix()], rule="adamw", weight_dcay=0.1)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda model: SpectralOptimizer(model), "params is a module"),
        (lambda model: build_optimizer(model.parameters(), rule="muon"), "model is a generator"),
        (lambda model: build_optimizer(model, rule="muon", num_heads=2), "num_heads is decided .* by the symmetry map"),
    ],
)
def test_the_wrong_builder_is_told_from_the_right_one(build: Callable[[nn.Module], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("rule", "edit", "words"),
    [
        ("muon", {"rule": "adamw"}, "has step, momentum_buffer and needs step, exp_avg"),
        ("muon", {"rule": "normuon"}, "needs .*make a new optimizer"),
        ("adamw", {"rule": "muon"}, "needs step, momentum_buffer"),
        ("muon", {"rule": "muno"}, "did you mean muon"),
        ("muon", {"num_heads": 3}, "3 heads do not divide"),
        ("normuon", {"num_heads": 2}, "of shape"),
        ("muon", {"normalise": "fro"}, "normalise='fro'"),
        ("muon", {"compute_dtype": "bf16"}, "did you mean bfloat16"),
        ("pion", {"promotion_steps": 99}, "promotion_steps=99"),
        ("muon", {"schedule": "polar"}, "schedule='polar'"),
        ("muon", {"state_dtype": "bf"}, "state_dtype='bf'"),
    ],
)
def test_settings_edited_after_the_first_step_are_checked_before_anything_moves(
    rule: str, edit: dict[str, Any], words: str
) -> None:
    param = matrix()
    optimizer = SpectralOptimizer([param], rule=rule, lr=0.1)
    optimizer.step()
    before = param.detach().clone()
    optimizer.param_groups[0].update(edit)
    with pytest.raises(ConfigError, match=words):
        optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("edit", [{"rule": "pion", "promotion_steps": 5}, {"num_heads": 2}, {"ns_steps": 7}])
def test_an_edit_that_fits_the_state_works_at_once(edit: dict[str, Any]) -> None:
    edited, built = matrix(), matrix()
    optimizer = SpectralOptimizer([edited], lr=0.1)
    optimizer.param_groups[0].update(edit)
    expected = SpectralOptimizer([built], lr=0.1, **edit)
    optimizer.step()
    expected.step()
    assert torch.equal(edited, built)


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no state of an optimizer"):
        SpectralOptimizer([matrix()]).load_state_dict({"model": {}})


def test_a_state_from_before_a_setting_existed_takes_its_default() -> None:
    param = matrix()
    optimizer = SpectralOptimizer([param], momentum=0.5)
    optimizer.step()
    state = optimizer.state_dict()
    for key in ("update_clip", "cap_method", "state_dtype"):
        del state["param_groups"][0][key]
    optimizer.load_state_dict(state)
    optimizer.step()
    assert optimizer.param_groups[0]["cap_method"] == "hard"
    assert optimizer.param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize("missing", [0, 1])
def test_a_factor_that_stands_still_for_its_partner_is_told_once(missing: int) -> None:
    a, b = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(8, 3))
    optimizer = SpectralOptimizer([("a", a), ("b", b)], rule="lora_muon")
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    optimizer.step()
    (a, b)[missing].grad = None
    before = [a.detach().clone(), b.detach().clone()]
    with pytest.warns(UserWarning, match=f"{'ab'[missing]} has no gradient, so that its partner") as told:
        optimizer.step()
        optimizer.step()
    assert len(told) == 1
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])
