"""What torch expects of any of its optimizers, held by every rule of the table."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from itertools import product

import pytest
import torch
from rule_cases import NAMES, PAIRS, every_rule, params_for, same_bits, set_gradients, spanning, train
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, SequentialLR

from rlspec.errors import ConfigError
from rlspec.optim import RULES, SpectralOptimizer, build_optimizer

QUADRATIC_STEPS = 40


def quadratic(params: list[nn.Parameter]) -> torch.Tensor:
    """Distance of the weights from a target; LoRA pairs (rank 3) count by their product."""
    pairs = params[0].shape[0] == 3
    weights = [b @ a for a, b in zip(params[0::2], params[1::2], strict=True)] if pairs else params
    return sum((weight - 0.5).square().sum() for weight in weights)


@every_rule
def test_without_gradients_a_step_is_no_step(rule: str) -> None:
    params = params_for(rule)
    start = copy.deepcopy(params)
    optimizer = SpectralOptimizer(params, rule=rule, lr=1.0, weight_decay=0.5)
    optimizer.step()
    assert same_bits(params, start)
    assert not optimizer.state


@every_rule
def test_it_goes_down_a_quadratic_with_a_scheduler(rule: str) -> None:
    params = params_for(rule)
    lr = 1e-3 if rule in ("scion_sign", "scion_row") else 0.1  # steps of a radius of 3000
    optimizer = SpectralOptimizer(params, rule=rule, lr=lr, promotion_steps="auto", adjust_lr="match_rms_adamw")
    scheduler = CosineAnnealingLR(optimizer, QUADRATIC_STEPS)
    losses = []
    for _ in range(QUADRATIC_STEPS):
        optimizer.zero_grad()
        loss = quadratic(params)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        scheduler.step()
    assert losses[-1] < 0.8 * losses[0]


@every_rule
def test_a_closure_is_called_once_with_gradients_on(rule: str) -> None:
    params, plain = params_for(rule), params_for(rule)
    optimizer = SpectralOptimizer(params, rule=rule, lr=0.1)
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = quadratic(params)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() == pytest.approx(quadratic(plain).item())
    quadratic(plain).backward()
    SpectralOptimizer(plain, rule=rule, lr=0.1).step()
    assert same_bits(params, plain)


@every_rule
def test_lr_and_weight_decay_are_those_of_the_group(rule: str) -> None:
    whole = params_for(rule)
    first, second = whole[:2], whole[2:]
    optimizer = SpectralOptimizer([{"params": first, "lr": 0.0}, {"params": second}], rule=rule, lr=0.1)
    start = copy.deepcopy(whole)
    set_gradients(whole)
    optimizer.step()
    assert same_bits(first, start[:2])
    assert not any(torch.equal(param, old) for param, old in zip(second, start[2:], strict=True))
    assert "SpectralOptimizer" in repr(optimizer) and "lr: 0.0" in repr(optimizer)


@every_rule
def test_a_group_added_later_is_as_one_given_at_the_start(rule: str) -> None:
    at_once, later = params_for(rule), params_for(rule)
    expected = SpectralOptimizer([{"params": at_once[:2]}, {"params": at_once[2:], "lr": 0.05}], rule=rule, lr=0.1)
    optimizer = SpectralOptimizer(later[:2], rule=rule, lr=0.1)
    optimizer.add_param_group({"params": later[2:], "lr": 0.05})
    for params, chosen in ((at_once, expected), (later, optimizer)):
        set_gradients(params)
        chosen.step()
    assert same_bits(at_once, later)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": later[2:]})


@every_rule
def test_a_tensor_as_lr_gives_the_bits_of_a_number(rule: str) -> None:
    number, tensor = params_for(rule), params_for(rule)
    train(rule, number, lr=0.125)
    train(rule, tensor, lr=torch.tensor(0.125))
    assert same_bits(number, tensor)


def saved_by_torch(optimizer: SpectralOptimizer) -> dict:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def loaded_from_state(optimizer: SpectralOptimizer) -> SpectralOptimizer:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    twin = SpectralOptimizer(copy.deepcopy(params), rule=optimizer.param_groups[0]["rule"], lr=9.0)
    twin.load_state_dict(saved_by_torch(optimizer))
    return twin


def pickled(optimizer: SpectralOptimizer) -> SpectralOptimizer:
    twin: SpectralOptimizer = pickle.loads(pickle.dumps(optimizer))
    return twin


COPIES = list(product([torch.float32, torch.bfloat16], [copy.deepcopy, pickled, loaded_from_state]))


@pytest.mark.parametrize(("rule", "dtype", "copied"), spanning(NAMES, COPIES))
def test_a_copy_continues_with_the_same_bits(rule: str, dtype: torch.dtype, copied: Callable) -> None:
    params = params_for(rule, dtype)
    settings = {"promotion_steps": "auto", "nesterov": True, "weight_decay": 0.01, "state_dtype": "bfloat16"}
    optimizer = train(rule, params, **settings)
    twin = copied(optimizer)
    twins = twin.param_groups[0]["params"]
    assert all(ours is not theirs for ours, theirs in zip(params, twins, strict=True))
    for chosen, held in ((optimizer, params), (twin, twins)):
        for step in range(3):
            set_gradients(held, seed=10 + step)
            chosen.step()
    assert same_bits(params, twins)
    for ours, theirs in zip(params, twins, strict=True):
        assert optimizer.state[ours].keys() == twin.state[theirs].keys()
        for name, value in optimizer.state[ours].items():
            assert value.dtype == twin.state[theirs][name].dtype
            assert torch.equal(value, twin.state[theirs][name])


@every_rule
def test_the_state_dict_is_tensors_and_primitives_and_the_same_each_time(rule: str) -> None:
    optimizer = train(rule, params_for(rule))

    def check(value: object) -> None:
        if isinstance(value, dict):
            for entry in value.values():
                check(entry)
        elif isinstance(value, (list, tuple)):
            for entry in value:
                check(entry)
        else:
            assert value is None or isinstance(value, (torch.Tensor, bool, int, float, str))

    check(optimizer.state_dict())
    assert len(optimizer.state_dict()["state"]) == 3 + (rule in PAIRS)
    assert str(optimizer.state_dict()) == str(optimizer.state_dict())


@every_rule
def test_hooks_run_around_the_step_and_the_state(rule: str) -> None:
    params = params_for(rule)
    optimizer, seen = SpectralOptimizer(params, rule=rule), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("state"))
    set_gradients(params)
    optimizer.step()
    optimizer.state_dict()
    assert seen == ["before", "after", "state"]


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (step + 1)),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=5, cycle_momentum=False),
        lambda optimizer: SequentialLR(
            optimizer, [LambdaLR(optimizer, lambda _: 0.5), CosineAnnealingLR(optimizer, 3)], [2]
        ),
        lambda optimizer: ReduceLROnPlateau(optimizer, patience=0),
    ],
)
def test_torch_schedulers_drive_the_lr_of_every_group(make: Callable) -> None:
    params = params_for("muon")
    optimizer = SpectralOptimizer([{"params": params[:1]}, {"params": params[1:], "rule": "adamw"}], lr=0.1)
    scheduler, seen = make(optimizer), []
    for _ in range(5):
        set_gradients(params)
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
        seen.append([group["lr"] for group in optimizer.param_groups])
    assert seen[0] != seen[-1]
    assert all(one == other for one, other in seen)


@every_rule
def test_a_grad_scaler_leaves_out_overflowed_steps_and_unscales_the_others(rule: str) -> None:
    params, plain = params_for(rule), params_for(rule)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    optimizer = SpectralOptimizer(params, rule=rule, lr=0.1)
    expected = SpectralOptimizer(plain, rule=rule, lr=0.1)
    for overflow in (False, True, False):
        optimizer.zero_grad()
        loss = scaler.scale(quadratic(params))
        (loss * float("inf") if overflow else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if not overflow:
            expected.zero_grad()
            quadratic(plain).backward()
            expected.step()
    assert scaler.get_scale() == 512.0
    for ours, theirs in zip(params, plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@every_rule
def test_memory_for_the_state_is_taken_once(rule: str) -> None:
    params = params_for(rule)
    optimizer = train(rule, params, steps=1)
    before = {name: value.data_ptr() for state in optimizer.state.values() for name, value in state.items()}
    set_gradients(params, seed=7)
    optimizer.step()
    after = {name: value.data_ptr() for state in optimizer.state.values() for name, value in state.items()}
    assert before == after


@every_rule
def test_autocast_around_a_step_changes_no_bit(rule: str) -> None:
    """In bfloat16 an inverse root's damping is lost: seven rules left NaN, the cap a singular value of four million."""
    bound = {} if rule in PAIRS or RULES[rule].kind == "elementwise" else {"spectral_cap": 0.5}
    params, plain = params_for(rule), params_for(rule)
    train(rule, plain, **bound)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(rule, params, **bound)
        assert torch.is_autocast_enabled("cpu")
    assert same_bits(params, plain)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown option 'scheduel' for muon; did you mean schedule"):
        SpectralOptimizer(params_for("muon"), rule="muon", scheduel="cans")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state_dtype": "int8"}, "state_dtype='int8'; allowed: bfloat16, float32"),
        ({"cap_method": "softly"}, "cap_method='softly'; did you mean soft"),
        ({"update_clip": -1.0}, "update_clip=-1.0 must be a number of at least 0; 0 means none"),
        ({"update_clip": math.inf}, "update_clip=inf must be a number of at least 0; 0 means none"),
        ({"gradient_clip": "1"}, "gradient_clip='1' must be a number"),
        ({"spectral_cap": math.nan}, "spectral_cap=nan must be a number"),
        ({"rule": "spectra", "spectral_clip": math.inf}, "spectral_clip=inf: must be finite"),
        ({"rule": "spectra", "spectral_clip": "10"}, "spectral_clip='10': must be a number"),
        ({"rule": "right_polar", "polar_eps": math.inf}, "polar_eps=inf: must be finite"),
        ({"rule": "soap", "soap_skip_first": "no"}, "soap_skip_first='no': must be True or False"),
        ({"ns_steps": 5.0}, "ns_steps=5.0 must be an integer"),
        ({"num_heads": 2.0}, "num_heads=2.0 must be an integer"),
        ({"head_axis": 1.0}, "head_axis=1.0 must be an integer"),
        ({"nesterov": "false"}, "nesterov='false': must be True or False"),
        ({"maximize": "no"}, "maximize='no': must be True or False"),
        ({"check_finite": "no"}, "check_finite='no': must be True or False"),
        ({"telemetry_every": 2.5}, "telemetry_every=2.5: must be an integer"),
        ({"workspace_bytes": -1}, "workspace_bytes=-1: must be an integer of at least 0"),
        ({"rule": "muonn"}, "unknown optimizer rule 'muonn'; did you mean muon"),
        ({"rule": None}, "unknown optimizer rule None"),
        ({"schedule": None}, "schedule=None: must have a value"),
        ({"schedule": "kellar"}, "schedule='kellar'; did you mean keller"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_remedy(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpectralOptimizer(params_for("muon"), **settings)


def test_parameters_without_any_gradient_are_reported_once_and_not_fatal() -> None:
    params = params_for("muon")
    optimizer = SpectralOptimizer([("used", params[0]), ("unused", params[1])], lr=0.1)
    with pytest.warns(UserWarning, match=r"1 trainable parameters had no usable gradient in 10 steps \(unused\)"):
        for _ in range(12):
            set_gradients(params[:1])
            optimizer.step()
    assert optimizer.without_updates() == ["unused"]


def test_an_optimizer_of_which_nothing_has_a_gradient_says_so() -> None:
    optimizer = SpectralOptimizer(params_for("muon"))
    with pytest.warns(UserWarning, match=r"no parameter had a usable gradient in 10 steps.*fully_shard") as told:
        for _ in range(12):
            optimizer.step()
    assert len(told) == 1


def test_unfrozen_layers_are_added_without_names_as_others_optimizers_take_them() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    optimizer = build_optimizer(model[1], rule="muon")
    optimizer.add_param_group({"params": model[0].parameters()})
    assert [group["rule"] for group in optimizer.param_groups[-2:]] == ["muon", "adamw"]
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert len(set(names)) == len(names) == 4
    before = [param.detach().clone() for param in model.parameters()]
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    with pytest.raises(TypeError, match="ordered collections"):
        optimizer.add_param_group({"params": set(nn.Linear(2, 3).parameters())})
    again = build_optimizer(model[1], rule="muon")
    again.add_param_group({"params": list(model[0].parameters())})
    again.load_state_dict(optimizer.state_dict())


def test_who_trains_no_matrix_is_told_and_who_watches_is_not_told_again() -> None:
    params = [nn.Parameter(torch.eye(6)), nn.Parameter(torch.eye(6))]
    for watched in (False, True):
        optimizer = SpectralOptimizer(params, rule="pion", role="mlp", promotion_steps=0.0)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(12):
                for param in params:
                    param.grad = torch.eye(6)
                optimizer.step()
                if watched:
                    optimizer.inactive_spectral_groups()
        found = [str(each.message) for each in told if "mlp: no direction of any update passed" in str(each.message)]
        assert len(found) == (not watched), told


def test_a_copy_knows_its_models_symmetry() -> None:
    optimizer = build_optimizer(nn.Sequential(nn.Linear(4, 6)), rule="muon")
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.symmetry.roles == optimizer.symmetry.roles
        twin.add_param_group({"params": nn.Linear(3, 2).bias})
        assert twin.param_groups[-1]["rule"] == "adamw"


@every_rule
def test_without_the_check_for_nan_finite_gradients_give_the_same_bits(rule: str) -> None:
    checked, trusted = params_for(rule), params_for(rule)
    train(rule, checked, promotion_steps="auto")
    train(rule, trusted, promotion_steps="auto", check_finite=False)
    assert same_bits(checked, trusted)


def test_without_the_check_nan_passes_through() -> None:
    params = params_for("adamw")
    set_gradients(params)
    params[0].grad[0, 0] = float("nan")
    optimizer = SpectralOptimizer(params, rule="adamw", check_finite=False)
    optimizer.step()
    assert params[0].isnan().any()
    assert copy.deepcopy(optimizer).check_finite is False
