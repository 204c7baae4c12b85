"""The optimizer as a torch optimizer: groups, precision of state, saving and loading, refusals."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from rlspec.errors import CheckpointError, ConfigError
from rlspec.optim import SpectralOptimizer, build_optimizer


class Pair(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8, dtype=dtype), nn.Linear(8, 4, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def groups(model: nn.Module, rule: str = "pion") -> list[dict]:
    named = list(model.named_parameters())
    return [
        {"params": [(n, p) for n, p in named if p.ndim > 1], "rule": rule, "role": "linear"},
        {"params": [(n, p) for n, p in named if p.ndim == 1], "rule": "adamw", "role": "bias", "lr": 0.01},
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).to(model.first.weight.dtype)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def stored(state: dict, **options) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_saving_and_loading_groups_of_two_rules_continues_bit_for_bit(dtype: torch.dtype) -> None:
    model = Pair(dtype)
    optimizer = SpectralOptimizer(groups(model), lr=0.05, promotion_steps="auto")
    train(model, optimizer, 3)
    weights, state = stored(model.state_dict()), stored(optimizer.state_dict())
    train(model, optimizer, 3, start=3)

    resumed = Pair(dtype)
    resumed.load_state_dict(weights)
    second = SpectralOptimizer(groups(resumed), lr=0.7)
    second.load_state_dict(state)
    train(resumed, second, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    first, other = optimizer.state_dict()["state"], second.state_dict()["state"]
    for index, entries in first.items():
        assert all(torch.equal(value, other[index][key]) for key, value in entries.items())
        assert all(value.dtype == other[index][key].dtype for key, value in entries.items())


def test_updates_too_small_for_bf16_add_up_in_the_master_weights() -> None:
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = SpectralOptimizer([weight], rule="pion", lr=1e-3)
    for _ in range(50):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert torch.allclose(optimizer.state[weight]["master"], torch.full((4, 4), 1 - 50 * 0.2e-3), atol=1e-5)
    assert torch.equal(weight, torch.full((4, 4), 0.99, dtype=torch.bfloat16))


@pytest.mark.filterwarnings("ignore:the gradient of")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_written_into_half_precision_weights_stays(dtype: torch.dtype) -> None:
    model = Pair(dtype)
    optimizer = SpectralOptimizer(groups(model, "muon"), lr=0.5)
    good = copy.deepcopy(model.state_dict())
    train(model, optimizer, 2)
    model.load_state_dict(good)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    train(model, optimizer, 1)
    assert all((value - good[name]).abs().max() < 0.02 for name, value in model.state_dict().items())
    with torch.no_grad():
        model.first.weight.clamp_(-0.05, 0.05)
        model.second.weight.zero_()
        model.second.bias[0] = torch.nan
    train(model, optimizer, 1)
    assert model.first.weight.abs().max() < 0.06
    assert model.second.weight.abs().max() < 0.01
    assert optimizer.state[model.second.bias]["master"].isnan().tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("before", "now"),
    [("_orig_mod.", ""), ("", "module."), ("module._orig_mod.", "_orig_mod."), ("module.module.", "module.")],
)
def test_what_is_around_a_model_is_no_part_of_its_parameters_names(before: str, now: str) -> None:
    stored, other = (
        SpectralOptimizer([(around + name, param) for name, param in Pair().named_parameters() if param.ndim > 1])
        for around in (before, now)
    )
    other.load_state_dict(stored.state_dict())
    assert other.param_groups[0]["param_names"] == [now + "first.weight", now + "second.weight"]


def test_hooks_see_a_state_before_it_is_checked_and_when_all_of_it_is_loaded() -> None:
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    state, optimizer, seen = stepped(weight).state_dict(), SpectralOptimizer([("weight", weight)]), []
    state["param_groups"][0]["param_names"] = ["old"]

    def rename_and_double(_: torch.optim.Optimizer, stored: dict) -> dict:
        (group,) = stored["param_groups"]
        kept = {name: 2 * value for name, value in stored["state"][0].items()}
        return {"state": {0: kept}, "param_groups": [{**group, "param_names": ["weight"]}]}

    optimizer.register_load_state_dict_pre_hook(rename_and_double)
    optimizer.register_load_state_dict_post_hook(lambda it: seen.append(it.state[weight]["master"].dtype))
    for _ in range(2):
        optimizer.load_state_dict(state)
    assert torch.equal(optimizer.state[weight]["master"], 2 * state["state"][0]["master"])
    assert seen == [torch.float32] * 2


def test_loading_refuses_other_parameters_and_names_them() -> None:
    optimizer = SpectralOptimizer(groups(Pair()))
    other = optimizer.state_dict()
    other["param_groups"][0]["param_names"] = ["first.weight", "head.weight"]
    with pytest.raises(
        CheckpointError, match="second.weight is not in the checkpoint; head.weight is not in the model"
    ):
        optimizer.load_state_dict(other)
    other["param_groups"][0]["param_names"] = ["second.weight", "first.weight"]
    with pytest.raises(CheckpointError, match="another order"):
        optimizer.load_state_dict(other)
    other["param_groups"][0]["param_names"] = ["first.bias", "second.weight"]
    other["param_groups"][1]["param_names"] = ["first.weight", "second.bias"]
    with pytest.raises(CheckpointError, match="first.weight was in group 1"):
        optimizer.load_state_dict(other)


def stepped(param: nn.Parameter, **settings) -> SpectralOptimizer:
    optimizer = SpectralOptimizer([("weight", param)], **settings)
    param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": "muon"}, "group 0.*rule was pion and is muon"),
        ({"rule": "pion", "num_heads": 2}, "group 0.*num_heads was 1 and is 2"),
        ({"rule": "pion", "head_axis": 1}, "group 0.*head_axis was 0 and is 1"),
    ],
)
def test_loading_refuses_another_rule_or_split_and_changes_nothing(settings: dict, words: str) -> None:
    state = stepped(nn.Parameter(torch.ones(4, 4)), rule="pion").state_dict()
    optimizer = SpectralOptimizer([("weight", nn.Parameter(torch.ones(4, 4)))], **settings)
    with pytest.raises(CheckpointError, match=words):
        optimizer.load_state_dict(state)
    assert {key: optimizer.param_groups[0][key] for key in settings} == settings
    assert not optimizer.state


@pytest.mark.parametrize("rule", ["adamw", "pion"])
def test_loading_refuses_a_state_of_another_shape_or_half_a_state(rule: str) -> None:
    state = stepped(nn.Parameter(torch.ones(4, 6)), rule=rule).state_dict()
    optimizer = SpectralOptimizer([("weight", nn.Parameter(torch.ones(4, 4)))], rule=rule)
    with pytest.raises(CheckpointError, match=r"weight: .* of shape \(4, 6\).*\(4, 4\)"):
        optimizer.load_state_dict(state)
    half = stepped(nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16)), rule=rule).state_dict()
    del half["state"][0]["master"]
    other = SpectralOptimizer([("weight", nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16)))], rule=rule)
    with pytest.raises(CheckpointError, match="weight: .*master"):
        other.load_state_dict(half)


@pytest.mark.parametrize(("before", "now"), [("float32", "float64"), ("float64", "float32"), ("float32", "float32")])
def test_a_state_is_loaded_in_the_dtype_that_the_parameters_need(before: str, now: str) -> None:
    first, second = Pair(getattr(torch, before)), Pair(getattr(torch, now))
    optimizer, resumed = (SpectralOptimizer(groups(each, "normuon")) for each in (first, second))
    train(first, optimizer, 2)
    resumed.load_state_dict(optimizer.state_dict())
    kinds = {value.dtype for state in resumed.state.values() for key, value in state.items() if key != "step"}
    assert kinds == {getattr(torch, now)}
    train(second, resumed, 1)
    assert int(resumed.state[second.first.weight]["step"]) == 3


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Muon])
def test_a_state_of_torchs_own_optimizers_is_told_as_such(make: type[torch.optim.Optimizer]) -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    with pytest.raises(CheckpointError, match="is of another optimizer, as torch.optim's"):
        SpectralOptimizer([weight]).load_state_dict(make([weight]).state_dict())


def test_what_others_keep_beside_the_state_is_theirs() -> None:
    plain, model = Pair(), Pair()
    expected, optimizer = SpectralOptimizer(groups(plain, "muon")), SpectralOptimizer(groups(model, "muon"))
    for param in model.parameters():
        optimizer.state[param] |= {"z": param.detach().clone(), "seen": 3}
    optimizer.state["calls"] = 3
    assert len(optimizer.without_updates()) == 4
    train(plain, expected, 2)
    train(model, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["nesterov"] = False
    train(model, optimizer, 1, start=1)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert optimizer.state.pop("calls") == 3
    assert all(state["seen"] == 3 and state["z"].dtype == torch.float32 for state in optimizer.state.values())


def test_a_rule_that_leaves_state_behind_is_no_edit() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = SpectralOptimizer([weight], rule="normuon")
    weight.grad = torch.randn(4, 4)
    optimizer.step()
    optimizer.param_groups[0]["rule"] = "muon"
    with pytest.raises(ConfigError, match="has variance.* left over; make a new optimizer"):
        optimizer.step()


def test_a_momentum_that_is_set_after_a_cycle_stays() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = SpectralOptimizer([weight], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=3)
    weight.grad = torch.randn(4, 4)
    optimizer.step()
    scheduler.step()
    optimizer.step()
    assert optimizer.param_groups[0]["momentum"] == optimizer.param_groups[0]["betas"][0] != 0.95
    optimizer.param_groups[0]["momentum"] = 0.5
    optimizer.step()
    assert optimizer.param_groups[0]["momentum"] == 0.5


def test_loading_refuses_another_number_of_groups() -> None:
    state = stepped(nn.Parameter(torch.ones(4, 4))).state_dict()
    state["param_groups"] *= 2
    with pytest.raises(CheckpointError, match="2 parameter groups"):
        SpectralOptimizer([nn.Parameter(torch.ones(4, 4))]).load_state_dict(state)


def test_the_momentum_is_an_exponential_average_untouched_by_the_filter() -> None:
    weight = nn.Parameter(torch.randn(6, 9))
    optimizer = SpectralOptimizer([weight], rule="pion", momentum=0.8)
    expected = torch.zeros(6, 9)
    for _ in range(3):
        weight.grad = torch.randn(6, 9)
        expected = 0.8 * expected + 0.2 * weight.grad
        optimizer.step()
    assert torch.allclose(optimizer.state[weight]["momentum_buffer"], expected, atol=1e-6)


def test_groups_can_be_added_and_a_refused_one_leaves_no_trace() -> None:
    model = Pair()
    optimizer = SpectralOptimizer([{"params": [("first.weight", model.first.weight)]}])
    with pytest.raises(ConfigError, match="second.bias"):
        optimizer.add_param_group({"params": [("second.bias", model.second.bias)], "rule": "muon"})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [("second.bias", model.second.bias)], "rule": "adamw"})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("rule", ["pion", "adamw", "lora_muon"])
@pytest.mark.filterwarnings("ignore:rule lora_muon updates nothing")
def test_what_is_added_to_a_models_optimizer_has_the_rule_that_was_asked_for(rule: str) -> None:
    optimizer = build_optimizer(Pair(), rule=rule, weight_decay=0.1)
    before, layer = len(optimizer.param_groups), nn.Linear(8, 8)
    optimizer.add_param_group({"params": layer.named_parameters(), "lr": 0.3})
    matrix, vector = optimizer.param_groups[before:]
    assert (matrix["param_names"], vector["param_names"]) == (["weight"], ["bias"])
    assert (matrix["rule"], vector["rule"]) == ("adamw" if rule == "lora_muon" else rule, "adamw")
    assert (matrix["lr"], matrix["weight_decay"], vector["lr"], vector["weight_decay"]) == (0.3, 0.1, 0.3, 0.0)
    listed = {"params": [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, 4))], "param_names": ["one", "two"]}
    optimizer.add_param_group(listed)
    assert [group["param_names"] for group in optimizer.param_groups[before + 2 :]] == [["two"], ["one"]]
    del optimizer.param_groups[before + 2 :]
    optimizer.add_param_group({"params": [("other", nn.Parameter(torch.ones(4, 4)))], "rule": "sgd"})
    assert [group["rule"] for group in optimizer.param_groups[before + 2 :]] == ["sgd"]


class Sharded(nn.Parameter):
    ds_id = 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": "pin"}, "did you mean pion"),
        ({"rule": "muon", "normalise": "frobenus"}, "did you mean frobenius"),
        ({"rule": "muon", "compute_dtype": "float8"}, "compute_dtype"),
        ({"rule": "muon", "adjust_lr": "orginal"}, "did you mean original"),
        ({"rule": "pion", "promotion_steps": 6}, "promotion_steps=6"),
        ({"rule": "muon", "lr": -1.0}, "lr=-1.0"),
        ({"rule": "muon", "momentum": 1.0}, "momentum=1.0"),
        ({"rule": "muon", "num_heads": 4}, "4 heads do not divide"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SpectralOptimizer([nn.Parameter(torch.randn(6, 9))], **settings)


@pytest.mark.parametrize(
    ("param", "words"),
    [
        (nn.Parameter(torch.randn(54)), "FSDP1 or DeepSpeed flattened it"),
        (nn.Parameter(torch.randn(4, 4, dtype=torch.complex64)), "complex64"),
        (Sharded(torch.randn(4, 4)), "sharded"),
    ],
)
def test_parameters_that_cannot_work_are_refused_by_name(param: nn.Parameter, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        SpectralOptimizer([("layer.weight", param)], rule="muon")
    assert "layer.weight" in str(refusal.value)


def test_sparse_gradients_are_refused_by_name() -> None:
    embedding = nn.Embedding(5, 4, sparse=True)
    optimizer = SpectralOptimizer(embedding.named_parameters(), rule="adamw")
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="weight: sparse"):
        optimizer.step()


def test_bf16_compute_stays_near_float32() -> None:
    results = []
    for compute_dtype in ("float32", "bfloat16", "float64"):
        model = Pair()
        train(model, SpectralOptimizer(groups(model, "muon"), lr=0.05, compute_dtype=compute_dtype), 1)
        results.append(model.first.weight.detach().clone())
    start = Pair().first.weight.detach()
    assert (results[1] - results[0]).norm() < 0.03 * (results[0] - start).norm()
    assert (results[2] - results[0]).norm() < 1e-5 * (results[0] - start).norm()
